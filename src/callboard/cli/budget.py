"""``callboard budget``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.output import SPAN, emit, note, table
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.agents.llm.scope import Amount, BudgetView, Limits
    from callboard.runtime.bus.base import Bus

NONE = "none"


class _Limit(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """A number, or ``none`` for no limit."""

    name = "N|none"

    def __init__(self, kind: type[int | Decimal] | None) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's values
        """Return the number, or ``none`` as it is."""
        if value == NONE:
            return value
        if self._kind is None:
            return SPAN.convert(value, param, ctx)
        try:
            found = self._kind(value)
        except (InvalidOperation, ValueError):
            return self.fail(f"{value!r} is no number; write one, or none for no limit", param, ctx)
        if not found.is_finite() if isinstance(found, Decimal) else False:
            return self.fail(f"{value!r} is no amount", param, ctx)
        if found < 0:
            return self.fail(f"{value} is below nothing; 0 allows nothing, none takes the limit away", param, ctx)
        return found


@click.group("budget")
@global_options
def command() -> None:
    """Limit what runs, agents and tenants may spend on models, and see how they stand.

    A scope is run/<id>, agent-day/<type>/<date>, tenant/<name> or a name of your own. One that nobody set has the
    limits of its kind: `callboard budget set run --usd 1` is for each run, agent-day/planner for each day.
    """


@command.command(
    "set",
    epilog=example(
        "callboard budget set run/7f3a --usd 0.50 --tokens 200000",
        "callboard budget set agent-day/planner --usd 5",
        "callboard budget set run --seconds 10m --parent tenant/acme",
    ),
)
@click.argument("scope")
@click.option("--tokens", type=_Limit(int), help="Tokens, of prompts and answers together.")
@click.option("--usd", type=_Limit(Decimal), help="US dollars, exact.")
@click.option("--seconds", type=_Limit(None), help="Wall time of calls, added up: 600, 10m.")
@click.option("--warn", type=click.FloatRange(0, 1), help="Share of a limit at which a warning is given.")
@click.option("--critical", type=click.FloatRange(0, 1), help="Share at which a person should look.")
@click.option("--parent", help="Scope that pays as well; none for no parent.")
@json_option
@global_options
@pass_session
def set_(session: Session, /, scope: str, **given: Any) -> None:  # noqa: ANN401 - click's
    """Change the limits of SCOPE; what is not named stays as it is."""
    import msgspec

    from callboard.agents.llm.scope import TYPE, BudgetView, SetBudget, check_scope
    from callboard.runtime.client import Client

    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not named:
        text = "nothing to set: name a limit, such as --usd 5"
        raise click.UsageError(text)
    parent = named.pop("parent", None)
    limits: dict[str, Any] = {name: None if value == NONE else value for name, value in named.items()}
    if parent is not None:
        if parent == scope:
            text = f"{scope} cannot be its own parent"
            raise click.UsageError(text)
        limits["parent"] = "" if parent == NONE else check_scope(parent)
    wanted = SetBudget(**limits)

    async def work() -> BudgetView:
        async with session.bus("budget") as bus:
            answer = await Client(bus).actor(f"{TYPE}/{check_scope(scope)}").ask(wanted)
            meant = await _meant(bus, scope)
            if meant:
                note(f"{scope} is set, though no agents of this type are known{meant}")
            return msgspec.convert(answer, BudgetView)

    _show(session, [session.run(work())])


@command.command("show", epilog=example("callboard budget show run/7f3a"))
@click.argument("scope")
@json_option
@global_options
@pass_session
def show(session: Session, /, scope: str) -> None:
    """Show what SCOPE has spent, and what is left; of agent-day/<type> the present day as well."""
    from callboard.agents.llm.scope import agent_day, agent_of, every_day
    from callboard.runtime.clock import SYSTEM_CLOCK
    from callboard.runtime.errors import NotFoundError

    found = session.run(_find(session, scope))
    # calls of an agent are charged to its days
    today = agent_day(agent_of(scope), SYSTEM_CLOCK.now()) if scope == every_day(scope) else ""
    if today:
        found += session.run(_find(session, today))
    if not found:
        message = f"budget {scope} was never set or used; `callboard budget ls` shows those that were"
        raise NotFoundError(message)
    _show(session, found)
    if today and not session.json:
        note(f"each day is charged by itself; today's scope is {today}")


@command.command("ls", epilog=example("callboard budget ls", "callboard budget ls --json | jq '.[].scope'"))
@json_option
@global_options
@pass_session
def ls(session: Session, /) -> None:
    """List all scopes that were set or used."""
    found = session.run(_find(session, None))
    if session.json:
        emit(found)
    else:
        _table(found)


async def _find(session: Session, /, scope: str | None) -> list[BudgetView]:
    from callboard.agents.budget import find_budgets

    async with session.bus("budget") as bus:
        return await find_budgets(bus, scope)


async def _meant(bus: Bus, scope: str) -> str:
    """Return ``; did you mean …?`` for the days of a type of agent that nobody knows, "" for all else."""
    from callboard.agents.llm.scope import agent_of
    from callboard.runtime import census
    from callboard.runtime.near import hint

    kind = agent_of(scope)
    return hint(kind, await census.near_types(bus, kind), before="agent-day/") if kind else ""


def _show(session: Session, /, found: list[BudgetView]) -> None:
    """Show one scope; the second, if there is one, is its present day."""
    import msgspec

    if session.json:
        emit(msgspec.structs.replace(found[0], today=found[1]) if found[1:] else found[0])
    else:
        _table(found)


def _table(found: list[BudgetView]) -> None:
    head = ("SCOPE", "LEVEL", "TOKENS", "USD", "SECONDS", "RUNNING", "CALLS", "INTERRUPTED", "REFUSED", "PARENT")
    table([_row(view) for view in found], head=head, empty="no budget was set or used")


def _row(view: BudgetView) -> tuple[str, ...]:
    counts = (view.running, view.calls, view.interrupted, view.refused)
    return (view.scope, view.level, *_shares(view.spent, view.limits), *map(str, counts), view.parent or "-")


def _shares(spent: Amount, limits: Limits) -> tuple[str, str, str]:
    tokens = f"{spent.tokens}{'' if limits.tokens is None else f' of {limits.tokens}'}"
    usd = f"{spent.usd or 0:f}{'' if limits.usd is None else f' of {limits.usd:f}'}"
    seconds = f"{spent.seconds:.1f}{'' if limits.seconds is None else f' of {limits.seconds:g}'}"
    return tokens, usd, seconds
