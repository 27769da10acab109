"""Runs from outside: start, list, look into, end and repeat them, whoever runs them and whether anybody does now."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from callboard.agents import run_log
from callboard.agents.llm.base import Usage
from callboard.agents.run_record import (
    BEGUN,
    ENDED,
    PREFIX,
    AgentRun,
    Begun,
    Join,
    Outcome,
    RunResult,
    RunState,
    RunStatus,
    run_address,
    run_name,
    spent,
)
from callboard.agents.stopper import STOPPER, StopRun
from callboard.runtime import codec, ids, subjects
from callboard.runtime.actor import inspection, record, step
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.letter import decode_letter
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.client import Client
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import BusError, DecodeError, InputError, NoHostError, NotFoundError
from callboard.runtime.record import Failure

RETRIED: frozenset[str] = frozenset({"failed", "cancelled", "partial"})
_LOOK_FIRST_S, _LOOK_MAX_S = 0.05, 1.0


class RunLine(Struct, frozen=True, kw_only=True):
    """One run in a list.

    Attributes:
        status: ``waiting``: its mail waits for a host, or it is parked.
        attempt: Number of its latest attempt, 1-based.
        agents: Agents that worked for it; None while it runs.
    """

    run: str
    status: RunStatus
    attempt: int = 1
    began_at: datetime | None = None
    ended_at: datetime | None = None
    agents: int | None = None
    cost_usd: Decimal | None = None
    missing: list[str] = []
    error: str = ""


class RunView(Struct, frozen=True, kw_only=True):
    """All that is known of one run: Run > agent runs > what each was sent and answered.

    Attributes:
        seq: Mail of the latest attempt, 0 where that is not known any more.
        job: What it was given.
        agents: In the order in which they were asked. Those of an ended run have long texts cut.
        joins: What its joins wait for, while it runs.
        outcomes: How the branches of its joins ended, by join.
        parent: The run that it is a part of.
        waits_for: Names of the messages that a parked run waits for.
    """

    run: str
    status: RunStatus
    attempt: int = 1
    seq: int = 0
    job: Any = None
    output: Any = None
    error: str = ""
    code: str = ""
    missing: list[str] = []
    parent: str = ""
    began_at: datetime | None = None
    ended_at: datetime | None = None
    deadline: datetime | None = None
    usage: Usage = Usage()
    cost_usd: Decimal | None = None
    agents: list[AgentRun] = []
    joins: list[Join] = []
    outcomes: Mapping[str, list[Outcome]] = {}
    waits_for: list[str] = []

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs or waits."""
        return self.status in ENDED


async def flows(bus: Bus) -> list[str]:
    """Return the names of the flows that a worker hosts or has hosted. One request."""
    cursors = await bus.subject_counts(subjects.ACTORS, "cb.cursor.*.*")
    kinds = {subject.split(".")[2] for subject in cursors}
    return sorted(kind.removeprefix(PREFIX) for kind in kinds if kind.startswith(PREFIX))


async def start(
    client: Client,
    flow: str | type[Actor],
    job: object,
    *,
    id: str = "",  # noqa: A002 - the word of its users
    type: str | None = None,  # noqa: A002 - as in tell
    deadline: datetime | timedelta | None = None,
) -> str:
    """Start a run; returns its name when it is on the broker's disk. A second start under the same id is the first one.

    Args:
        client: Whose connection.
        flow: Its name, or what ``@flow`` made.
        job: The job: a Struct, plain values, or JSON as bytes.
        id: The run's id; default: a new one, time first.
        type: Name of the job's type, where it is plain values and the flow must know.
        deadline: When its result stops being wanted: a time, or a span from now.

    Raises:
        NoHostError: If no worker has ever hosted such a flow.
        DeadlineError: If the deadline has passed.
        EncodeError: If the job cannot be encoded.
    """
    name = flow if isinstance(flow, str) else flow.actor_name
    name = name.removeprefix(PREFIX)
    now = client.clock.now()
    address = run_address(f"{name}/{id or f'{now:%Y%m%d-%H%M%S}-{ids.new_token(3)}'}")
    await _check_flow(client.bus, name)
    _ = await client.actor(address).tell(job, type=type, id="start", deadline=deadline)
    return run_name(address)


async def cancel(client: Client, run: str, *, reason: str = "cancelled by request") -> None:
    """End a run and all that works for it; returns when that is on the broker's disk, and so will be done.

    Raises:
        NotFoundError: If there is no such run.
        InputError: If it has ended.
    """
    found = await show(client.bus, run)
    if found.has_ended:
        message = f"{found.run} has ended, {found.status}: there is nothing to cancel"
        raise InputError(message)
    _ = await client.actor(f"{STOPPER}/{found.run}").tell(StopRun(found.run, reason))


async def retry(client: Client, run: str) -> int:
    """Begin a further attempt at a run that failed, was cancelled or is partial; return its number.

    It is the same run, with the same job: what has a result keeps it, and only the rest is asked again.

    Raises:
        NotFoundError: If there is no such run.
        InputError: If it runs, or is done.
    """
    found = await show(client.bus, run)
    if found.status not in RETRIED:
        how = "is done: start a new run" if found.status == "done" else "has not ended: wait for it, or cancel it"
        message = f"{found.run} {how}"
        raise InputError(message)
    address = run_address(run)
    stands = await _state(client.bus, address)
    attempt = found.attempt + 1
    data, kind = await _job(client.bus, address, stands[1])
    _ = await client.actor(address).tell(data, type=kind or None, id=f"retry-{attempt}-{found.seq}")
    return attempt


async def show(bus: Bus, run: str) -> RunView:
    """Return all that is known of a run. Four requests, more where it has many steps.

    Raises:
        InvalidNameError: If that can be no run.
        NotFoundError: If there is no such run.
        DecodeError: If a record cannot be read.
    """
    actor = run_address(run)
    base, state = await _state(bus, actor)
    waiting = [mail.seq for mail in await inspection.mailbox(bus, actor) if mail.kind is None]
    parked = [each.seq for each in base.parked] if base is not None else []
    if waiting or parked:
        seq = (parked or waiting)[0]
        return _running(actor, await run_log.read(bus, actor, seq), base, state, seq)
    if state.result is not None:
        return _ended(actor, state, state.result)
    letter = await _letter(bus, actor)
    found = await run_log.read(bus, actor)
    if base is None and letter is None and not found.seq:
        known = ", ".join(await flows(bus)) or "none yet"
        message = f"there is no run {run_name(actor)}; see `callboard runs ls`. Flows: {known}"
        raise NotFoundError(message)
    return _broken(actor, found, letter)


async def ls(bus: Bus, *, flow: str = "", limit: int = 100) -> list[RunLine]:
    """Return runs, the latest first; those of one flow when it is named.

    Three requests, two for each flow, and three batches for each 500 runs that are shown. The names of all runs of the
    flows asked for pass over the wire, nothing of other actors does.

    Raises:
        NotFoundError: If there is no stream of actors.
    """
    names = [flow.removeprefix(PREFIX)] if flow else await flows(bus)
    chosen: set[Address] = set()
    for name in names:
        kind = f"{PREFIX}{name}"
        states = await bus.subject_counts(subjects.ACTORS, f"cb.state.{kind}.*")
        mails = await bus.subject_counts(subjects.ACTORS, f"cb.mbox.{kind}.*.*")
        chosen |= {Address(*subjects.actor_of(subject)) for subject in states}
        chosen |= {Address(kind, subjects.unescape(subject.split(".", 4)[4])) for subject in mails}
    # ids that we make begin with the time
    latest = sorted(chosen, key=lambda each: each.key, reverse=True)[:limit]
    states_of = _by_actor(await bus.get_many(subjects.ACTORS, [subjects.state(a.type, a.key) for a in latest]))
    mailed = await bus.get_many(subjects.ACTORS, [subjects.mailbox(a.type, "*", a.key) for a in latest])
    last_mail = {Address(*_owner(each.subject)): each.seq for each in mailed}
    lines = [_line(each, states_of.get(each), last_mail.get(each, 0)) for each in latest]
    lines = await _with_begun(bus, lines)
    return sorted(lines, key=lambda line: line.began_at.timestamp() if line.began_at else 0.0, reverse=True)


async def wait(bus: Bus, run: str, *, timeout_s: float | None = None, clock: Clock = SYSTEM_CLOCK) -> RunView | None:
    """Return a run when it has ended; None when it has not in ``timeout_s`` seconds.

    Raises:
        NotFoundError: If there is no such run.
    """
    give_up_s = None if timeout_s is None else clock.monotonic() + timeout_s
    pause_s = _LOOK_FIRST_S
    while True:
        found = await show(bus, run)
        if found.has_ended:
            return found
        if give_up_s is not None and clock.monotonic() + pause_s > give_up_s:
            return None
        await clock.sleep(pause_s)
        pause_s = min(2 * pause_s, _LOOK_MAX_S)


async def changes(bus: Bus, run: str) -> AsyncGenerator[RunView, None]:
    """Yield a run as it is, and again after each change, until it has ended. Nothing is missed in between.

    A lost connection is made good by the broker's sequences.

    Raises:
        NotFoundError: If there is no such run.
    """
    actor = run_address(run)
    found = await _shown(bus, run)
    yield found
    wanted = (f"cb.step.{actor.type}.{actor.token}.*.*.*.*", subjects.state(actor.type, actor.key))
    start_seq = 0
    while not found.has_ended:
        # where the link broke while reading was begun, it begins again where it stood
        with link_lost():
            if not start_seq:
                info = await bus.stream_info(subjects.ACTORS)
                start_seq = info.last_seq + 1 if info is not None else 1
                # what came between the two looks
                found = await show(bus, run)
                yield found
            stored = bus.read(subjects.ACTORS, subjects=wanted, start_seq=start_seq, follow=True)
            async with contextlib.aclosing(stored) as news:  # type: ignore[type-var] # adapters give generators
                while not found.has_ended:
                    start_seq = (await anext(news)).seq + 1
                    found = await _shown(bus, run)
                    yield found
            return
        await SYSTEM_CLOCK.sleep(_LOOK_MAX_S)


class link_lost:  # noqa: N801 - used as a function is
    """Let an error pass that only says that the broker cannot be asked now."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        """End; returns whether it was such an error."""
        return isinstance(error, BusError) and error.retryable


# --- inside


async def _shown(bus: Bus, run: str) -> RunView:
    """Return the run as soon as the broker answers: the link may be lost for a while."""
    while True:
        with link_lost():
            return await show(bus, run)
        await SYSTEM_CLOCK.sleep(_LOOK_MAX_S)


async def _check_flow(bus: Bus, name: str) -> None:
    known = await flows(bus)
    if name not in known:
        has = f"there are {', '.join(known)}" if known else "there are none"
        message = (
            f"no worker has ever hosted a flow {name!r}: {has}. Start one that does, such as "
            "`callboard worker start MODULE`, where MODULE has the function with @flow"
        )
        raise NoHostError(message)


async def _state(bus: Bus, actor: Address) -> tuple[StateRecord | None, RunState]:
    stored = await bus.get_last(subjects.ACTORS, subjects.state(actor.type, actor.key))
    if stored is None:
        return None, RunState()
    found = record.decode(stored.data)
    if found.blob is not UNSET:
        return found, _decode_state(await BlobStore(bus).get(found.blob))
    return found, _decode_state(bytes(found.state)) if isinstance(found.state, Raw) else RunState()


def _decode_state(data: bytes) -> RunState:
    try:
        return msgspec.json.decode(data, type=RunState)
    except msgspec.DecodeError as error:
        message = f"this is not the state of a run: {error}"
        raise DecodeError(message) from error


async def _letter(bus: Bus, actor: Address) -> tuple[int, Failure, bytes, str] | None:
    """Return the latest dead letter of a run's mail: its sequence, why, payload and type."""
    found = await bus.get_many(subjects.DEAD, [f"cb.dead.mail.{actor.type}.{actor.token}.*"])
    if not found:
        return None
    letter = decode_letter(max(found, key=lambda each: each.seq).data)
    return letter.seq, letter.failure, letter.data, letter.headers.get("Cb-Type", "")


async def _job(bus: Bus, actor: Address, state: RunState) -> tuple[bytes, str]:
    if state.begun is not None:
        return codec.encode(state.begun.job), state.begun.type
    letter = await _letter(bus, actor)
    if letter is None:
        message = f"the job of {run_name(actor)} is not kept any more: start a new run"
        raise NotFoundError(message)
    return letter[2], letter[3]


def _running(actor: Address, found: run_log.Records, base: StateRecord | None, state: RunState, seq: int) -> RunView:
    begun = found.begun or Begun(run=run_name(actor), attempt=state.attempt + 1)
    parked = base.parked if base is not None else []
    former = [part for part in state.agents if part.status == "done"]
    agents = [*former, *found.agents]
    usage, cost = spent(agents)
    return RunView(
        run=begun.run,
        status="waiting" if parked or found.begun is None else "running",
        attempt=begun.attempt,
        seq=seq,
        job=begun.job,
        parent=begun.parent,
        began_at=begun.began_at,
        deadline=begun.deadline,
        usage=usage,
        cost_usd=cost,
        agents=agents,
        joins=found.joins,
        outcomes=found.outcomes,
        waits_for=[each.awaiting for each in parked],
    )


def _ended(actor: Address, state: RunState, result: RunResult) -> RunView:
    begun = state.begun or Begun(run=run_name(actor))
    return RunView(
        run=result.run,
        status=result.status,
        attempt=state.attempt,
        job=begun.job,
        output=result.output,
        error=result.error,
        code=result.code,
        missing=result.missing,
        parent=begun.parent,
        began_at=begun.began_at,
        ended_at=state.ended_at,
        deadline=begun.deadline,
        usage=result.usage,
        cost_usd=result.cost_usd,
        agents=state.agents,
        outcomes=state.joins,
    )


def _broken(actor: Address, found: run_log.Records, letter: tuple[int, Failure, bytes, str] | None) -> RunView:
    """Return a run that ended without a word of its own: refused, ended in its sleep, or too often died under."""
    begun = found.begun or Begun(run=run_name(actor))
    failure = letter[1] if letter is not None else Failure(code="turn_cancelled", message="it was cancelled")
    is_cancelled = failure.code == "turn_cancelled"
    usage, cost = spent(found.agents)
    return RunView(
        run=begun.run,
        status="cancelled" if is_cancelled else "failed",
        attempt=begun.attempt,
        seq=found.seq,
        job=begun.job,
        error=failure.message,
        code=failure.code,
        parent=begun.parent,
        began_at=begun.began_at,
        deadline=begun.deadline,
        usage=usage,
        cost_usd=cost,
        agents=[replace(part, status="lost") if part.status == "running" else part for part in found.agents],
        outcomes=found.outcomes,
    )


def _line(actor: Address, stored: Stored | None, last_mail: int) -> RunLine:
    base = record.decode(stored.data) if stored is not None else StateRecord()
    try:
        state = _decode_state(bytes(base.state)) if isinstance(base.state, Raw) else RunState()
    except DecodeError:
        # some other actor whose type begins as ours do
        state = RunState()
    is_open = last_mail and not base.has_applied(last_mail)
    result, begun = state.result, state.begun
    status: RunStatus = "waiting" if is_open or base.parked else result.status if result else "failed"
    is_ended = status in ENDED
    return RunLine(
        run=run_name(actor),
        status=status,
        attempt=state.attempt + (not is_ended) or 1,
        began_at=begun.began_at if begun is not None else None,
        ended_at=state.ended_at if is_ended else None,
        agents=len(state.agents) if is_ended and result else None,
        cost_usd=result.cost_usd if result is not None else None,
        missing=result.missing if result is not None and is_ended else [],
        error=result.error if result is not None and is_ended else "" if not is_ended else "see `callboard runs show`",
    )


async def _with_begun(bus: Bus, lines: list[RunLine]) -> list[RunLine]:
    """Return the lines, those of runs that a host has begun as running."""
    todo = [run_address(line.run) for line in lines if line.status == "waiting"]
    if not todo:
        return lines
    name = step.escaped(BEGUN)
    found = await bus.get_many(subjects.ACTORS, [f"cb.step.{a.type}.{a.token}.*.{name}.*.*" for a in todo])
    begun: dict[str, Begun] = {}
    for stored in found:
        value = step.decode(stored.data).value
        if isinstance(value, Raw):
            each = msgspec.json.decode(value, type=Begun)
            begun[each.run] = each
    return [
        replace(line, status="running", began_at=begun[line.run].began_at)
        if line.status == "waiting" and line.run in begun and begun[line.run].attempt == line.attempt
        else line
        for line in lines
    ]


def _by_actor(found: list[Stored]) -> dict[Address, Stored]:
    return {Address(*subjects.actor_of(each.subject)): each for each in found}


def _owner(mailbox: str) -> tuple[str, str]:
    _, _, kind, _, token = mailbox.split(".", 4)
    return kind, subjects.unescape(token)
