"""Admission: whether a claim that may have run before is run now, and what it needs before it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from callboard.runtime.blobs import BlobStore, parse_claim
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus
from callboard.runtime.claim import Claim, Stage
from callboard.runtime.clock import Clock
from callboard.runtime.errors import (
    BusError,
    CallboardError,
    CrashLimitError,
    DeadlineError,
    TaskCancelledError,
)
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.outcome import Cancelled, Expired, Failed, Returned
from callboard.runtime.questions import Answers, Questions
from callboard.runtime.record import failure_of
from callboard.runtime.screen import Bury, Drop, Reschedule, Run, Skip, Verdict, Wait, screen
from callboard.runtime.settle import Settler

WATCH_S = 0.05
NO_SLOT_RETURN_S = 0.01


class AdmissionHost(Protocol):
    """What admission needs of its pool."""

    @property
    def is_closed(self) -> bool:
        """Whether nothing may begin here now: the pool drains or is paused."""
        ...

    def make_ready(self, claim: Claim) -> None:
        """Take a claim that may run."""
        ...

    def was_judged(self) -> None:
        """Look again what can be started and asked for: a claim has left admission."""
        ...


class Admission:
    """Claims of one pool that are being asked about, by token in ``claims``."""

    def __init__(
        self,
        host: AdmissionHost,
        *,
        bus: Bus,
        settler: Settler,
        keeper: LeaseKeeper,
        questions: Questions,
        blobs: BlobStore,
        clock: Clock,
        crash_limit: int,
        quarantine_s: float,
        fire: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        """Prepare.

        Args:
            host: Where admitted claims go.
            bus: The worker's connection.
            settler: Ends what is not admitted.
            keeper: Knows whether a claim is still ours.
            questions: Asks ledger and workers.
            blobs: Where large payloads lie.
            clock: Time.
            crash_limit: Crashes after which a task is buried.
            quarantine_s: How long after our own reconnect no redelivery is run.
            fire: Starts a named task in the worker's task group.
        """
        self.claims: dict[str, Claim] = {}
        self.problem: str | None = None
        self._host = host
        self._bus = bus
        self._settler = settler
        self._keeper = keeper
        self._questions = questions
        self._blobs = blobs
        self._clock = clock
        self._crash_limit = crash_limit
        self._quarantine_s = quarantine_s
        self._fire = fire
        self._suspect = asyncio.Lock()

    def add(self, claims: list[Claim]) -> None:
        """Ask about ``claims``; each is admitted, settled or dropped in the end."""
        for claim in claims:
            claim.stage = Stage.SCREENING
            self.claims[claim.token] = claim
        self._fire(self._screen(claims), "pool-screen")

    def expire(self, claim: Claim) -> None:
        """End a claim whose deadline passed before it ran."""
        stamp = claim.context_deadline.isoformat() if claim.context_deadline is not None else ""
        self._settler.settle(claim, Expired(failure_of(DeadlineError(f"the deadline {stamp} passed before it ran"))))

    # --- asking

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
        before = [answer for answer in answers if not answer.is_closed]
        if unknown:
            # for a few seconds after our own reconnect the holder may not be back yet: keep the claim, run nothing
            wait_s = self._bus.connected_at + self._quarantine_s - self._clock.monotonic()
            if wait_s > 0:
                await self._clock.sleep(wait_s)
            self._judge(unknown, await self._persist(lambda: self._questions.ask(unknown, before)))

    async def _persist(self, ask: Callable[[], Coroutine[Any, Any, list[Answers]]]) -> list[Answers]:
        """Ask until there is an answer, with the leases held: without one nothing may be run."""
        delay_s = 0.1
        while True:
            try:
                answers = await ask()
            except BusError as error:
                self.problem = f"the ledger cannot be read: {error.code}: {error}"
                await self._clock.sleep(delay_s)
                delay_s = min(2.0, delay_s * 2)
            else:
                self.problem = None
                return answers

    # --- judging

    def _judge(self, claims: Sequence[Claim], answers: Sequence[Answers]) -> None:
        now = self._clock.now()
        for claim, answer in zip(claims, answers, strict=True):
            verdict = screen(
                delivered=claim.delivery.delivered,
                header_attempt=claim.attempt,
                is_recorded=answer.is_recorded,
                is_held=answer.is_held,
                history=answer.history,
                crash_limit=self._crash_limit,
                now=now,
            )
            self._fire(self._apply(claim, verdict), "pool-verdict")

    async def _apply(self, claim: Claim, verdict: Verdict) -> None:
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
                    text = f"its worker died {crashes} times while it ran: the crash limit is {self._crash_limit}"
                    self._settler.settle(claim, Failed(failure_of(CrashLimitError(text))))
                case Run():
                    await self._admit(claim, verdict)
        except CallboardError:
            # the broker did not take an answer: the lease is let go and redelivery brings the task again
            self._settler.drop(claim)
        finally:
            self.claims.pop(claim.token, None)
            self._host.was_judged()

    async def _admit(self, claim: Claim, verdict: Run) -> None:
        claim.attempt, claim.crashes, claim.number = verdict.attempt, verdict.crashes, verdict.next_n
        claim.is_restart, claim.is_suspect = verdict.is_restart, verdict.is_suspect
        if claim.context_deadline is not None and claim.context_deadline <= self._clock.now():
            self.expire(claim)
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
                await self._clock.sleep(WATCH_S)

    async def _ready(self, claim: Claim) -> None:
        # in this order: the keeper's thread, asked about it, marks it first and looks then whether it was chosen
        claim.is_chosen = True
        if claim.must_yield or claim.linked_at != self._bus.connected_at or self._keeper.has_lapsed(claim):
            # the link was lost while it was asked about: the broker hands it out again, to us or to somebody else; or
            # whoever goes first with it asks as well
            self._settler.drop(claim)
            return
        if self._host.is_closed:
            self._settler.settle(claim, Returned(NO_SLOT_RETURN_S))
            return
        if claim.is_restart and not await self._settler.note_start(claim):
            self._settler.drop(claim)
            return
        if claim.stop_reason == "cancel":
            self._settler.settle(claim, Cancelled(failure_of(TaskCancelledError(claim.stop_text or "cancelled"))))
            return
        claim.stage = Stage.READY
        self.claims.pop(claim.token, None)
        self._host.make_ready(claim)

    async def _fetch_payload(self, claim: Claim) -> bool:
        try:
            ref = parse_claim((claim.delivery.headers or {})[header.CLAIM_CHECK])
            claim.payload = await self._blobs.get(ref)
        except CallboardError as error:
            if error.retryable:
                raise
            self._settler.settle(claim, Failed(failure_of(error)))
            return False
        return True
