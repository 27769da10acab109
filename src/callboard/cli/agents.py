"""``callboard agents``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from callboard.cli.agent_types import types
from callboard.cli.meant import guessing
from callboard.cli.output import emit, note, shorten, size, stamp, table, tell
from callboard.cli.session import Session, example, global_options, json_option, pass_session

if TYPE_CHECKING:
    from callboard.runtime.actor.address import Address
    from callboard.runtime.actor.inspection import Op, View, Waiting
    from callboard.runtime.actor.record import Parked, Timer
    from callboard.runtime.census import Member
    from callboard.runtime.registry.message import AgentView

F = TypeVar("F", bound=Callable[..., Any])


@click.group("agents")
def command() -> None:
    """List actors and agents, look into them, and pause, resume, restart, cancel or kill actors."""


command.add_command(types)


@command.command("ls", epilog=example("callboard agents ls", "callboard agents ls greeter --json"))
@click.argument("kind", metavar="[TYPE]", required=False)
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True)
@click.option("--all", "all_", is_flag=True, help="Also Callboard's own actors and runs that have ended.")
@click.option("--quick", is_flag=True, help="Do not listen for hosts that run different code.")
@json_option
@global_options
@pass_session
def ls(session: Session, /, kind: str | None, *, limit: int, all_: bool, quick: bool) -> None:
    """List who is there, by address: actors that have run or have mail, and all registered agents.

    LOAD is what runs and waits against the agent's weight. WORKER hosts it; an agent in another language runs by
    itself, and its host stands there in brackets. Only of TYPE when it is given; without it the actors that keep
    budgets, approvals and shared context for others, and runs that have ended, are left out (--all shows them). It
    listens to the workers for a little over a second: a * marks the types that hosts run with different code.
    """
    from callboard.runtime import census, roster
    from callboard.runtime.actor import fleet
    from callboard.runtime.clock import SYSTEM_CLOCK

    is_own = _own_types()

    async def work() -> tuple[list[Member], dict[str, dict[str, list[str]]]]:
        async with session.bus("agents-ls") as bus:
            if quick:
                return await census.members(bus, kind=kind, limit=limit, is_late=is_own), {}
            async with roster.listening(bus) as heard:
                until_s = SYSTEM_CLOCK.monotonic() + roster.LISTEN_S
                members = await census.members(bus, kind=kind, limit=limit, is_late=is_own)
                await SYSTEM_CLOCK.sleep(max(0.0, until_s - SYSTEM_CLOCK.monotonic()))
            return members, fleet.differing(heard.alive)

    members, mixed = session.run(work())
    found = [_marked(each, mixed) for each in members if all_ or kind or not _is_aside(each, is_own)]
    if session.json:
        emit(found)
        return
    table(
        [_member(each) for each in found],
        head=("ADDRESS", "STATUS", "LOAD", "CAPABILITIES", "WORKER", "TURNS", "PARKED", "LAST TURN", ""),
        empty="no actor has run or has mail, and no agent is registered",
    )
    for name, codes in mixed.items():
        if kind in (None, name):
            note(f"* {fleet.mixture(name, codes)}; {fleet.ONE_CODE}")
    if len(found) < len(members):
        count = len(members) - len(found)
        note(f"{count} of Callboard's own actors and ended runs not shown: `callboard agents ls --all`")


def _own_types() -> Callable[[str], bool]:
    """Return what tells types of Callboard's own, which work for others, and those of flows."""
    from callboard.agents import petition, run_record, shared, stopper
    from callboard.agents.llm import scope

    own = {petition.TYPE, petition.DOOR, shared.TYPE, scope.TYPE, stopper.STOPPER}
    return lambda kind: kind in own or kind.startswith(run_record.PREFIX)


def _is_aside(found: Member, is_own: Callable[[str], bool]) -> bool:
    """Return whether nobody need see it: it is Callboard's own, all well, or a run that has ended."""
    from callboard.agents.run_record import PREFIX

    if found.is_registered or found.status not in ("active", "new") or not is_own(found.address.partition("/")[0]):
        return False
    return not found.address.startswith(PREFIX) or (found.turns > 0 and not found.parked)


def _member(found: Member) -> tuple[str, ...]:
    return (
        found.address,
        f"{found.status} *" if found.has_mixed_code else found.status,
        "-" if found.load is None else f"{found.load:.2f}",
        ",".join(found.capabilities) or "-",
        found.worker or (f"({found.host or 'by itself'})" if not found.is_hosted else "-"),
        str(found.turns) if found.is_hosted else "-",
        str(found.parked) if found.is_hosted else "-",
        stamp(found.at),
        shorten(found.reason, 50),
    )


def _marked(member: Member, mixed: Collection[str]) -> Member:
    from msgspec.structs import replace

    is_mixed = member.is_hosted and member.address.partition("/")[0] in mixed
    return replace(member, has_mixed_code=True) if is_mixed else member


def _about_one(function: F) -> F:
    for option in reversed((click.argument("address"), json_option, global_options)):
        function = option(function)
    return function


def _parse(address: str) -> Address:
    from callboard.runtime.actor import address as addresses

    return addresses.parse(address)


@command.command("show", epilog=example("callboard agents show greeter/ann"))
@_about_one
@pass_session
def show(session: Session, /, address: str) -> None:
    """Show one actor or agent: status, owner, mailbox, what runs, what is parked and for what, timers.

    Of a registered one also what the registry knows: what it can do, its load, who hosts it, when it was last heard.
    """
    from msgspec.structs import asdict, replace

    from callboard.runtime import census
    from callboard.runtime.actor import inspection
    from callboard.runtime.actor.inspection import Line
    from callboard.runtime.errors import NotFoundError

    actor = _parse(address)

    async def work() -> tuple[View | None, AgentView | None]:
        async with session.bus("agents-show") as bus:
            agent = await census.agent(bus, actor)
            try:
                return await inspection.show(bus, actor), agent
            except NotFoundError as error:
                # an agent that hosts itself has no mailbox, and a new one has no turn yet
                if agent is None:
                    message = f"{error}{await census.address_hint(bus, actor)}"
                    raise NotFoundError(message) from error
                return None, agent

    found, agent = session.run(work())
    line = None if found is None else Line(address=found.address, status=found.status, reason=found.reason)
    seen = census.member(str(actor), line, agent)
    if session.json:
        alone = {"address": str(actor)}
        emit({**(alone if found is None else asdict(found)), "status": seen.status, "registry": agent})
        return
    if found is None:
        _tell_lines([("agent", str(actor)), ("status", _status(seen.status, seen.reason))])
    else:
        _show(replace(found, status=seen.status, reason=seen.reason))
    if agent is not None:
        _tell_lines(_registry_lines(agent))


def _tell_lines(lines: list[tuple[str, str]]) -> None:
    for name, text in lines:
        tell(f"{name + ':':<12}{text}")


def _registry_lines(agent: AgentView) -> list[tuple[str, str]]:
    """Return what the registry knows of an agent."""
    record = agent.record
    specs = [f"{spec.name} (version {spec.version})" for spec in record.capabilities]
    load = (
        f"{agent.load:.2f}: {agent.busy} run, {agent.waiting} wait, {agent.reserved} reserved, weight {record.weight}"
    )
    lines = [
        ("registered", f"since {stamp(record.registered_at)}"),
        ("can do", ", ".join(specs) or "nothing"),
    ]
    lines.append(("load", load))
    if record.is_hosted:
        lines.append(("hosted by", agent.worker or "no worker that is known now"))
    else:
        lines.append(("runs", f"by itself on {record.host or 'an unnamed host'}, instance {record.instance or '-'}"))
    if record.labels:
        lines.append(("labels", ", ".join(f"{name}={value}" for name, value in sorted(record.labels.items()))))
    if agent.latency_s is not None:
        lines.append(("answers in", f"{agent.latency_s:.3f} s"))
    lines.append(("last heard", stamp(agent.seen_at)))
    return lines


def _show(found: View) -> None:
    status = _status(found.status, found.reason)
    lines = [("actor", found.address), ("status", status), ("turns", _turns(found))]
    lines += [("owner", _owner(found)), ("handled to", _applied(found)), ("mailbox", _depth(found))]
    if found.problem:
        lines[1:] = [
            ("status", f"{found.status}: {found.problem}"),
            ("record", _record(found)),
            ("owner", _owner(found)),
        ]
        lines += [("mailbox", _stored(found)), ("to do", found.fix)]
    if found.failures:
        lines.append(("failures", f"{found.failures} in a row"))
    if found.state_bytes:
        lines.append(("state", f"{size(found.state_bytes)}; see `callboard agents state {found.address}`"))
    lines += [("parked", _parked_line(parked)) for parked in found.parked]
    lines += [("timer", _timer_line(name, timer)) for name, timer in found.timers.items()]
    _tell_lines(lines + _owner_lines(found))


def _owner_lines(found: View) -> list[tuple[str, str]]:
    """Return what only the owner knows: the turn that runs, or why none does."""
    import json

    said = {} if found.running is None else json.loads(bytes(found.running))
    lines = []
    running = said.get("running")
    if running:
        steps = f", {running['steps_run']} steps run" if running.get("steps_run") else ""
        sender = f" from {running['sender']}" if running.get("sender") else ""
        what = f"mail {running['seq']} ({running['type'] or 'no type'}){sender}"
        lines.append(("running", f"{what} {_since(running)}{steps}"))
    if said.get("held_by"):
        lines.append(("held by", f"{said['held_by']}, which finishes a turn that it had begun"))
    if said.get("problem") and not found.problem:
        lines.append(("problem", str(said["problem"])))
    return lines


def _since(running: dict[str, Any]) -> str:
    if running.get("waits_for_retry"):
        return "failed and waits for its next attempt"
    return f"since {stamp(datetime.fromisoformat(running['since']))}, attempt {running['attempt']}"


def _record(found: View) -> str:
    return f"{size(found.record_bytes)} at sequence {found.record_seq} of CB_ACTORS, written {stamp(found.at)}"


def _stored(found: View) -> str:
    more = "over " if found.mailbox.is_more else ""
    return f"{more}{found.mailbox.count} on disk, handled ones included: which of them wait stands in the record"


def _owner(found: View) -> str:
    if not found.owner:
        return f"none yet (partition {found.partition})"
    answering = "" if found.is_answering else ", which does not answer"
    return f"{found.owner}{answering} (partition {found.partition}, epoch {found.epoch})"


def _status(status: str, reason: str) -> str:
    return f"{status}: {reason}" if reason else status


def _turns(found: View) -> str:
    # a record is written by orders, and when a turn is parked, too
    written = f"; last written {stamp(found.at)}" if found.at is not None else ""
    return f"{found.turns or 'none is over yet'}{written}"


def _applied(found: View) -> str:
    ahead = f", and {', '.join(map(str, found.ahead[:10]))} ahead of that" if found.ahead else ""
    return f"mail {found.applied}{ahead}" if found.applied else f"none yet{ahead}"


def _depth(found: View) -> str:
    depth = found.mailbox
    if depth.oldest is None:
        return "empty"
    more = "over " if depth.is_more else ""
    return f"{more}{depth.count} waiting, the oldest ({depth.oldest.type or 'no type'}) since {stamp(depth.oldest.at)}"


def _parked_line(parked: Parked) -> str:
    from msgspec import UNSET

    parts = [f"mail {parked.seq} waits for {parked.awaiting}"]
    if parked.where is not UNSET:
        parts.append(f"with {bytes(parked.where).decode(errors='replace')}")
    parts.append(f"since {stamp(parked.since)}")
    if parked.until is not UNSET:
        parts.append(f"until {stamp(parked.until)}")
    if parked.hold:
        parts.append("and holds later mail back")
    return " ".join(parts)


def _timer_line(name: str, timer: Timer) -> str:
    from msgspec import UNSET

    return f"{name} {timer.rule or 'once'}" + (f" at {stamp(timer.due)}" if timer.due is not UNSET else "")


@command.command("state", epilog=example("callboard agents state greeter/ann | jq .turns"))
@_about_one
@pass_session
def state(session: Session, /, address: str) -> None:
    """Print an actor's state as JSON, as it was after its last turn; null when no turn has changed it."""
    import json

    from callboard.runtime.actor import inspection

    actor = _parse(address)

    async def work() -> Any:  # noqa: ANN401 - a Raw or None
        async with session.bus("agents-state") as bus:
            return await inspection.state_json(bus, actor)

    found = session.run(work())
    if session.json:
        emit(found)
    else:
        tell("null" if found is None else json.dumps(json.loads(bytes(found)), indent=2, ensure_ascii=False))


@command.command("mailbox", epilog=example("callboard agents mailbox greeter/ann --limit 10"))
@_about_one
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@pass_session
def mailbox(session: Session, /, address: str, *, limit: int) -> None:
    """List the mail that waits for an actor, oldest first."""
    from callboard.runtime.actor import inspection
    from callboard.runtime.clock import SYSTEM_CLOCK

    actor = _parse(address)

    async def work() -> list[Waiting]:
        async with session.bus("agents-mailbox") as bus:
            return await inspection.mailbox(bus, actor, limit=limit)

    found = session.run(work())
    if session.json:
        emit(found)
        return
    now = SYSTEM_CLOCK.now()
    table(
        [
            (str(w.seq), w.type or w.kind or "-", _age(w.at, now), "ask" if w.is_ask else "tell", w.sender or "-", w.id)
            for w in found
        ],
        head=("MAIL", "TYPE", "AGE", "", "FROM", "ID"),
        empty=f"no mail waits for {actor}",
    )


def _age(at: datetime, now: datetime) -> str:
    age_s = max(0.0, (now - at).total_seconds())
    for unit, length_s in (("d", 86_400.0), ("h", 3600.0), ("m", 60.0)):
        if age_s >= length_s:
            return f"{age_s / length_s:.1f}{unit}"
    return f"{age_s:.0f}s"


# --- orders

_WAITS = "its mail waits until `callboard agents resume`"
# order: what is said when it is done, help
_ORDERS: dict[Op, tuple[str, str]] = {
    "pause": (f"is paused; {_WAITS}", "Let an actor finish its turn and begin no other; its mail waits."),
    "resume": ("goes on", "Let a paused, failed or killed actor go on with the mail that waited."),
    "kill": (
        f"is killed; {_WAITS}",
        "Stop an actor at once, as `cancel` does with a turn that runs; later mail waits.",
    ),
    "restart": (
        "begins afresh from its stored state",
        "As `cancel`; then forget what the actor has in memory, and go on with its next mail.",
    ),
    "cancel": (
        "was told to end its turn",
        "End the turn that runs now: its asker gets an error, a tell becomes a dead letter for `requeue`.",
    ),
}


def _order(op: Op, done: str, text: str) -> None:
    """Add the command that gives one order."""

    @command.command(op, help=text, epilog=example(f"callboard agents {op} greeter/ann --reason 'wrong prompt'"))
    @_about_one
    @click.option("--reason", default="", help="For those who ask later.")
    @pass_session
    def give(session: Session, /, address: str, *, reason: str) -> None:
        _give(session, address, op, done, reason=reason)


for _op, (_done, _text) in _ORDERS.items():
    _order(_op, _done, _text)


def _give(session: Session, address: str, op: Op, done: str, *, reason: str = "", seq: int | None = None) -> None:
    from callboard.runtime.actor import inspection

    actor = _parse(address)

    async def work() -> dict[str, object]:
        async with session.bus(f"agents-{op}") as bus, guessing(bus, actor.type):
            return await inspection.order(bus, actor, op, reason=reason, seq=seq)

    said = session.run(work())
    if session.json:
        emit({"address": str(actor), "op": op, **said})
    else:
        tell(f"{actor} {_already(said) or done or _requeued(said)}")


def _already(said: dict[str, object]) -> str:
    """Return what is said of an order that found its work done; "" for all others."""
    return f"was already paused ({said.get('reason')}); nothing was changed" if said.get("already") else ""


def _requeued(said: dict[str, object]) -> str:
    match said.get("requeued"):
        case 0:
            return "has no dead letter to put back"
        case 1:
            return "has 1 dead letter back in its mailbox"
    return f"has {said.get('requeued')} dead letters back in its mailbox"


@command.command(
    "requeue", epilog=example("callboard agents requeue greeter/ann", "callboard agents requeue greeter/ann 4711")
)
@_about_one
@click.argument("seq", type=click.IntRange(1), metavar="[MAIL]", required=False)
@pass_session
def requeue(session: Session, /, address: str, seq: int | None) -> None:
    """Put an actor's dead letters back into its mailbox, at its end; only MAIL when it is given."""
    _give(session, address, "requeue", "", seq=seq)
