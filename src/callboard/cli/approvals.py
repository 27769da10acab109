"""``callboard approvals``."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from callboard.cli.output import emit, note, one_line, shorten, stamp, table, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from callboard.agents.approvals import Approval
    from callboard.agents.decision import Entry
    from callboard.agents.petition import Answer
    from callboard.runtime.bus.base import Bus

F = TypeVar("F", bound=Callable[..., Any])
STATUSES = ("pending", "granted", "denied", "suggested", "used", "expired", "withdrawn", "all")
_HASH_SHOWN = 12
_AS_JSON = frozenset({"context", "payload"})


@click.group("approvals")
def command() -> None:
    """List what agents ask of people, look at it, and grant, deny or suggest something else."""


@command.command("ls", epilog=example("callboard approvals ls", "callboard approvals ls --to ops --json"))
@click.option("--status", type=click.Choice(STATUSES), default="pending", show_default=True)
@click.option("--to", metavar="NAME", default="", help="Only those that NAME is asked to decide.")
@json_option
@global_options
@pass_session
def ls(session: Session, /, status: str, to: str) -> None:
    """List approvals, oldest first; those that wait for somebody when nothing else is said."""
    from callboard.agents import approvals
    from callboard.agents.decision import Status
    from callboard.runtime.near import hint

    wanted: Any = () if status == "all" else (status,)
    kinds: tuple[Status, ...] = wanted

    async def work() -> tuple[list[Approval], list[str]]:
        async with session.bus("approvals-ls") as bus:
            listed = await approvals.ls(bus, status=kinds, to=to)
            others = await approvals.ls(bus, status=kinds) if to and not listed else []
            return listed, [name for each in others for name in each.entry.to.split(",") if name]

    found, names = session.run(work())
    if session.json:
        emit([_plain(each) for each in found])
        return
    table(
        [_row(each) for each in found],
        head=("ID", "STATUS", "ACTION", "RISK", "ASKED BY", "OF", "ASKED AT", "UNTIL", ""),
        empty=("nobody waits for an approval" if status == "pending" else f"there is none that is {status}")
        + hint(to, names),
    )


@command.command("show", epilog=example("callboard approvals show 4f1c09ab77"))
@click.argument("approval")
@json_option
@global_options
@pass_session
def show(session: Session, /, approval: str) -> None:
    """Show what exactly would be done, why, and the hash that a grant is bound to.

    APPROVAL is an id, or the beginning of one.
    """
    from callboard.agents import approvals

    async def work() -> Approval:
        async with session.bus("approvals-show") as bus:
            return await approvals.show(bus, approval)

    found = session.run(work())
    if session.json:
        emit(_plain(found))
        return
    for name, text in _lines(found.entry):
        # JSON has no line ends but its own; what else was written here would look like a line of ours
        tell(f"{name + ':':<12}{text if name in _AS_JSON else one_line(text)}")
    if found.entry.status == "pending":
        role = f" --as {shlex.quote(one_line(found.entry.to.split(',')[0].strip()))}" if found.entry.to else ""
        note(f"\ncallboard approvals grant {found.id}{role} --hash {found.entry.hash[:_HASH_SHOWN]}")
        note(f"callboard approvals deny {found.id}{role} --reason '…'")


def _decision(function: F) -> F:
    options = (
        click.argument("approval"),
        click.option("--by", metavar="NAME", help="Who decides.  [default: your login here]"),
        click.option("--as", "role", metavar="NAME", default="", help="On whose behalf, as --as ops."),
        json_option,
        global_options,
    )
    for option in reversed(options):
        function = option(function)
    return function


@command.command("grant", epilog=example("callboard approvals grant 4f1c09ab77 --hash 9b2e55d01c7a --as ops"))
@_decision
@click.option("--hash", "hash_", metavar="HEX", help="What you were shown, 8 digits or more; another one is refused.")
@click.option("--reason", default="", help="For the record.")
@pass_session
def grant(session: Session, /, approval: str, *, by: str | None, role: str, hash_: str | None, reason: str) -> None:
    """Let it be done, once, exactly as it was shown.

    Without --hash what stands now is printed, and granted.
    """
    from callboard.agents import approvals

    async def decide(bus: Bus, found: Approval) -> Answer:
        hash_shown = _whole(hash_, found.entry.hash)
        if hash_ is None and not session.json:
            what = one_line(f"{found.entry.action} for {found.entry.requester}")
            note(f"{what}: {_json(found.entry.payload)}")
        return await approvals.grant(bus, found.id, by=_who(by), hash=hash_shown, role=role, reason=reason)

    _decided(session, approval, decide)


@command.command("deny", epilog=example("callboard approvals deny 4f1c09ab77 --reason 'not twice'"))
@_decision
@click.option("--reason", default="", help="The agent reads it.")
@pass_session
def deny(session: Session, /, approval: str, *, by: str | None, role: str, reason: str) -> None:
    """Let it not be done."""
    from callboard.agents import approvals

    async def decide(bus: Bus, found: Approval) -> Answer:
        return await approvals.deny(bus, found.id, by=_who(by), role=role, reason=reason)

    _decided(session, approval, decide)


@command.command("suggest", epilog=example("callboard approvals suggest 4f1c09ab77 'half of it, as a voucher'"))
@_decision
@click.argument("suggestion")
@pass_session
def suggest(session: Session, /, approval: str, *, by: str | None, role: str, suggestion: str) -> None:
    """Let it not be done, and say what to do instead: the agent reads SUGGESTION."""
    from callboard.agents import approvals

    async def decide(bus: Bus, found: Approval) -> Answer:
        return await approvals.suggest(bus, found.id, suggestion, by=_who(by), role=role)

    _decided(session, approval, decide)


def _decided(session: Session, approval: str, decide: Callable[[Bus, Approval], Awaitable[Answer]]) -> None:
    from callboard.agents import approvals

    async def work() -> Answer:
        async with session.bus("approvals") as bus:
            return await decide(bus, await approvals.show(bus, approval))

    answer = session.run(work())
    if session.json:
        emit(answer)
    else:
        tell(f"{answer.approval} is {answer.status}")


def _who(by: str | None) -> str:
    """Return who decides: as given, else as the system knows them."""
    import getpass

    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        message = "your login is not known here: say who decides with --by NAME"
        raise click.UsageError(message) from error


def _whole(given: str | None, stands: str) -> str:
    """Return the hash that is meant: the whole of what stands when its beginning was given."""
    if given is None:
        return stands
    least = 8
    return stands if len(given) >= least and stands.startswith(given.lower()) else given


def _plain(found: Approval) -> dict[str, object]:
    from msgspec.structs import asdict

    return {"id": found.id, "to": found.entry.to, **asdict(found.entry)}


def _row(found: Approval) -> tuple[str, ...]:
    entry = found.entry
    until = entry.expires_at if entry.status == "granted" else entry.until
    return (
        found.id,
        entry.status,
        entry.action,
        entry.risk,
        entry.requester,
        entry.to or "anybody",
        stamp(entry.asked_at),
        stamp(until),
        shorten(entry.reason or _json(entry.payload), 50),
    )


def _lines(entry: Entry) -> list[tuple[str, str]]:
    lines = [
        ("action", entry.action),
        ("risk", entry.risk),
        ("asked by", f"{entry.requester}, {stamp(entry.asked_at)}"),
        ("asked of", entry.to or "anybody"),
        ("status", entry.status),
    ]
    if entry.until is not None:
        stages = entry.stages[entry.stage + 1 :]
        after = ", then ".join([*(each.to or "anybody" for each in stages), _END[entry.then]])
        lines.append(("until", f"{stamp(entry.until)}, then {after}"))
    if entry.by:
        behalf = f" for {entry.role}" if entry.role else ""
        lines.append(("decided by", f"{entry.by}{behalf}, {stamp(entry.at)}"))
    if entry.reason:
        lines.append(("said", entry.reason))
    if entry.expires_at is not None and entry.status == "granted":
        lines.append(("lapses", stamp(entry.expires_at)))
    if entry.used_by:
        lines.append(("used by", f"{entry.used_by}, {stamp(entry.used_at)}"))
    if entry.context is not None:
        lines.append(("context", _json(entry.context, indent=2)))
    return [*lines, ("hash", entry.hash), ("payload", _json(entry.payload, indent=2))]


_END = {"deny": "it is denied", "wait": "it waits for ever"}


def _json(value: object, *, indent: int = 0) -> str:
    import msgspec

    data = msgspec.json.encode(value)
    return (msgspec.json.format(data, indent=indent) if indent else data).decode()
