"""``callboard tell``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from callboard.cli.meant import type_hint
from callboard.cli.output import SPAN, UNTIL, emit, note
from callboard.cli.session import Session, example, global_options, json_option, pass_session
from callboard.cli.submit import read_payload


@click.command(
    "tell",
    epilog=example(
        """callboard tell greeter/ann Ask '{"text": "bob"}' --id morning/1""",
        """callboard tell clerk/7 Remind '{"what": "tea"}' --delay 1h""",
    ),
)
@click.argument("address")
@click.argument("kind", metavar="TYPE")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option("--id", "own_id", help="Idempotency key within the actor: a second tell under it has no second effect.")
@click.option("--delay", "delay_s", type=SPAN, help="Deliver no sooner than after this; the server holds it.")
@click.option("--deadline", type=UNTIL, help="Not wanted after this: a span from now, or a time.")
@json_option
@global_options
@pass_session
def command(session: Session, /, address: str, kind: str, payload: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Put a message into the mailbox of the actor ADDRESS (type/key) and return when it is stored.

    TYPE is the message's class, JSON its fields (none: `{}`); `@FILE` reads them from a file, `-` from standard input.
    It waits there for a worker that hosts the type. Prints the mail's sequence.
    """
    from callboard.runtime.actor import address as addresses

    addresses.parse(address)
    data = read_payload(payload)
    seq = session.run(_tell(session, address, kind, b"{}" if data is None else data, **options))
    if session.json:
        is_held = options["delay_s"] is not None
        emit({"address": address, "type": kind, "seq": seq, "id": options["own_id"], "is_delayed": is_held})
    else:
        click.echo(seq)


async def _tell(
    session: Session,
    /,
    address: str,
    kind: str,
    data: bytes,
    *,
    own_id: str | None,
    delay_s: float | None,
    deadline: datetime | None,
) -> int:
    import shlex

    from callboard.runtime.actor import inspection
    from callboard.runtime.actor.ref import ActorRef

    async with session.bus("tell") as bus:
        ref = ActorRef(bus, address)
        seq = await ref.tell(
            data, type=kind, id=own_id, delay_s=delay_s, deadline=deadline, timeout_s=session.patience_s
        )
        status = await inspection.standing(bus, ref.address)
        if status in ("paused", "failed", "killed"):
            order = "restart" if status == "failed" else "resume"
            how = f"callboard agents {order} {shlex.quote(address)}"
            note(f"warning: {address} is {status}; the message waits until `{how}`")
        elif status is None:
            meant = await type_hint(bus, ref.address.type)
            note(f"warning: no worker hosts {ref.address.type!r} now; the message waits until one does{meant}")
        return seq
