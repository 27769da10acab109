"""Runs from outside: start, list, look into, end and repeat them, whoever runs them and whether anybody does now."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from types import TracebackType

import msgspec
from msgspec import UNSET, Raw
from msgspec.structs import replace

from callboard.agents import run_log, run_view
from callboard.agents.run_record import (
    BEGUN,
    PREFIX,
    Begun,
    RunState,
    run_address,
    run_name,
)
from callboard.agents.run_view import RunLine, RunView
from callboard.agents.stopper import STOPPER, StopRun
from callboard.runtime import codec, ids, subjects
from callboard.runtime.actor import inspection, record, step
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.letter import decode_letter
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.client import Client
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import (
    AskTimeoutError,
    BusError,
    DecodeError,
    InputError,
    NoHostError,
    NotFoundError,
    PermissionDeniedError,
    UnknownMessageError,
)
from callboard.runtime.near import hint
from callboard.runtime.record import Failure

RETRIED: frozenset[str] = frozenset({"failed", "cancelled", "partial"})
_LOOK_FIRST_S, _LOOK_MAX_S = 0.05, 1.0
_TRIAL_S = 5.0


async def flows(bus: Bus) -> list[str]:
    """Return the names of the flows that a worker hosts or has hosted. One request."""
    kinds = await inspection.types(bus)
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
        InputError: If the flow does not take such a job, as a host of it says; nothing has begun. Where none runs now
            the run waits, and fails when one has come.
        NoHostError: If no worker has ever hosted such a flow.
        DeadlineError: If the deadline has passed.
        EncodeError: If the job cannot be encoded.
    """
    name = flow if isinstance(flow, str) else flow.actor_name
    name = name.removeprefix(PREFIX)
    now = client.clock.now()
    address = run_address(f"{name}/{id or f'{now:%Y%m%d-%H%M%S}-{ids.new_token(3)}'}")
    await _check_flow(client.bus, name)
    await _check_job(client, address, job, type)
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
    # first the mail: whatever has been handled since then stands in the record
    mails = [mail.seq for mail in await inspection.mailbox(bus, actor) if mail.kind is None]
    base, state = await _state(bus, actor)
    waiting = [seq for seq in mails if base is None or not base.has_applied(seq)]
    parked = [each.seq for each in base.parked] if base is not None else []
    if waiting or parked:
        seq = (parked or waiting)[0]
        return run_view.running(actor, await run_log.read(bus, actor, seq), base, state, seq)
    if state.result is not None:
        return run_view.ended(actor, state, state.result)
    letter = await _letter(bus, actor)
    found = await run_log.read(bus, actor)
    if base is None and letter is None and not found.seq:
        raise await _no_run(bus, actor)
    return run_view.broken(actor, found, letter)


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
    lines = [run_view.line(each, states_of.get(each), last_mail.get(each, 0)) for each in latest]
    lines = await _with_begun(bus, lines)
    # the few that ended without a word of their own
    lines = [run_view.line_of(await show(bus, line.run)) if run_view.is_wordless(line) else line for line in lines]
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


async def _no_run(bus: Bus, actor: Address) -> NotFoundError:
    """Return the error for a run that does not exist: it names the flows, and the runs that may be meant."""
    name, known = run_name(actor), await flows(bus)
    flow, _, id_ = name.partition("/")
    meant = hint(flow, known, after=f"/{id_}")
    if flow in known:
        states = await bus.subject_counts(subjects.ACTORS, f"cb.state.{PREFIX}{flow}.*")
        meant = hint(id_, (subjects.actor_of(subject)[1] for subject in states), before=f"{flow}/")
    told = ", ".join(known) or "none yet"
    return NotFoundError(f"there is no run {name}; see `callboard runs ls`. Flows: {told}{meant}")


async def _check_flow(bus: Bus, name: str) -> None:
    try:
        known = await flows(bus)
    except PermissionDeniedError:
        # who only gives work may not look; what nobody hosts waits
        return
    if name not in known:
        has = f"there are {', '.join(known)}" if known else "there are none"
        message = (
            f"no worker has ever hosted a flow {name!r}: {has}. Start one that does, such as "
            f"`callboard worker start MODULE`, where MODULE has the function with @flow{hint(name, known)}"
        )
        raise NoHostError(message)


async def _check_job(client: Client, flow: Address, job: object, kind: str | None) -> None:
    """Ask a host of a flow whether it takes a job. One request."""
    try:
        _ = await client.actor(flow).ask(job, type=kind, timeout_s=_TRIAL_S, headers={header.TRIAL: "1"})
    except (NoHostError, AskTimeoutError, PermissionDeniedError):
        # nobody is there who could say
        return
    except (DecodeError, UnknownMessageError) as error:
        message = f"flow {flow.type.removeprefix(PREFIX)} does not take this job, so nothing was started: {error}"
        raise InputError(message) from error


async def _state(bus: Bus, actor: Address) -> tuple[StateRecord | None, RunState]:
    stored = await bus.get_last(subjects.ACTORS, subjects.state(actor.type, actor.key), from_leader=True)
    if stored is None:
        return None, RunState()
    found = record.decode(stored.data)
    if found.blob is not UNSET:
        return found, run_view.decode_state(await BlobStore(bus).get(found.blob))
    return found, run_view.decode_state(bytes(found.state)) if isinstance(found.state, Raw) else RunState()


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


async def _with_begun(bus: Bus, lines: list[RunLine]) -> list[RunLine]:
    """Return the lines, those of runs that no host has begun as waiting."""
    todo = [run_address(line.run) for line in lines if line.status == "running"]
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
    found_lines = []
    for line in lines:
        first = begun.get(line.run)
        if line.status != "running":
            found_lines.append(line)
        elif first is not None and first.attempt == line.attempt:
            found_lines.append(replace(line, began_at=first.began_at))
        else:
            found_lines.append(replace(line, status="waiting"))
    return found_lines


def _by_actor(found: list[Stored]) -> dict[Address, Stored]:
    return {Address(*subjects.actor_of(each.subject)): each for each in found}


def _owner(mailbox: str) -> tuple[str, str]:
    _, _, kind, _, token = mailbox.split(".", 4)
    return kind, subjects.unescape(token)
