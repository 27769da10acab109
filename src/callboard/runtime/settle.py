"""From an outcome to writes and one answer: the only code that acks, naks or terms.

The order is fixed: ledger record, then the answer to the broker, then the notice. A crash between any two is repaired
by redelivery: the record is found and the claim acked without a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, Protocol

from msgspec import UNSET, Raw, Struct

from callboard.runtime import crash, events, logs, record, subjects
from callboard.runtime.blobs import CLAIM_CHECK_BYTES, BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.claim import Claim, Stage
from callboard.runtime.clock import Clock
from callboard.runtime.commit import Committer, Refused, Result, Stands
from callboard.runtime.errors import BusClosedError, BusError, CallboardError, ConflictError
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.outcome import Cancelled, Completed, Expired, Failed, Outcome, Retry, Returned
from callboard.runtime.patience import outlast
from callboard.runtime.record import (
    AttemptKind,
    AttemptRecord,
    BlobPointer,
    DeadLetter,
    Failure,
    Status,
    TaskRecord,
    failure_of,
)

# fired schedules come 0 to 0.25 s late, never early: aim for the middle
SCHEDULE_LEAD_S = 0.12
# Beyond it payload and history of a dead letter are cut, so that with its headers it stays below the message limit.
LETTER_BYTES = 512 * 1024
_log = logs.get_logger(__name__)


class Told(Protocol):
    """Who is told how a claim ended, for counting."""

    def settled(self, claim: Claim, name: str) -> None:
        """Count ``name``: completed, failed, retried, cancelled, expired, returned, duplicate or lapsed."""
        ...


class SettleRules(Struct, frozen=True, kw_only=True):
    """Numbers of settling; see ``docs/configuration.md``, section work."""

    schedule_over_s: float = 30.0
    claim_check_bytes: int = CLAIM_CHECK_BYTES


class Settler:
    """Ends claims. One per worker process; a claim is settled exactly once or forgotten on purpose."""

    def __init__(
        self,
        bus: Bus,
        committer: Committer,
        keeper: LeaseKeeper,
        blobs: BlobStore,
        *,
        clock: Clock,
        told: Told,
        spawn: Callable[[Coroutine[Any, Any, None], str], object],
        soon: Callable[[Callable[[], None]], object],
        rules: SettleRules,
    ) -> None:
        """Prepare.

        Args:
            bus: The worker's connection.
            committer: Group commit of the ledger.
            keeper: Keeper of the leases.
            blobs: Where large results go.
            clock: Time.
            told: Who counts.
            spawn: Starts a named task in the worker's task group.
            soon: Calls a function in the next loop turn.
            rules: Limits.
        """
        self._bus = bus
        self._committer = committer
        self._keeper = keeper
        self._blobs = blobs
        self._clock = clock
        self._told = told
        self._spawn = spawn
        self._soon = soon
        self._rules = rules
        self._acks: list[str] = []
        self._notices: list[tuple[str, bytes]] = []
        self._flushing = False

    def settle(self, claim: Claim, outcome: Outcome) -> None:
        """End a claim; returns at once, the lease is kept until the broker has its answer."""
        claim.stage = Stage.SETTLING
        if isinstance(outcome, Completed):
            if len(outcome.data) + len(claim.payload) <= self._rules.claim_check_bytes:
                self._commit(claim, self._completed(claim, Raw(outcome.data), UNSET), "completed")
            else:
                self._run(claim, partial(self._complete_large, claim, outcome.data), "settle-large")
            return
        if self._keeper.has_lapsed(claim):
            # somebody else may be running it by now; an answer from us would disturb that run
            self._lapse(claim)
            return
        match outcome:
            case Retry(failure, delay_s):
                self._run(claim, partial(self._retry, claim, failure, delay_s), "settle-retry")
            case Failed(failure):
                self._run(claim, partial(self._bury, claim, failure), "settle-failed")
            case Cancelled(failure):
                _log.info(events.TASK_CANCELLED, **_who(claim), was_running=claim.started_at is not None)
                self._end(claim, "cancelled", failure)
            case Expired(failure):
                _log.info(events.TASK_EXPIRED, **_who(claim), was_running=claim.started_at is not None)
                self._end(claim, "expired", failure)
            case Returned(delay_s):
                if claim.started_at is not None:
                    _log.info(events.TASK_HANDED_BACK, **_who(claim))
                self._run(claim, partial(self._return, claim, delay_s), "settle-returned")

    def skip(self, claim: Claim) -> None:
        """Ack a claim whose record was found: it ran before."""
        _log.debug(events.TASK_SKIPPED, **_who(claim))
        self._acks.append(claim.token)
        self._forget(claim, "duplicate")
        self._flush_soon()

    def drop(self, claim: Claim) -> None:
        """Let go of a claim that another worker is running, without any answer."""
        _log.info(events.TASK_DROPPED, **_who(claim))
        self._forget(claim, "dropped")

    async def postpone(self, claim: Claim, delay_s: float) -> None:
        """Give back a claim whose next attempt is not due for ``delay_s``."""
        await self._give_back(claim, delay_s, "postponed")

    def defer(self, claim: Claim, due: datetime) -> None:
        """Have the server hold a claim that is not wanted before ``due``, then ack it. It takes no attempt."""
        delay_s = max(0.0, (due - self._clock.now()).total_seconds())
        self._run(claim, partial(self._defer, claim, delay_s), "settle-deferred")

    async def _defer(self, claim: Claim, delay_s: float) -> None:
        await self._schedule(claim, delay_s, attempt=claim.attempt)
        self._acks.append(claim.token)
        self._forget(claim, "postponed")
        self._flush_soon()

    async def reschedule(self, claim: Claim, failed: AttemptRecord) -> None:
        """Make sure that the scheduled next attempt is held by the server, then ack this one."""
        due = failed.retry_at if failed.retry_at is not UNSET else self._clock.now()
        delay_s = max(0.0, (due - self._clock.now()).total_seconds())
        await self._schedule(claim, delay_s, attempt=failed.attempt + 1)
        self.skip(claim)

    async def note_start(self, claim: Claim) -> bool:
        """Write the ``started`` record that precedes every run but a task's first.

        Returns:
            False if the run must not begin: somebody else began one first, or the lease is gone.
        """
        if claim.crashes:
            _log.warning(events.TASK_TAKEN_OVER, **_who(claim), attempt=claim.attempt, crashes=claim.crashes)
        return await self._note(claim, "started") and not self._keeper.has_lapsed(claim)

    # --- records

    def _completed(self, claim: Claim, result: Raw, blob: object) -> TaskRecord:
        return TaskRecord(
            v=record.VERSION,
            task=claim.task_id,
            capability=claim.capability,
            status="completed",
            result=result if blob is UNSET else UNSET,
            result_blob=blob if isinstance(blob, BlobPointer) else UNSET,
            submitted=claim.submission(),
            attempts=claim.attempt,
            crashes=claim.crashes or UNSET,
            worker=self._keeper.worker,
            claimed_at=claim.claimed_at,
            finished_at=self._clock.now(),
        )

    def _ended(self, claim: Claim, status: Status, failure: Failure) -> TaskRecord:
        ran = claim.started_at is not None
        return TaskRecord(
            v=record.VERSION,
            task=claim.task_id,
            capability=claim.capability,
            status=status,
            error=failure,
            submitted=claim.submission(),
            attempts=claim.attempt if ran else claim.attempt - 1,
            crashes=claim.crashes or UNSET,
            worker=self._keeper.worker,
            claimed_at=claim.claimed_at,
            finished_at=self._clock.now(),
        )

    def _commit(self, claim: Claim, task_record: TaskRecord, name: str, *, term_reason: str = "") -> None:
        data = record.encode(task_record)

        def done(result: Result) -> None:
            if isinstance(result, Refused):
                self._run(claim, partial(self._unstorable, claim, result.error), "settle-unstorable")
                return
            self._answered(claim, result, data, name, term_reason)

        self._committer.add(Write(claim.result_subject, data, again=True), done)

    def _answered(self, claim: Claim, result: Stands, data: bytes, name: str, term_reason: str) -> None:
        if crash.point:
            crash.at("after-result-puback")
        if term_reason and result.is_ours:
            self._run(claim, partial(self._bus.term, claim.token, term_reason), "settle-term")
        else:
            self._acks.append(claim.token)
        if claim.reply_to is not None and result.is_ours:
            self._notices.append((claim.reply_to, data))
        self._forget(claim, name if result.is_ours else "duplicate")
        self._flush_soon()

    # --- the slower endings

    def _run(self, claim: Claim, ending: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._spawn(self._guarded(claim, ending), name)

    async def _guarded(self, claim: Claim, ending: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            # made here: a worker that goes down closes this before it begins, and would leave the ending behind
            await ending()
        except CallboardError as error:
            # what no patience mends (closed, no permission) ends this claim alone: redelivery brings it again
            _log.bind(**_who(claim)).error(events.TASK_UNCOMMITTED, code=error.code, message=str(error))
            self._lapse(claim)

    def _end(self, claim: Claim, status: Literal["cancelled", "expired"], failure: Failure) -> None:
        if len(claim.delivery.data) <= self._rules.claim_check_bytes:
            self._commit(claim, self._ended(claim, status, failure), status)
        else:
            self._run(claim, partial(self._end_large, claim, status, failure), "settle-large")

    async def _end_large(self, claim: Claim, status: Literal["cancelled", "expired"], failure: Failure) -> None:
        await self._offload_payload(claim)
        self._commit(claim, self._ended(claim, status, failure), status)

    async def _complete_large(self, claim: Claim, data: bytes) -> None:
        try:
            blob: object = UNSET
            if len(data) > self._rules.claim_check_bytes:
                ref = await outlast(lambda: self._blobs.put(data), clock=self._clock)
                blob = BlobPointer(name=ref.name, sha256=ref.sha256, size_bytes=ref.size_bytes)
            if len(claim.delivery.data) > self._rules.claim_check_bytes:
                await self._offload_payload(claim)
            self._commit(claim, self._completed(claim, Raw(data), blob), "completed")
        except CallboardError as error:
            await self._unstorable(claim, error)

    async def _offload_payload(self, claim: Claim) -> None:
        """Move the copy of a large inline payload into a blob, so that the record stays below the message limit."""
        if not claim.delivery.data:
            return
        ref = await outlast(lambda: self._blobs.put(claim.delivery.data), clock=self._clock)
        headers = dict(claim.delivery.headers or {})
        headers[header.CLAIM_CHECK] = f"{ref.name} {ref.sha256} {ref.size_bytes}"
        old = claim.delivery
        claim.delivery = type(old)(
            old.subject, b"", headers, old.token, old.seq, old.delivered, old.pending, old.time_ns
        )

    async def _retry(self, claim: Claim, failure: Failure, delay_s: float) -> None:
        is_scheduled = delay_s > self._rules.schedule_over_s
        _log.info(events.TASK_RETRIED, **_who(claim), attempt=claim.attempt, **_why(failure), delay_s=round(delay_s, 3))
        if not await self._note(claim, "failed", failure=failure, delay_s=delay_s, is_scheduled=is_scheduled):
            self._lapse(claim)
        elif is_scheduled:
            await self._schedule(claim, delay_s, attempt=claim.attempt + 1)
            self._acks.append(claim.token)
            self._flush_soon()
            self._forget(claim, "retried")
        else:
            await self._give_back(claim, delay_s, "retried")

    async def _schedule(self, claim: Claim, delay_s: float, *, attempt: int) -> None:
        if len(claim.delivery.data) > self._rules.claim_check_bytes:
            # with the schedule's headers it might not fit into a message again
            await self._offload_payload(claim)
        due = self._clock.now() + timedelta(seconds=max(0.0, delay_s - SCHEDULE_LEAD_S))
        kept = {k: v for k, v in (claim.delivery.headers or {}).items() if not k.lower().startswith("nats-")}
        kept[header.TASK_ID] = claim.task_id
        kept[header.ATTEMPT] = str(attempt)
        kept[header.LANE] = claim.lane
        # it is the schedule that waits from here on
        kept.pop(header.NOT_BEFORE, None)
        target = subjects.due(claim.capability)
        write = Write(subjects.later(claim.task_id), claim.delivery.data, kept | header.at(due, target))
        await outlast(lambda: self._bus.store(write), clock=self._clock)

    async def _return(self, claim: Claim, delay_s: float) -> None:
        is_unknown = claim.number == 1 and (claim.delivery.delivered > 1 or claim.is_doubtful)
        # a redelivery that nobody was asked about may be running elsewhere: a note would say that it is not
        if is_unknown or await self._note(claim, "returned"):
            await self._give_back(claim, delay_s, "returned")
        else:
            self._lapse(claim)

    async def _give_back(self, claim: Claim, delay_s: float, name: str) -> None:
        # the keeper first: an extension that follows a nak would replace its delay by a whole ack_wait
        self._forget(claim, name)
        await self._bus.nak(claim.token, delay_s=delay_s)

    async def _bury(self, claim: Claim, failure: Failure) -> None:
        if len(claim.delivery.data) > self._rules.claim_check_bytes:
            await self._offload_payload(claim)
        history = await self._history(claim)
        data = record.encode(self._letter(claim, failure, history))
        if len(data) > LETTER_BYTES:
            await self._offload_payload(claim)
            history = record.shortened(history, limit_bytes=LETTER_BYTES // 4)
            data = record.encode(self._letter(claim, failure, history))
        subject = subjects.dead(claim.capability, claim.task_id)
        await outlast(lambda: self._bus.store(Write(subject, data)), clock=self._clock)
        attempts = claim.attempt if claim.started_at is not None else claim.attempt - 1
        log = _log.bind(**_who(claim), **_why(failure))
        log.error(events.TASK_DEAD_LETTERED, attempts=attempts, crashes=claim.crashes)
        reason = " ".join(f"{failure.code}: {failure.message}".split())[:200]
        self._commit(claim, self._ended(claim, "failed", failure), "failed", term_reason=reason)

    def _letter(self, claim: Claim, failure: Failure, history: list[AttemptRecord]) -> DeadLetter:
        return DeadLetter(
            v=record.VERSION,
            task=claim.task_id,
            capability=claim.capability,
            cause=failure,
            history=history,
            submitted=claim.submission(),
            attempts=claim.attempt if claim.started_at is not None else claim.attempt - 1,
            crashes=claim.crashes,
            worker=self._keeper.worker,
            at=self._clock.now(),
        )

    async def _unstorable(self, claim: Claim, error: CallboardError) -> None:
        """The record itself cannot be stored: bury the task with that as its cause."""
        if isinstance(error, BusClosedError):
            self._lapse(claim)
            return
        await self._bury(claim, failure_of(error))

    async def _note(
        self,
        claim: Claim,
        kind: AttemptKind,
        *,
        failure: Failure | None = None,
        delay_s: float | None = None,
        is_scheduled: bool = False,
    ) -> bool:
        """Write the claim's next attempt record.

        The numbers are the fence between runs of one task: every run but the first takes one when it begins, and one
        when it ends unfinished. Whoever finds his number taken has been succeeded by another run.

        Returns:
            False if somebody else's record stands there; the claim must then be let go of without an answer.
        """
        now = self._clock.now()
        note = AttemptRecord(
            v=record.VERSION,
            task=claim.task_id,
            capability=claim.capability,
            n=claim.number,
            kind=kind,
            attempt=claim.attempt,
            worker=self._keeper.worker,
            at=now,
            error=failure if failure is not None else UNSET,
            retry_at=now + timedelta(seconds=delay_s) if delay_s is not None else UNSET,
            scheduled=is_scheduled or UNSET,
        )
        data = record.encode(note)
        subject = subjects.attempt(claim.capability, claim.task_id, claim.number)
        claim.number += 1
        try:
            # the lease is held meanwhile: it never gives a claim up
            await outlast(lambda: self._bus.store(Write(subject, data, again=True)), clock=self._clock)
        except ConflictError:
            # perhaps our own write, whose answer got lost
            standing = await outlast(
                lambda: self._bus.get_last(subjects.LEDGER, subject, from_leader=True), clock=self._clock
            )
            return standing is not None and standing.data == data
        return True

    async def _history(self, claim: Claim) -> list[AttemptRecord]:
        if claim.number == 1:
            return []
        wildcard = subjects.attempts(claim.capability, claim.task_id)
        read = partial(self._bus.get_many, subjects.LEDGER, [wildcard], from_leader=True)
        return read_history(await outlast(read, clock=self._clock))

    # --- answers

    def _lapse(self, claim: Claim) -> None:
        """Let go of a claim that may be somebody else's by now; redelivery brings it again."""
        _log.warning(events.LEASE_LAPSED, **_who(claim))
        self._forget(claim, "lapsed")

    def _forget(self, claim: Claim, name: str) -> None:
        self._keeper.drop(claim)
        self._told.settled(claim, name)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._soon(self._start_flush)

    def _start_flush(self) -> None:
        self._spawn(self._flush(), "settle-flush")

    async def _flush(self) -> None:
        acks, self._acks = self._acks, []
        notices, self._notices = self._notices, []
        self._flushing = False
        try:
            if acks:
                if crash.point:
                    crash.at("before-ack")
                await self._bus.ack(acks)
        except BusError:
            # repaired by redelivery; its notice is not sent, as the waiter looks at the ledger
            return
        for subject, data in notices:
            with contextlib.suppress(CallboardError):
                await self._bus.publish(subject, data)


def _who(claim: Claim) -> dict[str, object]:
    return {"task": claim.task_id, "capability": claim.capability}


def _why(failure: Failure) -> dict[str, object]:
    """Return what a log may say of a failure: no message, which may quote the payload."""
    return {"code": failure.code} if failure.type is UNSET else {"code": failure.code, "type": failure.type}


def read_history(found: list[Any]) -> list[AttemptRecord]:
    """Return the attempt records among stored messages, by number; foreign ones are left out."""
    history = []
    for stored in found:
        try:
            history.append(record.decode_attempt(stored.data))
        except CallboardError:
            continue
    return sorted(history, key=lambda item: item.n)
