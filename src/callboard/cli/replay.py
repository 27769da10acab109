"""``callboard replay``."""

from __future__ import annotations

from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from callboard.cli import rerun
from callboard.cli.output import SINCE, emit, shorten, stamp, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from callboard.runtime.actor.address import Address
    from callboard.runtime.actor.difference import Change
    from callboard.runtime.actor.history import Moment, Version
    from callboard.runtime.actor.replay import Noted, Turn
    from callboard.runtime.republish import Sent

# named here too, so that the command line starts without the runtime
STREAMS = ("CB_LEDGER", "CB_AUDIT", "CB_AUDIT_GAPS", "CB_DEAD")


class Place(click.ParamType):  # type: ignore[type-arg]  # generic in new clicks only
    """A moment of an actor's past: a sequence of ``CB_ACTORS``, a time, or a span before now."""

    name = "TIME|SEQ"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        """Return a sequence or an aware time."""
        if isinstance(value, (int, datetime)):
            return value
        text = str(value).strip()
        return int(text) if text.isdecimal() else SINCE.convert(text, param, ctx)


PLACE = Place()


@click.group("replay", cls=rerun.Replays, epilog=example("callboard replay digest/7f --diff --module flows.py"))
def command() -> None:
    """Show what was, from the audit; or run it again on today's code: `callboard replay RUN --diff`."""


command.add_command(rerun.command)


@command.command(
    "agent",
    epilog=example(
        "callboard replay agent greeter/ann --at 2h",
        "callboard replay agent greeter/ann --at 4711 --json",
        "callboard replay agent greeter/ann --step",
        "callboard replay agent greeter/ann --diff 1d 2h",
    ),
)
@click.argument("address")
@click.option("--at", type=PLACE, help="The moment: a sequence (4711), a time, or a span before now (2h).")
@click.option("--step", is_flag=True, help="Walk through the turns, those after --at when it is given.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Turns at most, with --step.")
@click.option("--diff", nargs=2, type=PLACE, metavar="A B", help="Show what differs between two moments.")
@json_option
@global_options
@pass_session
def agent(
    session: Session,
    /,
    address: str,
    *,
    at: Moment | None,
    step: bool,
    limit: int,
    diff: tuple[Moment, Moment] | None,
) -> None:
    """Show the state of ADDRESS (type/key) at a moment, its turns one by one, or what changed between two moments.

    The state at a sequence is the last one stored up to it; at a time, the last one written by then.
    """
    from callboard.runtime.actor import address as addresses

    if diff and (step or at is not None):
        message = "--diff takes its two moments itself: leave --at and --step out"
        raise click.UsageError(message)
    actor = addresses.parse(address)
    if diff:
        session.run(_diff(session, actor, diff))
    elif step:
        session.run(_walk(session, actor, at, limit))
    else:
        session.run(_state(session, actor, at))


@command.command(
    "to",
    epilog=example(
        "callboard replay to 'history.{subject}' --since 1h --rate 50",
        "callboard replay to shadow.search --submitted --subject 'cb.result.search.*' --limit 1000",
        "callboard replay to history.mail --stream CB_AUDIT --subject 'cb.mbox.greeter.>' --nats-to nats://u:p@host:4222",
    ),
)
@click.argument("subject")
@click.option("--stream", type=click.Choice(STREAMS), default=STREAMS[0], show_default=True, help="Where to read.")
@click.option("--subject", "patterns", multiple=True, metavar="PATTERN", help="Only these; * and > as in NATS.")
@click.option(
    "--since", type=SINCE, help="From there on: a span before now (2h) or a time.  [default: all that stands]"
)
@click.option("--until", type=SINCE, help="Up to there.  [default: the present end]")
@click.option("--limit", type=click.IntRange(1), help="Messages at most.")
@click.option(
    "--rate", type=click.FloatRange(0.01, 100_000), default=100.0, show_default=True, help="Messages a second."
)
@click.option("--submitted", is_flag=True, help="Of finished tasks, send what was submitted in place of the record.")
@click.option("--nats-to", metavar="URL", help="Send there, as another tenant or to another server.")
@json_option
@global_options
@pass_session
def to(session: Session, /, subject: str, *, nats_to: str | None, rate: float, **wanted: Any) -> None:  # noqa: ANN401
    """Publish a slice of history again onto SUBJECT; {subject} in it stands for each original's own.

    Each message bears the header Cb-Replay with its origin and nothing that makes anybody act: no answers, ids,
    deadlines or schedules. Callboard's own subjects are refused, and its workers run nothing that bears the header.
    """
    sent = session.run(_send(session, subject, nats_to, rate, wanted))
    if session.json:
        emit(sent)
        return
    span = f", sequences {sent.first_seq} to {sent.last_seq}" if sent.messages else ""
    tell(f"sent {sent.messages} messages to {subject}{span}")
    if sent.left_out:
        tell(f"left out {sent.left_out}: attempts, or tasks whose payload lies in the object store")


async def _send(session: Session, /, subject: str, nats_to: str | None, rate: float, wanted: dict[str, Any]) -> Sent:
    from contextlib import AsyncExitStack

    from callboard.runtime import republish
    from callboard.runtime.host import connector

    republish.check_target(subject)
    chosen = republish.Slice(subjects=wanted.pop("patterns"), **wanted)
    async with session.bus("replay") as source, AsyncExitStack() as stack:
        target = source
        if nats_to is not None:
            target = await connector(session.settings(nats__url=nats_to))("replay-to")
            stack.push_async_callback(target.close)
        return await republish.republish(source, target, chosen, to=subject, rate=rate)


async def _state(session: Session, /, address: Address, at: Moment | None) -> None:
    from callboard.runtime.actor import history

    async with session.bus("replay") as bus:
        version = await history.version_at(bus, address, at)
        state = await history.state_of(bus, version)
    if session.json:
        emit({**_head(version), "state": state, "record": version.record})
        return
    tell(f"{address} at {_place(version)}: turn {version.record.turns}, {version.record.status}")
    tell(_pretty(bytes(state) if state is not None else b"null"))


async def _diff(session: Session, /, address: Address, moments: tuple[Moment, Moment]) -> None:
    from callboard.runtime.actor import history, replay

    async with session.bus("replay") as bus:
        old, new = [await history.version_at(bus, address, moment) for moment in moments]
        changes = await replay.compare(bus, old, new)
    if session.json:
        emit({"old": _head(old), "new": _head(new), "changes": changes})
        return
    tell(f"{address}: from {_place(old)} to {_place(new)}, {new.record.turns - old.record.turns} turns")
    _tell_changes(changes, indent="")
    if not changes:
        tell("the state is the same")


async def _walk(session: Session, /, address: Address, after: Moment | None, limit: int) -> None:
    from callboard.runtime.actor import replay

    count = 0
    async with session.bus("replay") as bus, aclosing(replay.turns(bus, address, after=after)) as turns:
        async for turn in turns:
            if session.json:
                emit({**_head(turn.version), "turn": turn})
            else:
                _tell_turn(turn)
            count += 1
            if count == limit:
                break
    if not count and not session.json:
        tell(f"{address} has no turn after that")


def _head(version: Version) -> dict[str, object]:
    return {"seq": version.seq, "at": version.at, "turns": version.record.turns, "sha256": version.digest}


def _place(version: Version) -> str:
    return f"sequence {version.seq} ({stamp(version.at)})"


def _tell_turn(turn: Turn) -> None:
    from msgspec import UNSET

    version, arrival = turn.version, turn.arrival
    if turn.missing:
        tell(f"  ({turn.missing} earlier turns are kept no more)")
    tell(f"{stamp(version.at)}  turn {version.record.turns}  {_place(version)}  by {version.record.by or '-'}")
    if arrival is not None:
        what = arrival.type or arrival.kind or "no type"
        sender = f" from {arrival.sender}" if arrival.sender else ""
        tell(f"  mail {arrival.seq} {what}{sender}: {shorten(arrival.data.decode(errors='replace'))}")
    elif version.record.mail:
        tell(f"  mail {version.record.mail}: kept no more, or not of this turn")
    for noted in turn.steps:
        tell(f"  step {noted.entry}: {shorten(_step_value(noted))}")
    for noted in turn.events:
        tell(f"  event {noted.seq}: {shorten(noted.data.decode(errors='replace'))}")
    if turn.problem:
        tell(f"  change unknown: {turn.problem}")
    _tell_changes(turn.changes, indent="  ")
    for reply in turn.replies:
        value = reply.error.message if reply.error is not UNSET else _text(reply.value)
        tell(f"  {'error' if reply.error is not UNSET else 'reply'} to {reply.id}: {shorten(value)}")
    for name, timer in turn.timers.items():
        tell(f"  timer {name} set: {timer.rule or 'once'}" + (f" at {stamp(timer.due)}" if timer.due else ""))
    _tell_list("  timer gone", turn.untimed)
    for parked in turn.parked:
        tell(f"  mail {parked.seq} waits for {parked.awaiting}")
    _tell_list("  mail waits no more", (str(seq) for seq in turn.resumed))
    if turn.status:
        tell(f"  status {turn.status}" + (f": {version.record.reason}" if version.record.reason else ""))


def _tell_list(text: str, names: Iterable[str]) -> None:
    for name in names:
        tell(f"{text}: {name}")


def _tell_changes(changes: list[Change], *, indent: str) -> None:
    for change in changes:
        tell(f"{indent}{change.path}: {shorten(_text(change.old))} -> {shorten(_text(change.new))}")


def _text(value: object) -> str:
    from msgspec import Raw

    return bytes(value).decode(errors="replace") if isinstance(value, Raw) else "-"


def _step_value(noted: Noted) -> str:
    import msgspec

    try:
        found = msgspec.json.decode(noted.data)
    except msgspec.DecodeError:
        return noted.data.decode(errors="replace")
    if not isinstance(found, dict):
        return str(found)
    return msgspec.json.encode(found.get("value", found.get("blob", found.get("kind")))).decode()


def _pretty(data: bytes) -> str:
    import msgspec

    return msgspec.json.format(data, indent=2).decode()
