"""A pool: the slots that serve one capability in one worker process.

Slot first, then pull: credit is given only for free slots, so a worker never sits on work it cannot start.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime
from typing import Any

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.admission import NO_SLOT_RETURN_S, Admission
from callboard.runtime.beat import CapabilityLoad
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Delivery, Pull
from callboard.runtime.capability import Capability
from callboard.runtime.claim import Claim, Stage, StopReason
from callboard.runtime.clock import Clock
from callboard.runtime.commit import Committer
from callboard.runtime.context import TaskContext
from callboard.runtime.doubt import FIRST_S, Doubt
from callboard.runtime.envelope import parse_deadline
from callboard.runtime.errors import BusError, InputError, TaskCancelledError
from callboard.runtime.lanes import PULL_LANES, Lanes, PullLane
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.outcome import Cancelled, Failed, Outcome, Returned
from callboard.runtime.pulls import open_pulls
from callboard.runtime.questions import Questions
from callboard.runtime.record import failure_of
from callboard.runtime.screen import needs_questions
from callboard.runtime.settle import Settler
from callboard.runtime.slot import Slot
from callboard.runtime.stats import AGAIN, FINAL, PoolStats
from callboard.runtime.subjects import Lane

MAX_STALL_S = 2.0
OPEN_AGAIN_S = 0.5
# A claim beyond the slots waits this long for one: shorter than handing it round, and the next free slot is its own.
OVERSHOOT_WAIT_S = 0.1
# Parked credit of the lanes without backlog.
OVERSHOOT_CLAIMS = len(PULL_LANES)
# The slots are the limit; a thread starts only when no idle one is left.
MAX_THREADS = 1024


class PoolRules(Struct, frozen=True, kw_only=True):
    """Numbers of a pool; see ``docs/configuration.md``, section work."""

    crash_limit: int = 3
    quarantine_s: float = 4.0
    max_backlog: int = 2048


# None when the worker is going down and starts nothing more.
Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None] | None"]


class Pool:
    """Slots, ready claims and credit of one capability. All methods run on the worker's loop.

    Attributes:
        slots: Places; may be changed while it runs.
        running: Slots that run a task now, by the claim's token.
        is_paused: True while an operator holds the capability back.
        share: The pools that use these slots together, this one among them: a capability and its pools by label. None
            when it has them for itself.
        lingering: Slots whose run was stopped and whose thread still goes on, and since when (monotonic seconds).
    """

    def __init__(
        self,
        capability: Capability[..., Any],
        *,
        slots: int,
        bus: Bus,
        settler: Settler,
        committer: Committer,
        keeper: LeaseKeeper,
        questions: Questions,
        blobs: BlobStore,
        clock: Clock,
        rules: PoolRules,
        spawn: Spawn,
    ) -> None:
        """Prepare; nothing is pulled before ``open``."""
        self.capability = capability
        self.slots = slots
        self.clock = clock
        self.stats = PoolStats()
        self.ready: deque[Claim] = deque()
        self.running: dict[str, Slot] = {}
        self.share: list[Pool] | None = None
        self.is_paused = False
        self.is_draining = False
        self.executor: Executor | None = None
        self._bus = bus
        self._settler = settler
        self._committer = committer
        self._keeper = keeper
        self._rules = rules
        self._spawn = spawn
        self._lanes = Lanes()
        self._pulls: dict[PullLane, Pull] = {}
        self._arrived: list[tuple[PullLane, Delivery]] = []
        self._idle: list[Slot] = []
        self._busy: set[Slot] = set()
        self._is_open = False
        self._opened_s = clock.monotonic()
        self._opening = asyncio.Lock()
        self._next_due = False
        self.lingering: dict[Slot, float] = {}
        self.doubt = Doubt(bus, capability.name, clock=clock, spawn=self._fire)
        self._loop = asyncio.get_running_loop()
        # slots run in copies of this: what starts one may be a handler that left its own variables behind
        self._clean = contextvars.copy_context()
        self._admission = self._make_admission(questions, blobs)

    def _make_admission(self, questions: Questions, blobs: BlobStore) -> Admission:
        return Admission(
            self,
            bus=self._bus,
            settler=self._settler,
            keeper=self._keeper,
            questions=questions,
            blobs=blobs,
            clock=self.clock,
            crash_limit=self._rules.crash_limit,
            quarantine_s=self._rules.quarantine_s,
            fire=self._fire,
        )

    # --- life

    @property
    def is_closed(self) -> bool:
        """Whether nothing may begin here now."""
        return self.is_draining or self.is_paused

    async def open(self) -> None:
        """Open the pulls of every lane and give the first credit; while it is paused, once it is resumed.

        Raises:
            NotFoundError: If a consumer is missing.
        """
        self._is_open = True
        await self._follow()

    async def pause(self) -> None:
        """Take no new task; running ones go on."""
        self.is_paused = True
        await self._follow()

    async def resume(self) -> None:
        """Take tasks again; repeated until the broker can be asked.

        Raises:
            NotFoundError: If a consumer is missing.
        """
        self.is_paused = False
        while True:
            try:
                return await self._follow()
            except BusError as error:
                if not error.retryable:
                    raise
            await self.clock.sleep(OPEN_AGAIN_S)

    async def drain(self) -> None:
        """Stop pulling and give back what has not begun; running tasks go on."""
        self.is_draining = True
        await self._follow()
        while self.ready:
            self._settler.settle(self.ready.popleft(), Returned(NO_SLOT_RETURN_S))

    def shut(self) -> None:
        """Let go of slots whose thread or handler will not end, and of the threads; the process is about to end."""
        for slot in list(self._busy):
            if slot.task is not None:
                slot.is_shut = True
                slot.task.cancel()
        if self.executor is not None:
            self.executor.shutdown(wait=False, cancel_futures=True)

    async def _follow(self) -> None:
        """Open or close the pulls, as is wanted when our turn comes; orders may follow each other closely."""
        async with self._opening:
            if self.is_closed or not self._is_open:
                pulls, self._pulls, self._lanes = self._pulls, {}, Lanes()
                for pull in pulls.values():
                    # what still arrives is handed back
                    await pull.close()
            elif not self._pulls:
                if not self.capability.is_async and self.executor is None:
                    self.executor = ThreadPoolExecutor(
                        max(self.slots, MAX_THREADS), thread_name_prefix=f"cb-{self.capability.name}"
                    )
                await self.doubt.begin()
                # all at once: credit is given over all lanes or none
                self._pulls = await open_pulls(self._bus, self.capability.name, self._hear)
        self._regrant()

    def stop_running(self, reason: StopReason, *, which: Callable[[Claim], bool]) -> int:
        """Cancel those running tasks for ``reason`` that ``which`` names; return how many."""
        found = [(slot, claim) for slot in self.running.values() if (claim := slot.claim) is not None and which(claim)]
        for slot, claim in found:
            self._stop(slot, claim, reason, "")
        return len(found)

    def cancel(self, task_id: str, text: str) -> bool:
        """Cancel a task this pool runs or is about to run; False when it has none of that id."""
        for slot in list(self.running.values()):
            if slot.claim is not None and slot.claim.task_id == task_id:
                self._stop(slot, slot.claim, "cancel", text)
                return True
        for claim in self.ready:
            if claim.task_id == task_id:
                self.ready.remove(claim)
                self._settler.settle(claim, Cancelled(failure_of(TaskCancelledError(text or "cancelled"))))
                return True
        for claim in self._admission.claims.values():
            if claim.task_id == task_id:
                # not ours to answer for yet: somebody else may be running it
                claim.stop_reason, claim.stop_text = "cancel", text
        return False

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits or is being asked about."""
        return not (self.running or self.ready or self._admission.claims or self._busy)

    def load(self) -> CapabilityLoad:
        """Return what the heartbeat says of this pool."""
        name, claims = self.capability.name, list(self._keeper.claims.values())
        return CapabilityLoad(
            name=name,
            type=self.capability.actor_type,
            pool=self.capability.pool,
            slots=self.slots,
            busy=len(self.running),
            unsettled=sum(claim.stage is Stage.SETTLING and claim.capability == name for claim in claims),
            backlog=sum(self._lanes.backlog.values()),
            is_paused=self.is_paused,
            ended=self.stats.total(FINAL),
            again=self.stats.total(AGAIN),
            run_times_s=self.stats.latest.sample(),
            newest=dict(self.doubt.newest),
        )

    def last_fetch(self) -> float | None:
        """Return the monotonic second when the broker last answered one of our pulls; None when none is open."""
        return max((pull.last_heard for pull in self._pulls.values()), default=None)

    def problem(self) -> str | None:
        """Return why a pull cannot work, or None."""
        return next((pull.problem for pull in self._pulls.values() if pull.problem), self._admission.problem)

    # --- arrival

    def _hear(self, lane: PullLane, delivery: Delivery) -> None:
        if not self._arrived:
            self._loop.call_soon(self._take_in_or_end)
        self._arrived.append((lane, delivery))

    def _take_in_or_end(self) -> None:
        try:
            self._take_in()
        except Exception as error:  # noqa: BLE001 - whatever it is: a loop callback's error would only be logged
            # a worker that lives and claims nothing is worse than one that ends: end it, others take over
            self._fire(_fail(error), "pool-failed")

    def _take_in(self) -> None:
        now_s = self.clock.monotonic()
        now = self.clock.now()
        wall_s = now.timestamp()
        self.doubt.look()
        arrived = self._arrived[:]
        self._arrived.clear()
        stalled = now_s - self._keeper.loop_ticked_at > MAX_STALL_S
        asked: list[Claim] = []
        is_young = now_s - self._opened_s < FIRST_S
        # it may have lain in the socket for as long as this process stood still
        is_late = now_s - self._keeper.stalled_at < FIRST_S
        for lane, delivery in arrived:
            self._lanes.delivered(lane, pending=delivery.pending)
            if stalled:
                # it may have lain in the socket while this process was stopped or its loop blocked, and be somebody
                # else's by now: say nothing, the broker hands it out again
                self.stats.stalled += 1
                continue
            if delivery.token in self._keeper.claims:
                # a server that lost its last moments hands out the very delivery that we have already
                continue
            self.stats.wait_time.observe(max(0.0, wall_s - delivery.time_ns / 1e9))
            claim = self._claim(delivery, lane, now_s, now)
            claim.is_doubtful = self.doubt.is_doubtful(lane, delivery)
            self._keeper.add(claim)
            if is_late or (is_young and self.doubt.is_early(lane, delivery.seq, now_s)):
                claim.must_ask = True
            if delivery.headers is not None or delivery.delivered > 1 or claim.is_doubtful or claim.must_ask:
                self._sort(claim, now, asked)
            else:
                self.make_ready(claim)
        if asked:
            self._admission.add(asked)
        self._start_slots()
        self._regrant()

    def _claim(self, delivery: Delivery, lane: PullLane, now_s: float, now: datetime) -> Claim:
        # each lane has a consumer of its own; a schedule's firing names its lane in a header
        own_lane: Lane = "normal" if lane == "due" else lane
        claim = Claim(delivery, capability=self.capability.name, lane=own_lane, now_s=now_s, now=now)
        claim.linked_at = self.doubt.linked_at
        self.stats.claimed += 1
        return claim

    def _taken_in_all(self) -> int:
        return self._taken() if self.share is None else sum(pool._taken() for pool in self.share)  # noqa: SLF001 - ours

    def _busy_in_all(self) -> int:
        return len(self._busy) if self.share is None else sum(len(pool._busy) for pool in self.share)  # noqa: SLF001

    def _taken(self) -> int:
        return len(self.running) + len(self.lingering) + len(self.ready) + len(self._admission.claims)

    def _sort(self, claim: Claim, now: datetime, asked: list[Claim]) -> None:
        """Send a claim with headers, or a redelivered one, to where it belongs."""
        headers = claim.delivery.headers or {}
        try:
            if claim.problem is not None:
                raise claim.problem
            claim.context_deadline = deadline = parse_deadline(headers.get(header.DEADLINE))
            due = parse_deadline(headers.get(header.NOT_BEFORE))
        except InputError as error:
            self._settler.settle(claim, Failed(failure_of(error)))
            return
        is_known = needs_questions(
            delivered=claim.delivery.delivered, attempt=claim.attempt, has_client_id=claim.has_client_id
        )
        if due is not None and due > now:
            self._settler.defer(claim, due)
        elif is_known or claim.is_doubtful or claim.must_ask or header.CLAIM_CHECK in headers:
            # also when no slot is free or the pool is closed: until we know that nobody else is running it we may
            # neither hand it back nor write down that it was
            asked.append(claim)
        elif deadline is not None and deadline <= now:
            self._admission.expire(claim)
        else:
            self.make_ready(claim)

    def make_ready(self, claim: Claim) -> None:
        """Take a claim that may run; the caller starts the slots. Without room it is handed back."""
        if self.is_closed or self._taken_in_all() >= self.slots + OVERSHOOT_CLAIMS:
            self._settler.settle(claim, Returned(NO_SLOT_RETURN_S))
            return
        claim.ready_at = self.clock.monotonic()
        if claim.lane != "high":
            self.ready.append(claim)
            return
        place = next((n for n, other in enumerate(self.ready) if other.lane != "high"), len(self.ready))
        self.ready.insert(place, claim)

    def was_judged(self) -> None:
        """Look again what can be started and asked for."""
        self._start_slots()
        self._regrant()

    # --- slots

    def next_is_due(self) -> None:
        """Start further slots in the next loop turn, if claims are still ready then."""
        if not self._next_due:
            self._next_due = True
            self._loop.call_soon(self._start_next)

    def _start_next(self) -> None:
        self._next_due = False
        self._start_slots()

    def _start_slots(self) -> None:
        while self.ready and self._busy_in_all() < self.slots:
            starting = len(self._busy) - len(self.running) - len(self.lingering)
            if starting >= len(self.ready) or (starting and not self.running):
                # a slot was started in this turn and has not begun: it may well do everything by itself
                return
            slot = self._idle.pop() if self._idle else Slot(self)
            slot.task = self._clean.run(self._spawn, slot.run(), f"slot-{self.capability.name}")
            if slot.task is None:
                return
            self._busy.add(slot)

    def rested(self, slot: Slot) -> None:
        """Take a slot back; its task has ended."""
        self._busy.discard(slot)
        self._idle.append(slot)
        for pool in self.share or ():
            if pool is not self:
                # they had to wait for us: their turn comes first
                pool.was_judged()
        if self.ready:
            self._start_slots()
        self._regrant()

    def may_begin(self, claim: Claim) -> bool:
        """Return whether a claim is still ours; one whose lease lapsed before its run is let go of."""
        has_lapsed = self._keeper.has_lapsed(claim)
        if has_lapsed:
            # this process was stopped or cut off since it came: somebody else may be running it
            self._settler.drop(claim)
        return not has_lapsed

    def context_of(self, claim: Claim) -> TaskContext:
        """Return what the handler may know of ``claim``."""
        return TaskContext(
            task_id=claim.task_id,
            capability=claim.capability,
            attempt=claim.attempt,
            lane=claim.lane,
            deadline=claim.context_deadline,
            headers=dict(claim.delivery.headers or {}),
            worker=self._keeper.worker,
            bus=self._bus,
            clock=self.clock,
            send=self._send_progress,
            stopping=lambda: self.is_draining,
        )

    def finished(self, claim: Claim, outcome: Outcome) -> None:
        """Settle a run that ended."""
        if claim.started_at is not None:
            self.stats.ran(self.clock.monotonic() - claim.started_at)
        self._settler.settle(claim, outcome)

    def sweep(self, now_s: float, now: datetime) -> None:
        """Stop runs that are over their time, hand back what found no slot; the worker calls it every 50 ms."""
        limit_s = self.capability.timeout_s
        for slot in list(self.running.values()):
            claim = slot.claim
            if claim is None or claim.stop_reason is not None or claim.started_at is None:
                continue
            if limit_s is not None and now_s - claim.started_at > limit_s:
                self._stop(slot, claim, "timeout", "")
            elif claim.context_deadline is not None and now > claim.context_deadline:
                self._stop(slot, claim, "deadline", "")
        if self._busy_in_all() >= self.slots:
            while self.ready and now_s - self.ready[-1].ready_at > OVERSHOOT_WAIT_S:
                self._settler.settle(self.ready.pop(), Returned(NO_SLOT_RETURN_S))
        if not self._arrived:
            # what a pull still has to deliver is known best by itself
            self._lanes.correct({lane: pull.credit for lane, pull in self._pulls.items()}, now_s)
        self._start_slots()
        self._regrant()

    def _stop(self, slot: Slot, claim: Claim, reason: StopReason, text: str) -> None:
        if slot.task is not None and claim.stop_reason is None:
            claim.stop_reason = reason
            claim.stop_text = text
            slot.task.cancel()

    def _send_progress(self, task_id: str, data: bytes) -> None:
        subject = subjects.task_event(task_id)
        # a handler in a thread calls this too
        self._loop.call_soon_threadsafe(lambda: self._fire(self._publish_progress(subject, data), "progress"))

    async def _publish_progress(self, subject: str, data: bytes) -> None:
        try:
            await self._bus.publish(subject, data, headers={header.TTL: "3600s"})
        except BusError:
            return

    def _fire(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        # the worker's task group owns it
        _ = self._spawn(coroutine, name)

    # --- credit

    def _regrant(self) -> None:
        if self.is_closed or not self._pulls:
            return
        if self._committer.backlog > self._rules.max_backlog:
            return
        free = self.slots - self._taken_in_all()
        if self.share is not None:
            free -= sum(pool._lanes.committed() for pool in self.share if pool is not self)  # noqa: SLF001 - ours
        if free * 2 < self.slots and self._lanes.committed() > 0:
            # enough is on its way: ask in larger pieces
            return
        for lane, count in self._lanes.allot(free).items():
            self._pulls[lane].grant(count)


async def _fail(error: Exception) -> None:
    raise error
