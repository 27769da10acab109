"""Going on with a turn that another host had begun: what stands of it, what is to become of it, and a note of that."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter

from msgspec import Raw

from callboard.runtime import codec, events, logs, subjects
from callboard.runtime.actor import crashes, recovery, step
from callboard.runtime.actor.entry import Committed, Fenced
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.recovery import Begun, Choice
from callboard.runtime.actor.turn import Turn
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored, Write
from callboard.runtime.errors import BusError, CrashLimitError, DecodeError, TurnAbandonedError

RESUMED = "resumed"
INTERRUPTED = "interrupted"

_log = logs.get_logger(__name__)
_RETRY_S = 0.25


async def recover(activation: Staged, mail: Mail, cause_seq: int, *, kept: Collection[str]) -> list[Stored]:
    """Decide how to go on with a mail that another host may have begun; return what stands of its journal.

    One read; two writes more when it had begun, and a third and another read after a death. When nothing of it was
    recorded and its host did not die, nothing is written: it may well be that nobody had begun it.

    Args:
        activation: The actor.
        mail: The mail that its turn handles.
        cause_seq: The mail that makes it run now.
        kept: Entries that a parked turn took along: they stand whatever is decided.

    Raises:
        CrashLimitError: If it is to become a dead letter, because hosts died under it.
        TurnAbandonedError: If it is, because its class says so.
        BusError: If the journal can never be read: no permission, connection closed.
    """
    found = await _read(activation, mail)
    has_died = activation.owner.suspects_crash(cause_seq)
    steps = _standing(found, kept)
    if not has_died and not steps:
        return found
    begun = _begun(activation, mail, found, steps, has_died=has_died)
    limit = activation.services.rules.crash_limit
    was_restarted = any(_is(stored, step.RESTARTED) for stored in found)
    choice = recovery.decide(activation.kind.options.recovery, begun, crash_limit=limit, was_restarted=was_restarted)
    if choice == "bury":
        raise _given_up(begun, limit)
    if has_died:
        await crashes.note(activation, mail, cause_seq, found)
        # the note took its time, and what the other sent before its end may have come in behind the first look
        found = await _read(activation, mail)
    if choice == "restart" and steps:
        found = [*found, *await _restart(activation, mail, cause_seq)]
    if steps:
        await _tell_resumed(activation, begun, choice, replayed=len(_standing(found, kept)))
    return found


async def interrupted(activation: Staged, turn: Turn, *, is_drained: bool) -> None:
    """Note that a turn was stopped here before its end, in the log, and in an event where the strategy wants one."""
    run, replayed = turn.steps
    reason = turn.stop[1] if turn.stop is not None else ""
    _log.info(events.TURN_INTERRUPTED, actor=str(turn.address), seq=turn.mail.seq, reason=reason, steps=run + replayed)
    drain = activation.services.drain
    if not is_drained or drain is None or not drain.strategy.leaves_note:
        return
    body = {
        "seq": turn.mail.seq,
        "type": turn.mail.type,
        "steps": run + replayed,
        "last_step": turn.journal.last_step,
        "attempt": turn.attempt,
        "worker": activation.services.worker,
        "epoch": turn.epoch,
        "cause": "drain",
    }
    await _emit(activation, INTERRUPTED, body)


def end_steps(activation: Staged, turn: Turn) -> None:
    """Give the records of a committed turn that have no lifetime one, beside the hot path."""
    if turn.steps[0] + turn.steps[1]:
        writes = turn.journal.finishing(ttl_s=activation.services.rules.step_ttl_s)
        if writes:
            _ = activation.services.spawn(_store_all(activation, writes), "actor-steps-end")


async def _store_all(activation: Staged, writes: Sequence[Write]) -> None:
    """What cannot be stored now stays as it is: it takes room and harms nobody."""
    for write in writes:
        try:
            await activation.services.bus.store(write)
        except BusError as error:
            _log.warning(events.TURN_UNNOTED, actor=str(activation.address), event_name=write.subject, code=error.code)


def _begun(
    activation: Staged, mail: Mail, found: Sequence[Stored], steps: Sequence[Stored], *, has_died: bool
) -> Begun:
    records = [record for stored in steps if (record := _record(stored)) is not None]
    former = records[-1].worker if records else activation.owner.former
    stays = activation.services.stays(former)
    return Begun(
        address=activation.address,
        seq=mail.seq,
        type=mail.type,
        steps=tuple(record.name for record in records),
        from_worker=former,
        cause="death" if has_died else "move" if stays else "drain",
        deaths=crashes.deaths(found) + 1 if has_died else 0,
    )


def _given_up(begun: Begun, limit: int) -> CrashLimitError | TurnAbandonedError:
    if begun.deaths > limit:
        text = f"its host died {begun.deaths} times under this mail, with no step done between"
        return CrashLimitError(text)
    text = f"its class gives it up after the {begun.cause} of {begun.from_worker or 'its host'}"
    return TurnAbandonedError(f"{text}, with {len(begun.steps)} steps recorded")


def _standing(found: Sequence[Stored], kept: Collection[str]) -> list[Stored]:
    """Return the records of steps that would be replayed, oldest first."""
    anew = max((stored.seq for stored in found if _is(stored, step.RESTARTED)), default=0)
    steps = [
        stored
        for stored in found
        if not step.is_note(entry := step.entry_of(stored.subject))
        and entry not in kept
        and not step.is_void(stored, anew)
    ]
    return sorted(steps, key=attrgetter("seq"))


async def _restart(activation: Staged, mail: Mail, cause_seq: int) -> list[Stored]:
    """Note that what was recorded until now no longer counts; return the note as it stands."""
    write = crashes.write(activation, mail, step.RESTARTED, cause_seq, Raw(b"null"))
    result = await activation.services.committer.commit(write)
    match result:
        case Committed(seqs=seqs):
            return [Stored(write.subject, write.data, seqs[0], activation.services.clock.now(), write.headers)]
        case Fenced(current=Stored() as current):
            return [current]
    return []


async def _tell_resumed(activation: Staged, begun: Begun, choice: Choice, *, replayed: int) -> None:
    worker, epoch = activation.services.worker, activation.owner.epoch
    _log.warning(
        events.TURN_RESUMED,
        actor=str(begun.address),
        seq=begun.seq,
        how=choice,
        cause=begun.cause,
        from_worker=begun.from_worker,
        steps=replayed,
    )
    body = {
        "seq": begun.seq,
        "type": begun.type,
        "how": choice,
        "steps": replayed,
        "last_step": begun.steps[-1] if begun.steps else None,
        "from_worker": begun.from_worker,
        "worker": worker,
        "epoch": epoch,
        "cause": begun.cause,
        "deaths": begun.deaths,
    }
    await _emit(activation, RESUMED, body)


async def _emit(activation: Staged, name: str, body: Mapping[str, object]) -> None:
    """Store an event outside of any commit. What it tells stands in the log as well, so it is tried once."""
    services, address = activation.services, activation.address
    headers = header.build(ttl_s=services.rules.event_ttl_s, extra={header.TYPE: name})
    data = codec.encode({**body, "at": services.clock.now()})
    try:
        await services.bus.store(Write(subjects.event(address.type, address.key), data, headers))
    except BusError as error:
        _log.warning(events.TURN_UNNOTED, actor=str(address), event_name=name, code=error.code)


async def _read(activation: Staged, mail: Mail) -> list[Stored]:
    wildcard = subjects.steps(activation.address.type, activation.address.key, mail.seq)
    while True:
        try:
            return list(await activation.services.bus.get_many(subjects.ACTORS, [wildcard], from_leader=True))
        except BusError as error:
            if not error.retryable:
                raise
            await activation.services.clock.sleep(_RETRY_S)


def _record(stored: Stored) -> step.StepRecord | None:
    try:
        return step.decode(stored.data)
    except DecodeError:
        return None


def _is(stored: Stored, name: str) -> bool:
    return step.entry_of(stored.subject).startswith(f"{name}.")
