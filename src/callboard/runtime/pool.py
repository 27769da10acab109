"""A pool: the slots that serve one capability in one worker process.

Slot first, then pull: credit is given only for free slots, so a worker never sits on work it cannot start.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime
from typing import Any

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.beat import CapabilityLoad
from callboard.runtime.blobs import BlobStore, parse_claim
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Delivery, Pull
from callboard.runtime.capability import Capability
from callboard.runtime.claim import Claim, Stage, StopReason, parse_deadline
from callboard.runtime.clock import Clock
from callboard.runtime.commit import Committer
from callboard.runtime.context import TaskContext
from callboard.runtime.doubt import Doubt
from callboard.runtime.errors import BusError, CallboardError, CrashLimitError, DeadlineError, InputError
from callboard.runtime.lanes import PULL_LANES, Lanes, PullLane
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.outcome import Expired, Failed, Outcome, Returned
from callboard.runtime.questions import Answers, Questions
from callboard.runtime.record import failure_of
from callboard.runtime.screen import Bury, Drop, Reschedule, Run, Skip, Wait, needs_questions, screen
from callboard.runtime.settle import Settler
from callboard.runtime.slot import Slot
from callboard.runtime.stats import PoolStats

NO_SLOT_RETURN_S = 0.01
SWEEP_S = 0.05
MAX_STALL_S = 2.0


class PoolRules(Struct, frozen=True, kw_only=True):
    """Numbers of a pool; see ``docs/configuration.md``, section work."""

    crash_limit: int = 3
    quarantine_s: float = 4.0
    max_backlog: int = 2048


Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Pool:
    """Slots, ready claims and credit of one capability. All methods run on the worker's loop.

    Attributes:
        slots: Places; may be changed while it runs.
        running: Slots that run a task now, by the claim's token.
        is_paused: True while an operator holds the capability back.
        lingering: Slots whose task is settled and whose thread still runs.
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
        self.is_paused = False
        self.is_draining = False
        self.executor: Executor | None = None
        self._bus = bus
        self._settler = settler
        self._committer = committer
        self._keeper = keeper
        self._questions = questions
        self._blobs = blobs
        self._rules = rules
        self._spawn = spawn
        self._lanes = Lanes()
        self._pulls: dict[PullLane, Pull] = {}
        self._screening: dict[str, Claim] = {}
        self._arrived: list[tuple[PullLane, Delivery]] = []
        self._idle: list[Slot] = []
        self._active = 0
        self._next_due = False
        self.lingering = 0
        self._suspect = asyncio.Lock()
        self._doubt = Doubt(bus, clock=clock, spawn=self._fire)
        self._loop = asyncio.get_running_loop()

    # --- life

    async def open(self) -> None:
        """Open the pulls of every lane and give the first credit.

        Raises:
            NotFoundError: If a consumer is missing.
        """
        if not self.capability.is_async and self.executor is None:
            self.executor = ThreadPoolExecutor(self.slots, thread_name_prefix=f"cb-{self.capability.name}")
        pulls = {lane: await self._open_lane(lane) for lane in PULL_LANES}
        # all at once: a grant in the middle of opening would meet lanes without a pull
        self._pulls = pulls
        self._regrant()

    async def close_pulls(self) -> None:
        """Withdraw all credit; what still arrives is handed back."""
        pulls, self._pulls = self._pulls, {}
        for pull in pulls.values():
            await pull.close()
        self._lanes = Lanes()

    async def pause(self) -> None:
        """Take no new task; running ones go on."""
        if not self.is_paused:
            self.is_paused = True
            await self.close_pulls()

    async def resume(self) -> None:
        """Take tasks again."""
        if self.is_paused:
            self.is_paused = False
            if not self.is_draining:
                await self.open()

    async def drain(self) -> None:
        """Stop pulling and give back what has not begun; running tasks go on."""
        self.is_draining = True
        await self.close_pulls()
        while self.ready:
            self._settler.settle(self.ready.popleft(), Returned(NO_SLOT_RETURN_S))

    def stop_running(self, reason: StopReason, text: str = "") -> int:
        """Cancel every running task for ``reason``; return how many."""
        slots = [slot for slot in self.running.values() if slot.claim is not None]
        for slot in slots:
            if slot.claim is not None:
                self._stop(slot, slot.claim, reason, text)
        return len(slots)

    def cancel(self, task_id: str, text: str) -> bool:
        """Cancel a task this pool runs or is about to run; False when it has none of that id."""
        for slot in list(self.running.values()):
            if slot.claim is not None and slot.claim.task_id == task_id:
                self._stop(slot, slot.claim, "cancel", text)
                return True
        return False

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits or is being asked about."""
        return not (self.running or self.ready or self._screening or self._active)

    def load(self) -> CapabilityLoad:
        """Return what the heartbeat says of this pool."""
        return CapabilityLoad(
            name=self.capability.name,
            pool=self.capability.pool,
            slots=self.slots,
            busy=len(self.running),
            unsettled=self._committer.backlog,
            backlog=sum(self._lanes.backlog.values()),
            is_paused=self.is_paused,
        )

    def last_fetch(self) -> float | None:
        """Return the monotonic second when the broker last answered one of our pulls; None when none is open."""
        return max((pull.last_heard for pull in self._pulls.values()), default=None)

    def problem(self) -> str | None:
        """Return why a pull cannot work, or None."""
        return next((pull.problem for pull in self._pulls.values() if pull.problem), None)

    # --- arrival

    async def _open_lane(self, lane: PullLane) -> Pull:
        name = self.capability.name
        if lane == "due":
            stream, consumer = subjects.LATER, subjects.due_consumer(name)
        else:
            stream, consumer = subjects.WORK, subjects.consumer(name, lane)
        arrived = self._arrived

        def sink(delivery: Delivery) -> None:
            if not arrived:
                self._loop.call_soon(self._take_in)
            arrived.append((lane, delivery))

        return await self._bus.pull(stream, consumer, sink)

    def _take_in(self) -> None:
        now_s = self.clock.monotonic()
        now = self.clock.now()
        self._doubt.look()
        arrived = self._arrived[:]
        self._arrived.clear()
        stalled = now_s - self._keeper.loop_ticked_at > MAX_STALL_S
        asked: list[Claim] = []
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
            claim = self._claim(delivery, now_s, now)
            claim.is_doubtful = delivery.seq <= self._doubt.up_to[lane]
            self._keeper.add(claim)
            if self.is_draining or self.is_paused or self._taken() >= self.slots:
                self._settler.settle(claim, Returned(NO_SLOT_RETURN_S))
            elif claim.delivery.headers is not None or claim.delivery.delivered > 1 or claim.is_doubtful:
                self._sort(claim, now, asked)
            else:
                self.ready.append(claim)
        if asked:
            self._fire(self._screen(asked), "pool-screen")
        self._start_slots()
        self._regrant()

    def _claim(self, delivery: Delivery, now_s: float, now: datetime) -> Claim:
        _, lane = subjects.split_task(delivery.subject)
        claim = Claim(delivery, capability=self.capability.name, lane=lane, now_s=now_s, now=now)
        claim.linked_at = self._doubt.linked_at
        self.stats.claimed += 1
        self.stats.wait_time.observe(max(0.0, now.timestamp() - delivery.time_ns / 1e9))
        return claim

    def _taken(self) -> int:
        return len(self.running) + self.lingering + len(self.ready) + len(self._screening)

    def _sort(self, claim: Claim, now: datetime, asked: list[Claim]) -> None:
        """Send a claim with headers, or a redelivered one, to where it belongs."""
        headers = claim.delivery.headers or {}
        try:
            deadline = parse_deadline(headers.get(header.DEADLINE))
        except InputError as error:
            self._settler.settle(claim, Failed(failure_of(error)))
            return
        claim.context_deadline = deadline
        is_known = needs_questions(
            delivered=claim.delivery.delivered, attempt=claim.attempt, has_client_id=claim.has_client_id
        )
        if is_known or claim.is_doubtful or header.CLAIM_CHECK in headers:
            claim.stage = Stage.SCREENING
            self._screening[claim.token] = claim
            asked.append(claim)
        elif deadline is not None and deadline <= now:
            self._expire(claim)
        else:
            self.ready.append(claim)

    def _expire(self, claim: Claim) -> None:
        stamp = claim.context_deadline.isoformat() if claim.context_deadline is not None else ""
        self._settler.settle(claim, Expired(failure_of(DeadlineError(f"the deadline {stamp} passed before it ran"))))

    # --- screening

    async def _screen(self, claims: list[Claim]) -> None:
        fresh = [claim for claim in claims if claim.delivery.delivered == 1 and not claim.is_doubtful]
        again = [claim for claim in claims if claim.delivery.delivered > 1 or claim.is_doubtful]
        if fresh:
            self._judge(fresh, await self._persist(lambda: self._questions.ask(fresh)))
        if not again:
            return
        # most redeliveries are retries: their last run wrote down how it ended, so nobody can be running them
        answers = await self._persist(lambda: self._questions.read_ledger(again))
        closed = [answer.is_closed for answer in answers]
        known = [(c, a) for c, a, is_closed in zip(again, answers, closed, strict=True) if is_closed]
        self._judge([c for c, _ in known], [a for _, a in known])
        unknown = [claim for claim, is_closed in zip(again, closed, strict=True) if not is_closed]
        if unknown:
            # for a few seconds after our own reconnect the holder may not be back yet: keep the claim, run nothing
            wait_s = self._bus.connected_at + self._rules.quarantine_s - self.clock.monotonic()
            if wait_s > 0:
                await self.clock.sleep(wait_s)
            self._judge(unknown, await self._persist(lambda: self._questions.ask(unknown)))

    async def _persist(self, ask: Callable[[], Coroutine[Any, Any, list[Answers]]]) -> list[Answers]:
        """Ask until there is an answer, with the leases held: without one nothing may be run."""
        delay_s = 0.1
        while True:
            try:
                return await ask()
            except BusError:
                await self.clock.sleep(delay_s)
                delay_s = min(2.0, delay_s * 2)

    def _judge(self, claims: Sequence[Claim], answers: Sequence[Answers]) -> None:
        now = self.clock.now()
        for claim, answer in zip(claims, answers, strict=True):
            verdict = screen(
                delivered=claim.delivery.delivered,
                header_attempt=claim.attempt,
                is_recorded=answer.is_recorded,
                is_held=answer.is_held,
                history=answer.history,
                crash_limit=self._rules.crash_limit,
                now=now,
            )
            self._fire(self._apply(claim, verdict), "pool-verdict")

    async def _apply(self, claim: Claim, verdict: object) -> None:
        try:
            match verdict:
                case Skip():
                    self._settler.skip(claim)
                case Drop():
                    self._settler.drop(claim)
                case Wait(delay_s):
                    await self._settler.postpone(claim, delay_s)
                case Reschedule(failed):
                    await self._settler.reschedule(claim, failed)
                case Bury(attempt, crashes, next_n):
                    claim.attempt, claim.crashes, claim.number = attempt, crashes, next_n
                    text = f"its worker died {crashes} times while it ran: the crash limit is {self._rules.crash_limit}"
                    self._settler.settle(claim, Failed(failure_of(CrashLimitError(text))))
                case Run():
                    await self._admit(claim, verdict)
        except CallboardError:
            # the broker did not take an answer: the lease is let go and redelivery brings the task again
            self._settler.drop(claim)
        finally:
            self._screening.pop(claim.token, None)
            self._start_slots()
            self._regrant()

    async def _admit(self, claim: Claim, verdict: Run) -> None:
        claim.attempt, claim.crashes, claim.number = verdict.attempt, verdict.crashes, verdict.next_n
        claim.is_restart, claim.is_suspect = verdict.is_restart, verdict.is_suspect
        if claim.context_deadline is not None and claim.context_deadline <= self.clock.now():
            self._expire(claim)
            return
        if header.CLAIM_CHECK in (claim.delivery.headers or {}) and not await self._fetch_payload(claim):
            return
        if not verdict.is_suspect:
            await self._ready(claim)
            return
        # a task that died with its worker twice runs with no other such task beside it, so that only it can be blamed
        async with self._suspect:
            await self._ready(claim)
            while claim.stage in (Stage.READY, Stage.RUNNING):
                await self.clock.sleep(SWEEP_S)

    async def _ready(self, claim: Claim) -> None:
        if claim.linked_at != self._bus.connected_at or self._keeper.has_lapsed(claim):
            # the link was lost while it was asked about: the broker hands it out again, to us or to somebody else
            self._settler.drop(claim)
        elif claim.is_restart and not await self._settler.note_start(claim):
            self._settler.drop(claim)
        elif self.is_draining:
            self._settler.settle(claim, Returned(NO_SLOT_RETURN_S))
        else:
            claim.stage = Stage.READY
            self._screening.pop(claim.token, None)
            self.ready.append(claim)
            self._start_slots()

    async def _fetch_payload(self, claim: Claim) -> bool:
        try:
            ref = parse_claim((claim.delivery.headers or {})[header.CLAIM_CHECK])
            claim.payload = await self._blobs.get(ref)
        except BusError as error:
            if error.retryable:
                raise
            self._settler.settle(claim, Failed(failure_of(error)))
            return False
        except CallboardError as error:
            self._settler.settle(claim, Failed(failure_of(error)))
            return False
        return True

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
        while self.ready and self._active < self.slots:
            if self._active and not self.running:
                # a slot was started in this turn and has not begun: it may well do everything by itself
                return
            slot = self._idle.pop() if self._idle else Slot(self)
            self._active += 1
            slot.task = self._spawn(slot.run(), f"slot-{self.capability.name}")
            if len(self.ready) <= self._active - len(self.running):
                return

    def rested(self, slot: Slot) -> None:
        """Take a slot back; its task has ended."""
        self._active -= 1
        self._idle.append(slot)
        if self.ready:
            self._start_slots()
        self._regrant()

    def may_begin(self, claim: Claim) -> bool:
        """Return whether a claim is still ours; if not, as after a stop of this process, it is let go of."""
        has_lapsed = self._keeper.has_lapsed(claim)
        if has_lapsed:
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
        )

    def finished(self, claim: Claim, outcome: Outcome) -> None:
        """Settle a run that ended."""
        if claim.started_at is not None:
            self.stats.started += 1
            self.stats.run_time.observe(self.clock.monotonic() - claim.started_at)
        self._settler.settle(claim, outcome)

    def sweep(self, now_s: float, now: datetime) -> None:
        """Stop runs that are over their time; the worker calls it every 50 ms."""
        limit_s = self.capability.timeout_s
        for slot in list(self.running.values()):
            claim = slot.claim
            if claim is None or claim.stop_reason is not None or claim.started_at is None:
                continue
            if limit_s is not None and now_s - claim.started_at > limit_s:
                self._stop(slot, claim, "timeout", "")
            elif claim.context_deadline is not None and now > claim.context_deadline:
                self._stop(slot, claim, "deadline", "")
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
        if self.is_paused or self.is_draining or not self._pulls:
            return
        if self._committer.backlog > self._rules.max_backlog:
            return
        free = self.slots - self._taken()
        if free * 2 < self.slots and self._lanes.committed() > 0:
            # enough is on its way: ask in larger pieces
            return
        for lane, count in self._lanes.allot(free).items():
            self._pulls[lane].grant(count)
