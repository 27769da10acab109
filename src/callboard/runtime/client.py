"""The submitter's side: give work, wait for it, cancel it, plan it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from callboard.runtime import codec, ids, record, subjects, tracing
from callboard.runtime import deadline as deadlines
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.blobs import CLAIM_CHECK_BYTES, BlobRef, BlobStore, claim_header
from callboard.runtime.bus import header
from callboard.runtime.bus.base import DEFAULT_TIMEOUT_S, Bus, Message, PubAck, Subscription, Write
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.capability import Capability
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.control import CONFIG_BUCKET, PAUSE_PREFIX, CancelRequest
from callboard.runtime.errors import (
    BusError,
    BusTimeoutError,
    ConflictError,
    InputError,
    NoRespondersError,
    TaskFailedError,
    TaskTimeoutError,
)
from callboard.runtime.labels import pool_name, split
from callboard.runtime.record import TaskRecord
from callboard.runtime.registry.handle import Finder
from callboard.runtime.registry.lookup import Lookups
from callboard.runtime.subjects import Lane
from callboard.runtime.submitted import Cancellation, TaskHandle, handles, no_stream

__all__ = ["Cancellation", "Client", "TaskHandle"]

POLL_FIRST_S = 0.2
POLL_MAX_S = 2.0
CANCEL_WAIT_S = 0.3
NOBODY = "client"


class Client(Finder):
    """Submits tasks, talks to actors and finds agents over one bus connection. ``close`` it, then the bus."""

    def __init__(
        self,
        bus: Bus,
        *,
        clock: Clock = SYSTEM_CLOCK,
        claim_check_bytes: int = CLAIM_CHECK_BYTES,
    ) -> None:
        """Use an open bus.

        Args:
            bus: The connection; not owned.
            clock: Time.
            claim_check_bytes: Payloads above this go to the object store.
        """
        self.lookups = Lookups(bus, clock=clock)
        self._bus = bus
        self._clock = clock
        self._claim_check_bytes = claim_check_bytes
        self._blobs = BlobStore(bus)
        self._notices: Subscription | None = None
        self._notice_prefix = ""
        self._notice_number = 0
        self._waiters: dict[str, asyncio.Future[TaskRecord]] = {}
        self._notice_of: dict[str, str] = {}
        self._early: dict[str, Message] = {}

    @property
    def bus(self) -> Bus:
        """The connection; not owned."""
        return self._bus

    @property
    def clock(self) -> Clock:
        """The time that it goes by."""
        return self._clock

    async def close(self) -> None:
        """End what look-ups began; the bus stays open. Closing twice is harmless."""
        await self.lookups.close()

    # --- submit

    async def submit(
        self,
        capability: str | Capability[..., Any],
        value: object = UNSET,
        *,
        id: str | None = None,  # noqa: A002 - the word of the wire contract
        lane: Lane = "normal",
        deadline: datetime | timedelta | None = None,
        delay_s: float | None = None,
        notify: bool = False,
        headers: dict[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> TaskHandle:
        """Submit one task; returns when it is on the broker's disk. One round trip.

        Args:
            capability: What shall be done.
            value: The handler's argument, or a dict of them; ``bytes`` go out as they are. Omitted: an empty body.
            id: Idempotency key, best ``<capability>/<key>``; a second submit with it gives the first task. Give one
                whenever you may have to repeat the call.
            lane: high overtakes normal; low never starves.
            deadline: When it stops being wanted: a time, or a span from now.
            delay_s: Begin no sooner than in so many seconds (1 at least; the server holds it).
            notify: Ask for the notice, so that ``wait`` hears at once and need not look.
            headers: Further headers; they are copied into the record.
            labels: Only a worker that bears all of these runs it. Without one it waits: ``callboard doctor`` says so.
            timeout_s: How long to wait for the broker.

        Raises:
            InvalidNameError: If capability or id cannot be used.
            EncodeError: If the value cannot be encoded.
            DeadlineError: If the deadline has passed.
            BackpressureError: If the queue is full; nothing was stored.
            BusTimeoutError: If the outcome is unknown: submit again under the same id.
        """
        name = _name_of(capability, labels)
        with tracing.span(f"submit {name}", "producer", lambda: {"messaging.system": "nats"}):
            if delay_s is not None and id is None:
                id = f"{name}/{ids.new_token()}"  # noqa: A001
            reply_to = await self._notice_subject() if notify else None
            extra = self._headers(id=id, deadline=deadline, reply_to=reply_to, headers=headers)
            data = await self._payload(value, extra)
            if delay_s is not None and self._bus.is_guest:
                # a roll-up on the subjects of schedules would delete them all, so not everybody may write there
                due = self._clock.now() + timedelta(seconds=max(1.0, delay_s))
                extra[header.NOT_BEFORE] = due.isoformat().replace("+00:00", "Z")
                write = Write(subjects.task(name, lane), data, extra)
            elif delay_s is not None:
                due = self._clock.now() + timedelta(seconds=max(1.0, delay_s))
                extra = {k: v for k, v in extra.items() if k != header.MSG_ID} | header.at(due, subjects.due(name))
                extra |= {header.LANE: lane, header.TASK_ID: id or ""}
                write = Write(subjects.later(id or ""), data, extra)
            else:
                write = Write(subjects.task(name, lane), data, extra or None)
            try:
                ack = await self._bus.store(write, timeout_s=timeout_s)
            except NoRespondersError as error:
                raise no_stream() from error
            if split(name)[1]:
                # a worker that fits looks at once, and not within ten seconds
                await self._bus.publish(subjects.CTL_POOLS, name.encode())
            handle = TaskHandle(id=id or f"~{ack.seq}", capability=name, seq=ack.seq, is_duplicate=ack.is_duplicate)
            if reply_to is not None and not handle.is_duplicate:
                # the first submit said where its notice goes; who repeats it looks at the ledger
                self._expect(handle.id, reply_to)
            return handle

    async def submit_many(
        self,
        capability: str | Capability[..., Any],
        values: Sequence[object],
        *,
        task_ids: Sequence[str] | None = None,
        lane: Lane = "normal",
        labels: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> list[TaskHandle | BusError]:
        """Submit many tasks, all checked before the first is sent, then pipelined.

        Without ids they travel in atomic batches of up to 500: cheaper where the server syncs every write. A refusal
        stands in the place of its task.

        Raises:
            InputError: Naming every value that cannot be sent; nothing was sent.
        """
        name = _name_of(capability, labels)
        if task_ids is not None and len(task_ids) != len(values):
            message = f"nothing was sent: there are {len(values)} values and {len(task_ids)} ids"
            raise InputError(message)
        subject = subjects.task(name, lane)
        writes: list[Write] = []
        bad: list[str] = []
        for index, value in enumerate(values):
            try:
                extra = self._headers(id=task_ids[index] if task_ids is not None else None)
                writes.append(Write(subject, await self._payload(value, extra), extra or None))
            except InputError as error:
                bad.append(f"#{index}: {error}")
        if bad:
            message = f"nothing was sent, {len(bad)} of {len(values)} cannot be: {'; '.join(bad[:10])}"
            raise InputError(message)
        if task_ids is None and len(writes) > 1:
            acks = await self._store_batches(writes, timeout_s)
        else:
            acks = await self._bus.store_many(writes, timeout_s=timeout_s)
        return handles(name, acks, task_ids)

    async def _store_batches(self, writes: list[Write], timeout_s: float) -> list[PubAck | BusError]:
        acks: list[PubAck | BusError] = []
        size = 500
        for start in range(0, len(writes), size):
            part = writes[start : start + size]
            try:
                last = await self._bus.store_batch(part, timeout_s=timeout_s)
            except BusError as error:
                acks.extend([error] * len(part))
            else:
                first = last.seq - len(part) + 1
                acks.extend(PubAck(last.stream, first + offset) for offset in range(len(part)))
        return acks

    async def call(
        self,
        capability: str | Capability[..., Any],
        value: object = UNSET,
        *,
        timeout_s: float | None = None,
        **options: Any,  # noqa: ANN401 - passed on to submit
    ) -> Any:  # noqa: ANN401 - whatever the handler returns
        """Submit and wait for the result. See ``submit`` and ``wait`` for options and errors."""
        handle = await self.submit(capability, value, notify=True, **options)
        return await self.wait(handle, timeout_s=timeout_s)

    # --- actors

    def actor(self, address: Address | str) -> ActorRef:
        """Return a reference to an actor, ``type/key``, to tell and to ask.

        Raises:
            InvalidNameError: If it is no address.
        """
        return ActorRef(self._bus, address, clock=self._clock)

    # --- results

    async def record(self, capability: str, task_id: str) -> TaskRecord | None:
        """Return a finished task's record, or None while it is not finished. One direct get."""
        stored = await self._bus.get_last(subjects.LEDGER, subjects.result(capability, task_id))
        return record.decode_task(stored.data) if stored is not None else None

    async def wait(self, handle: TaskHandle, *, timeout_s: float | None = None) -> Any:  # noqa: ANN401 - as call
        """Return the result of a task as plain values, waiting for it if need be.

        Raises:
            TaskFailedError: If it failed, was cancelled or expired.
            TaskTimeoutError: If it is not finished in time; it goes on.
        """
        finished = await self.wait_record(handle, timeout_s=timeout_s)
        return await self.value_of(finished)

    async def value_of(self, finished: TaskRecord) -> Any:  # noqa: ANN401 - as call
        """Return the result a record holds, fetched from the object store when it lies there.

        Raises:
            TaskFailedError: If the record is of a task without a result.
        """
        if finished.status != "completed":
            error = finished.error
            code = error.code if error is not UNSET else "unknown"
            text = error.message if error is not UNSET else ""
            message = f"task {finished.task} {finished.status}: {code}: {text}"
            raise TaskFailedError(message, task_id=finished.task, cause_code=code, status=finished.status)
        if finished.result_blob is not UNSET:
            blob = finished.result_blob
            data = await self._blobs.get(BlobRef(name=blob.name, sha256=blob.sha256, size_bytes=blob.size_bytes))
            return msgspec.json.decode(data)
        return msgspec.json.decode(finished.result) if isinstance(finished.result, Raw) else None

    async def wait_record(self, handle: TaskHandle, *, timeout_s: float | None = None) -> TaskRecord:
        """Return a task's record when it is finished.

        The notice wakes it; a look at the ledger every two seconds makes up for a lost one.

        Raises:
            TaskTimeoutError: If it is not finished in time; it goes on.
        """
        give_up_s = None if timeout_s is None else self._clock.monotonic() + timeout_s
        waiter = self._waiters.get(handle.id)
        pause_s = POLL_FIRST_S if waiter is None else POLL_MAX_S
        try:
            while True:
                if waiter is None or not waiter.done():
                    found = await self._look(handle)
                    if found is not None:
                        return found
                left_s = pause_s if give_up_s is None else min(pause_s, give_up_s - self._clock.monotonic())
                if left_s <= 0:
                    message = f"task {handle.id} is not finished after {timeout_s:g} s; it goes on, ask again later"
                    raise TaskTimeoutError(message)
                if waiter is None:
                    await self._clock.sleep(left_s)
                    pause_s = min(POLL_MAX_S, pause_s * 1.5)
                    continue
                await asyncio.wait([waiter], timeout=left_s)
                if waiter.done():
                    return waiter.result()
        finally:
            if waiter is not None:
                self._forget_notice(handle.id)

    async def _look(self, handle: TaskHandle) -> TaskRecord | None:
        try:
            return await self.record(handle.capability, handle.id)
        except BusTimeoutError:
            return None

    # --- cancel, pause

    async def cancel(
        self,
        capability: str,
        task_id: str,
        *,
        reason: str = "cancelled by request",
        place: tuple[str, int] | None = None,
    ) -> Cancellation:
        """Cancel a task wherever it is: waiting, scheduled or running.

        The record is written first, so a worker that claims it meanwhile finds it and does not run it. ``place`` is the
        stream and the sequence of a waiting task whose id does not tell (``lookup.find`` does).

        Raises:
            BusError: If the broker cannot be asked.
        """
        now = self._clock.now()
        finished = TaskRecord(
            v=record.VERSION,
            task=task_id,
            capability=capability,
            status="cancelled",
            error=record.Failure(code="task_cancelled", message=reason),
            attempts=0,
            worker=NOBODY,
            finished_at=now,
        )
        if await self._cancel_running(task_id, reason):
            for _ in range(50):
                found = await self.record(capability, task_id)
                if found is not None:
                    return Cancellation(task=task_id, found="running", record=found)
                await self._clock.sleep(0.1)
        write = Write(subjects.result(capability, task_id), record.encode(finished), header.build(expected_seq=0))
        try:
            await self._bus.store(write)
        except ConflictError:
            return Cancellation(task=task_id, found="finished", record=await self.record(capability, task_id))
        await self._bus.purge(subjects.LATER, subject=subjects.later(task_id))
        place = place or ids.place_of(task_id)
        if place is not None:
            await self._bus.delete_message(*place)
        # a first delivery of an unnamed task asks nobody: it may have begun between the question and the deletion
        await self._cancel_running(task_id, reason)
        return Cancellation(task=task_id, found="waiting", record=finished)

    async def _cancel_running(self, task_id: str, reason: str) -> bool:
        body = msgspec.json.encode(CancelRequest(task=task_id, reason=reason))
        try:
            await self._bus.request(subjects.CTL_CANCEL, body, timeout_s=CANCEL_WAIT_S)
        except (NoRespondersError, BusTimeoutError):
            return False
        return True

    async def pause(self, capability: str, *, reason: str = "") -> None:
        """Hold a capability back on all workers, now and after restarts, until ``resume``; running tasks go on.

        Its pools by label are held back with it. The name of one of those holds back that one alone.
        """
        subjects.check_name(capability, what="capability")
        await Bucket(self._bus, CONFIG_BUCKET).put(PAUSE_PREFIX + capability, reason.encode() or b"paused")

    async def resume(self, capability: str) -> None:
        """Let a paused capability go on."""
        subjects.check_name(capability, what="capability")
        await Bucket(self._bus, CONFIG_BUCKET).delete(PAUSE_PREFIX + capability)

    # --- plans

    async def schedule(
        self,
        name: str,
        capability: str | Capability[..., Any],
        value: object = UNSET,
        *,
        rule: str,
        time_zone: str | None = None,
        lane: Lane = "normal",
    ) -> None:
        """Make a recurring task, held by the server; the same name replaces it.

        Each firing is a task of its own, run once. A firing missed while the server was down is left out.

        Args:
            name: Its name.
            capability: What shall be done.
            value: Argument of every firing.
            rule: ``@every 90s`` (1 s at least), ``@hourly`` and the like, or a cron line of six fields, seconds first.
            time_zone: IANA name, for cron lines.
            lane: Lane of the firings.

        Raises:
            InputError: If the rule is refused.
        """
        target = subjects.due(_name_of(capability))
        extra = header.recurring(rule, target, time_zone=time_zone) | {header.LANE: lane}
        data = await self._payload(value, extra)
        try:
            await self._bus.store(Write(subjects.later(f"plan/{name}"), data, extra))
        except (BusTimeoutError, NoRespondersError):
            raise
        except BusError as error:
            message = (
                f"the schedule rule {rule!r} was refused: {error}. Take '@every 90s', '@hourly' or six cron fields"
            )
            raise InputError(message) from error

    async def unschedule(self, name: str) -> bool:
        """Remove a recurring task; False when there was none. Firings already made still run."""
        return await self._bus.purge(subjects.LATER, subject=subjects.later(f"plan/{name}")) > 0

    # --- inside

    def _headers(
        self,
        *,
        id: str | None,  # noqa: A002 - as in submit
        deadline: datetime | timedelta | None = None,
        reply_to: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, str]:
        extra = dict(headers or {})
        if id is not None:
            extra[header.MSG_ID] = id
        if header.MSG_ID in extra:
            ids.check(extra[header.MSG_ID])
        if deadline is not None:
            extra[header.DEADLINE] = deadlines.stamp(deadlines.moment(deadline, now=self._clock.now()))
        if reply_to is not None:
            extra[header.REPLY_TO] = reply_to
        tracing.inject(extra)
        return extra

    async def _payload(self, value: object, extra: dict[str, str]) -> bytes:
        if value is UNSET:
            return b""
        data = bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else codec.encode(value)
        if len(data) <= self._claim_check_bytes:
            return data
        ref = await self._blobs.put(data)
        extra[header.CLAIM_CHECK] = claim_header(ref)
        return b""

    async def _notice_subject(self) -> str:
        if self._notices is None:
            self._notice_prefix = self._bus.inbox()
            self._notices = await self._bus.subscribe(f"{self._notice_prefix}.*", self._on_notice)
        self._notice_number += 1
        return f"{self._notice_prefix}.{self._notice_number}"

    def _expect(self, task_id: str, reply_to: str) -> None:
        _ = self._waiters.setdefault(task_id, asyncio.get_running_loop().create_future())
        if reply_to in self._early:
            self._fulfil(task_id, self._early.pop(reply_to))
        else:
            self._notice_of[reply_to] = task_id

    def _forget_notice(self, task_id: str) -> None:
        self._waiters.pop(task_id, None)
        for subject in [s for s, t in self._notice_of.items() if t == task_id]:
            del self._notice_of[subject]

    def _on_notice(self, message: Message) -> None:
        task_id = self._notice_of.pop(message.subject, None)
        if task_id is None:
            # a fast worker may be done before the submitter has read its own acknowledgement
            self._early[message.subject] = message
            if len(self._early) > 1000:  # noqa: PLR2004
                del self._early[next(iter(self._early))]
            return
        self._fulfil(task_id, message)

    def _fulfil(self, task_id: str, message: Message) -> None:
        waiter = self._waiters.get(task_id)
        if waiter is not None and not waiter.done():
            # what is no record is left: the ledger has the last word
            with suppress(InputError):
                waiter.set_result(record.decode_task(message.data))


def _name_of(capability: str | Capability[..., Any], labels: Mapping[str, str] | None = None) -> str:
    return pool_name(capability if isinstance(capability, str) else capability.name, labels or {})
