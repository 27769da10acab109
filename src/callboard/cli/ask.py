"""``callboard ask``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from callboard.cli.meant import guessing
from callboard.cli.output import SPAN, UNTIL, emit, note, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session
from callboard.cli.submit import read_payload

if TYPE_CHECKING:
    from callboard.runtime.actor.parts import AskStream


@click.command(
    "ask",
    epilog=example(
        """callboard ask greeter/ann Ask '{"text": "bob"}'""",
        """callboard ask greeter/ann Ask '{"text": "bob"}' --key morning --timeout 2m --json""",
        "callboard ask writer/7 Draft @brief.json --stream",
    ),
)
@click.argument("address")
@click.argument("kind", metavar="TYPE")
@click.argument("payload", metavar="[JSON]", required=False)
@click.option("--timeout", "timeout_s", type=SPAN, default=30.0, help="Wait so long for the answer.  [default: 30s]")
@click.option("--key", help="Idempotency key: asked again under it, the actor gives the stored answer.")
@click.option("--deadline", type=UNTIL, help="Not wanted after this: a span from now, or a time.")
@click.option("--stream", is_flag=True, help="Print parts of the answer as they are made.")
@json_option
@global_options
@pass_session
def command(session: Session, /, address: str, kind: str, payload: str | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Ask the actor ADDRESS (type/key) and print its answer.

    TYPE is the message's class, JSON its fields (none: `{}`); `@FILE` reads them from a file, `-` from standard input.
    The actor handles one message at a time, so the answer may take as long as what waits before it.
    """
    from callboard.runtime.actor import address as addresses

    addresses.parse(address)
    data = read_payload(payload)
    session.run(_ask(session, address, kind, b"{}" if data is None else data, **options))


async def _ask(
    session: Session,
    /,
    address: str,
    kind: str,
    data: bytes,
    *,
    timeout_s: float,
    key: str | None,
    deadline: datetime | None,
    stream: bool,
) -> None:
    from callboard.runtime.actor.ref import ActorRef

    async with session.bus("ask") as bus, guessing(bus, address.partition("/")[0]):
        actor = ActorRef(bus, address)
        if stream:
            asked = actor.stream(data, type=kind, timeout_s=timeout_s, idempotency_key=key, deadline=deadline)
            async with asked as parts:
                await _print_parts(session, parts)
            value = parts.value
        else:
            value = await actor.ask(data, type=kind, timeout_s=timeout_s, idempotency_key=key, deadline=deadline)
    if session.json:
        emit({"event": "finished", "value": value} if stream else {"address": address, "type": kind, "value": value})
    elif value is not None or not stream:
        say_value(value)


async def _print_parts(session: Session, /, parts: AskStream) -> None:
    from callboard.runtime.actor.parts import Gap

    is_open = False
    async for part in parts:
        if isinstance(part, Gap):
            if session.json:
                emit({"event": "gap", "first": part.first, "last": part.last})
            else:
                note(f"(parts {part.first} to {part.last} were lost on their way)")
        elif session.json:
            emit({"event": "part", "value": part})
        elif isinstance(part, str):
            # pieces of one text
            tell(part, end="")
            is_open = True
        else:
            say_value(part)
    if is_open:
        click.echo()


def say_value(value: object) -> None:
    """Print an answer as a person reads it: a text as it is, anything else as JSON."""
    import json

    tell(value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False))
