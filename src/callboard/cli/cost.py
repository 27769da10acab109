"""``callboard cost``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import click

from callboard.cli.output import SINCE, emit, note, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.agents.cost import CostReport, CostRow

By = Literal["agent", "model", "run", "category"]


@click.command(
    "cost",
    epilog=example("callboard cost --by agent", "callboard cost --by model --since 24h", "callboard cost --run r1"),
)
@click.option(
    "--by", type=click.Choice(("agent", "model", "run", "category")), default="agent", show_default=True, help="Rows."
)
@click.option("--since", type=SINCE, help="Only calls that were recorded after this time.  [default: all that is kept]")
@click.option("--run", default="", help="Only calls of this run.")
@json_option
@global_options
@pass_session
def command(session: Session, /, *, by: By, since: datetime | None, run: str) -> None:
    """Add up what calls of models have cost: tokens, US dollars (exact), requests and time.

    The numbers come from the calls' own records in the journal of turns. A call whose worker died in the middle has no
    end there; it is counted as unfinished, with its prompt's tokens, and its price is in no sum.
    """
    from callboard.agents.cost import cost_report

    async def work() -> CostReport:
        async with session.bus("cost") as bus:
            return await cost_report(bus, by, since=since, run=run)

    found = session.run(work())
    if session.json:
        emit(found)
        return
    rows = [*found.rows, found.total] if len(found.rows) > 1 else found.rows
    head = (by.upper(), "CALLS", "FAILED", "UNFINISHED", "CACHED", "INPUT", "OUTPUT", "USD", "SECONDS")
    table([_row(row) for row in rows], head=head, empty="no call of a model is on record")
    if found.total.unpriced:
        note(f"{found.total.unpriced} calls have no known price: add one under agents.prices")


def _row(row: CostRow) -> tuple[str, ...]:
    counts = (row.calls, row.failed, row.unfinished, row.cached, row.input_tokens, row.output_tokens)
    return (row.name, *map(str, counts), f"{row.usd:f}", f"{row.seconds:.1f}")
