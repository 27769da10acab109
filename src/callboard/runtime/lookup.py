"""Where is this task, and how much work waits? Questions of people and tools; no task is run by their answers."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from callboard.runtime import ids, record, subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, ConsumerInfo, Message, Stored
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.context import Progress
from callboard.runtime.control import CONFIG_BUCKET, PAUSE_PREFIX
from callboard.runtime.errors import DecodeError, NotFoundError, TaskNotFoundError
from callboard.runtime.labels import reach
from callboard.runtime.lease import HoldsAnswer, HoldsQuestion
from callboard.runtime.record import AttemptRecord, TaskRecord

State = Literal["scheduled", "waiting", "running", "completed", "failed", "cancelled", "expired"]

ACTORS = "CB_ACTORS"
# A waiting task is found by its id in a header, so the queue is read; beyond this many it is not.
SCAN_LIMIT = 5000
_HOLDS_WAIT_S = 0.4

# stream, sequence from which on, subject
_Place = tuple[str, int, str]


class Whereabouts(Struct, frozen=True, kw_only=True):
    """All that is known about one task.

    Attributes:
        state: Where it is; finished ones bear the status of their record.
        stream: The stream that holds it, while it is not finished.
        seq: Its sequence there.
        since: When it was submitted, when known.
        due: When a scheduled one fires.
        workers: Who runs it now.
        attempts: Records of the runs that did not finish it.
        progress: The last thing it said.
        is_dead: Whether a dead letter of it stands.
    """

    task: str
    capability: str
    state: State
    stream: str | None = None
    seq: int | None = None
    since: datetime | None = None
    due: str | None = None
    workers: list[str] = []
    record: TaskRecord | None = None
    attempts: list[AttemptRecord] = []
    progress: Progress | None = None
    is_dead: bool = False

    @property
    def place(self) -> tuple[str, int] | None:
        """Stream and sequence of the message that makes it run, None when there is none or it is a schedule."""
        if self.stream is None or self.seq is None or self.state == "scheduled":
            return None
        return self.stream, self.seq


class Queue(Struct, frozen=True, kw_only=True):
    """How much work of one capability is on the broker.

    Attributes:
        waiting: Tasks that no worker has.
        claimed: Tasks handed out and not settled; those in a retry's pause count here.
        has_consumer: False when no worker ever offered it.
        paused: Why it is held back on all workers; None when it is not.
        deliveries: How often a task of it was handed out so far, each time counted.
        oldest: When the task that has waited longest was stored; None when none waits, or nobody asked for it.
    """

    capability: str
    waiting: int
    claimed: int
    has_consumer: bool = True
    paused: str | None = None
    deliveries: int = 0
    oldest: datetime | None = None


async def find(bus: Bus, task_id: str, *, capability: str | None = None, clock: Clock = SYSTEM_CLOCK) -> Whereabouts:
    """Return everything about a task. Four round trips when it is finished, a read of the queue when it waits.

    Args:
        bus: Where to look.
        task_id: The task.
        capability: Narrows the search; else any.
        clock: Time.

    Raises:
        TaskNotFoundError: If nothing is known of it: it was never submitted, or its record has aged out.
    """
    token = subjects.escape(task_id)
    wanted = capability or "*"
    found = await bus.get_many(subjects.LEDGER, [f"cb.result.{wanted}.{token}", f"cb.attempt.{wanted}.{token}.*"])
    attempts = _attempts(found)
    finished = next((stored for stored in reversed(found) if stored.subject.startswith("cb.result.")), None)
    progress = await _progress(bus, task_id)
    if finished is not None:
        task_record = record.decode_task(finished.data)
        dead = await bus.get_last(subjects.DEAD, subjects.dead(task_record.capability, task_id))
        return Whereabouts(
            task=task_id,
            capability=task_record.capability,
            state=task_record.status,
            record=task_record,
            attempts=attempts,
            progress=progress,
            is_dead=dead is not None,
        )
    holders = await who_holds(bus, task_id, clock=clock)
    stored = await _waiting(bus, task_id, attempts)
    if stored is None and not holders:
        message = f"nothing is known of task {task_id!r}: it was never submitted, or its record has aged out"
        raise TaskNotFoundError(message)
    return _unfinished(task_id, stored, holders, attempts, progress)


def _unfinished(
    task_id: str, stored: Stored | None, holders: list[str], attempts: list[AttemptRecord], progress: Progress | None
) -> Whereabouts:
    state: State = "waiting"
    due = None
    name = attempts[-1].capability if attempts else ""
    if stored is not None:
        headers = stored.headers or {}
        if stored.subject.startswith("cb.later."):
            state = "scheduled"
            due = headers.get(header.SCHEDULE, "").removeprefix("@at ")
            name = headers.get(header.SCHEDULE_TARGET, "cb.due.").split(".")[2]
        else:
            name = subjects.split_task(stored.subject)[0]
    return Whereabouts(
        task=task_id,
        capability=name,
        state="running" if holders else state,
        stream=_stream_of(stored) if stored is not None else None,
        seq=stored.seq if stored is not None else None,
        since=stored.time if stored is not None else None,
        due=due,
        workers=holders,
        attempts=attempts,
        progress=progress,
    )


def _stream_of(stored: Stored) -> str:
    return subjects.WORK if stored.subject.startswith("cb.task.") else subjects.LATER


async def who_holds(bus: Bus, task_id: str, *, clock: Clock = SYSTEM_CLOCK) -> list[str]:
    """Return the workers that run a task now; asks all and waits 0.4 s, less when one says yes."""
    holders: list[str] = []

    def on_answer(message: Message) -> None:
        try:
            answer = msgspec.json.decode(message.data, type=HoldsAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if task_id in answer.held:
            holders.append(answer.worker)

    inbox = bus.inbox()
    subscription = await bus.subscribe(inbox, on_answer)
    try:
        await bus.publish(subjects.CTL_HOLDS, msgspec.json.encode(HoldsQuestion([task_id])), reply=inbox)
        give_up_s = clock.monotonic() + _HOLDS_WAIT_S
        while not holders and clock.monotonic() < give_up_s:
            await clock.sleep(0.02)
    finally:
        await subscription.close()
    return holders


async def queues(bus: Bus, *, with_age: bool = False) -> list[Queue]:
    """Return the load of every capability that has a consumer or work, by name. A few requests.

    Args:
        bus: Where.
        with_age: Look for the oldest waiting task too: one direct get more for each lane in which some wait.
    """
    lanes: dict[str, list[ConsumerInfo]] = {}
    for info in [*await bus.consumers(subjects.WORK), *await bus.consumers(subjects.LATER)]:
        parts = info.config.filter_subject.split(".")
        if len(parts) < 3 or parts[1] not in ("task", "due"):  # noqa: PLR2004 - cb.task.<capability>
            continue
        lanes.setdefault(parts[2], []).append(info)
    paused = {
        entry.key.removeprefix(PAUSE_PREFIX): (entry.data or b"").decode(errors="replace")
        for entry in await Bucket(bus, CONFIG_BUCKET).entries(PAUSE_PREFIX)
    }
    found = [
        Queue(
            capability=name,
            waiting=sum(info.pending for info in infos),
            claimed=sum(info.ack_pending for info in infos),
            paused=next((paused[each] for each in reach(name) if each in paused), None),
            deliveries=sum(info.deliveries for info in infos),
            oldest=await _oldest(bus, [_next_of(info) for info in infos if info.pending]) if with_age else None,
        )
        for name, infos in lanes.items()
    ]
    unoffered: dict[str, int] = {}
    places: dict[str, list[_Place]] = {}
    for stream, wildcard in ((subjects.WORK, "cb.task.>"), (subjects.LATER, "cb.due.*")):
        for subject, count in (await bus.subject_counts(stream, wildcard)).items():
            name = subject.split(".")[2]
            if name not in lanes:
                unoffered[name] = unoffered.get(name, 0) + count
                places.setdefault(name, []).append((stream, 1, subject))
    found += [
        Queue(
            capability=name,
            waiting=n,
            claimed=0,
            has_consumer=False,
            paused=next((paused[each] for each in reach(name) if each in paused), None),
            oldest=await _oldest(bus, places[name]) if with_age else None,
        )
        for name, n in unoffered.items()
    ]
    return sorted(found, key=lambda queue: queue.capability)


def _next_of(info: ConsumerInfo) -> _Place:
    return info.stream, info.delivered_seq + 1, info.config.filter_subject


async def _oldest(bus: Bus, places: list[_Place]) -> datetime | None:
    found = await asyncio.gather(*(bus.get_next(stream, seq, subject) for stream, seq, subject in places))
    return min((stored.time for stored in found if stored is not None), default=None)


async def _waiting(bus: Bus, task_id: str, attempts: list[AttemptRecord]) -> Stored | None:
    place = ids.place_of(task_id)
    if place is not None:
        stored = await bus.get_seq(*place)
        # a schedule has a sequence in the same stream as its firings
        if stored is not None and not stored.subject.startswith("cb.later."):
            return stored
        if not attempts:
            return None
    held = await bus.get_last(subjects.LATER, subjects.later(task_id))
    if held is not None:
        return held
    return await _scan(bus, subjects.WORK, "cb.task.>", task_id) or await _scan(
        bus, subjects.LATER, "cb.due.*", task_id
    )


async def _scan(bus: Bus, stream: str, wildcard: str, task_id: str) -> Stored | None:
    seq = 1
    for _ in range(SCAN_LIMIT):
        stored = await bus.get_next(stream, seq, wildcard)
        if stored is None:
            return None
        headers = stored.headers or {}
        if task_id in (headers.get(header.MSG_ID), headers.get(header.TASK_ID)):
            return stored
        seq = stored.seq + 1
    return None


async def _progress(bus: Bus, task_id: str) -> Progress | None:
    try:
        last = await bus.get_last(ACTORS, subjects.task_event(task_id))
    except NotFoundError:
        return None
    return as_progress(last) if last is not None else None


def as_progress(stored: Stored) -> Progress | None:
    """Return the progress event in a message, or None when it is none."""
    try:
        return msgspec.json.decode(stored.data, type=Progress)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _attempts(found: list[Stored]) -> list[AttemptRecord]:
    attempts = []
    for stored in found:
        if stored.subject.startswith("cb.attempt."):
            try:
                attempts.append(record.decode_attempt(stored.data))
            except DecodeError:
                continue
    return sorted(attempts, key=lambda note: note.n)
