"""How an activation runs a mail: attempts in place, restarts, and what the end of each is written as."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping

from callboard.runtime import events, logs
from callboard.runtime.actor import finish, park, resumption, verdict
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.attempt import Attempts, Job
from callboard.runtime.actor.execute import (
    DRAINS,
    STOP_CANCEL,
    STOP_DRAIN,
    Abandoned,
    Done,
    Ending,
    Part,
    Raised,
    Stopped,
    Waits,
    ended,
    policy_of,
)
from callboard.runtime.actor.handler import EVERY_PREFIX
from callboard.runtime.actor.instance import Instance
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.mail import KIND_TIMER, Mail
from callboard.runtime.actor.outbox import event_write, untimer_write
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.record import Parked
from callboard.runtime.actor.reenter import Reentry
from callboard.runtime.actor.supervise import Budget, failing
from callboard.runtime.actor.turn import Turn
from callboard.runtime.bus.base import Stored, Write
from callboard.runtime.errors import (
    BusClosedError,
    BusError,
    CallboardError,
    CrashLimitError,
    DecodeError,
    PayloadTooLargeError,
    StateTooLargeError,
    TurnAbandonedError,
    TurnFencedError,
)
from callboard.runtime.outcome import Retry
from callboard.runtime.record import Failure, failure_of

_log = logs.get_logger(__name__)
CANCELLED = "cancelled"
_RETRY_S = 0.25


class Runner:
    """Runs the turns of one activation, one at a time.

    Attributes:
        nudge: Set when something happened that a waiting turn or loop should look at.
        instance: The object.
        inner: Turns inside the one under way.
        budget: Restarts that are left.
        job: The mail under way, also between two attempts at it.
    """

    def __init__(self, activation: Staged) -> None:
        """Begin with no instance; the first turn makes one."""
        self.nudge = asyncio.Event()
        self.instance = Instance(activation)
        self.inner = Reentry(activation, lambda mail: self._journal(mail, is_fresh=False), self._part)
        self.budget = Budget()
        self.job: Job | None = None
        self._attempt = Attempts(activation, self.instance, self.inner)
        self._activation = activation
        self._cancel: tuple[str, str] | None = None
        self._is_new = True
        self._begun_seq = 0

    # --- one mail

    async def run(self, mail: Mail) -> None:
        """Handle a mail by its handler and commit what comes of it."""
        activation = self._activation
        if mail.kind == KIND_TIMER and mail.timer.startswith(EVERY_PREFIX) and mail.timer not in activation.kind.every:
            await self._retire(mail)
            return
        try:
            handler, data = activation.kind.select(mail.type, mail.data, mail.content_type)
            argument = activation.kind.decode(handler, mail.type, data, mail.content_type)
        except CallboardError as error:
            await activation.bury(mail, failure_of(error), attempts=0)
            return
        await self._see_through(Job(mail, mail.seq, handler, argument))

    async def resume(self, mail: Mail, waiting: Parked) -> None:
        """Go on with a parked turn: ``mail`` is what it waited for, or the end of its time."""
        activation = self._activation
        first = mail
        try:
            kept = await park.read(activation, waiting.seq)
            if kept is None:
                text = f"the input of the parked turn {waiting.seq} is gone"
                raise DecodeError(text)
            first = await park.first_mail(activation, kept)
            handler, data = activation.kind.select(first.type, first.data, first.content_type)
            argument = activation.kind.decode(handler, first.type, data, first.content_type)
        except (CallboardError, RuntimeError) as error:
            if all(other.seq != waiting.seq for other in activation.known.parked):
                # it was cancelled meanwhile: look at the mail again
                return
            await self._bury(first, mail.seq, waiting, failure_of(error), attempts=0)
            return
        await self._see_through(Job(first, mail.seq, handler, argument, park.resumed(kept, mail), waiting))

    async def _retire(self, mail: Mail) -> None:
        """Take away the timer of a periodic handler that the class has no longer."""
        timers = {name: timer for name, timer in self._activation.known.timers.items() if name != mail.timer}
        writes = [untimer_write(self._activation.address, mail.timer)]
        await self._activation.commit([mail.seq], writes=writes, changes={"timers": timers})

    async def _see_through(self, job: Job) -> None:
        self.job = job
        try:
            await self._attempts(job)
        finally:
            self.job = self._cancel = None
            await self.instance.after_turn()

    async def _attempts(self, job: Job) -> None:
        activation = self._activation
        if activation.is_gone:
            return
        try:
            found = await self._recover(job)
        except (CrashLimitError, TurnAbandonedError) as error:
            limit = activation.services.rules.crash_limit
            await self._bury(job.mail, job.cause_seq, job.waiting, failure_of(error), attempts=limit)
            return
        attempt = 0
        while True:
            attempt += 1
            turn = self._turn(job, attempt, found)
            found = None
            ending = await self._attempt.make(turn, job, order=lambda: self._cancel, is_ours=self._is_still_ours)
            self._count(turn, ending)
            if isinstance(ending, Abandoned):
                await self._leave(turn)
                return
            if not isinstance(ending, Raised):
                failed = await self._commit(turn, job, ending)
                if failed is None:
                    return
                ending = Raised(failed)
            delay_s = await self._after_error(turn, job, ending.error)
            if delay_s is None:
                return
            await self._pause(delay_s)
            if not await self._goes_on(job, attempt):
                return

    async def _recover(self, job: Job) -> list[Stored] | None:
        """Look whether another host had begun this turn; return its journal where it was read.

        Of what a host that lives handed on it can have begun the first turn only.
        """
        owner = self._activation.owner
        is_first, self._is_new = self._is_new, False
        if not owner.suspects_crash(job.cause_seq) and not (is_first and owner.may_have_run(job.cause_seq)):
            return None
        kept = job.parked.steps.keys() if job.parked is not None else frozenset[str]()
        return await resumption.recover(self._activation, job.mail, job.cause_seq, kept=kept)

    async def _leave(self, turn: Turn) -> None:
        """Let go of a turn that another host goes on with."""
        self.forget()
        if turn.has_begun and turn.stop is not None:
            await resumption.interrupted(self._activation, turn, is_drained=turn.stop[0] == STOP_DRAIN)
        self._activation.is_leaving = True

    def _count(self, turn: Turn, ending: Ending) -> None:
        stats = self._activation.services.stats[self._activation.kind.name]
        run, replayed = turn.steps
        stats.failed += isinstance(ending, Raised)
        stats.interrupted += isinstance(ending, Abandoned) and turn.has_begun
        stats.steps_run += run
        stats.steps_replayed += replayed

    async def _goes_on(self, job: Job, attempt: int) -> bool:
        """Return whether the next attempt is to be made, after what was ordered meanwhile."""
        activation = self._activation
        if activation.known.status != "active" and self._cancel is None:
            # it stays the next in turn
            return False
        if await self._is_still_ours():
            return True
        if self._cancel is None:
            return False
        ending = ended(self._cancel)
        if isinstance(ending, Stopped):
            failed = await self._commit(self._turn(job, attempt), job, ending)
            if failed is not None:
                raise failed
        elif isinstance(ending, Abandoned):
            activation.is_leaving = True
        return False

    async def _is_still_ours(self) -> bool:
        """Return whether nobody else has begun the turn meanwhile; asks until that is known, or a stop comes.

        Costs nothing while our own beats come back and nothing else gave us doubts.
        """
        while self._cancel is None:
            try:
                return await self._activation.may_go_on()
            except BusError as error:
                if not error.retryable:
                    raise
            await self._activation.services.clock.sleep(_RETRY_S)
        return False

    def _turn(self, job: Job, attempt: int, found: list[Stored] | None = None) -> Turn:
        activation = self._activation
        # a mail that was left after an attempt, by a pause or a failed actor, begins again with attempt 1
        was_begun = self._begun_seq == job.mail.seq or activation.owner.may_have_run(job.cause_seq)
        is_fresh = job.parked is None and not was_begun
        self._begun_seq = job.mail.seq
        steps = {name: bytes(raw) for name, raw in job.parked.steps.items()} if job.parked is not None else {}
        return Turn(
            activation.services,
            address=activation.address,
            mail=job.mail,
            journal=lambda: self._journal(job.mail, is_fresh=is_fresh, steps=steps, found=found),
            attempt=attempt,
            epoch=activation.owner.epoch,
            cause_seq=job.cause_seq,
            parked=job.parked,
        )

    def _journal(
        self,
        mail: Mail,
        *,
        is_fresh: bool,
        steps: Mapping[str, bytes] | None = None,
        found: list[Stored] | None = None,
    ) -> Journal:
        services = self._activation.services
        return Journal(
            services.bus,
            self._activation.address,
            mail.seq,
            clock=services.clock,
            worker=services.worker,
            blobs=services.blobs,
            store=services.committer.commit,
            is_fresh=is_fresh,
            ttl_s=services.rules.step_ttl_s,
            steps=steps or {},
            found=found,
            claim_check_bytes=services.rules.claim_check_bytes,
            executor=services.executor,
            tenure=self._activation,
        )

    def _part(self, turn: Turn) -> Part | None:
        return self._attempt.part(turn)

    # --- what follows

    async def _commit(self, turn: Turn, job: Job, ending: Done | Waits | Stopped) -> CallboardError | None:
        """Write the end of a turn, however long that takes; return why that can never be, then it counts as failed."""
        stats = self._activation.services.stats[self._activation.kind.name]
        while True:
            try:
                await self._write(turn, job, ending)
            except (TurnFencedError, BusClosedError) as error:
                stats.fenced += isinstance(error, TurnFencedError)
                self.forget()
                raise
            except CallboardError as error:
                if not (isinstance(error, BusError) and error.retryable):
                    return error
                # a large value could not be put into the store now: no reason to run the turn again
                await self._activation.services.clock.sleep(_RETRY_S)
            else:
                stats.committed += 1
                return None

    async def _write(self, turn: Turn, job: Job, ending: Done | Waits | Stopped) -> None:
        match ending:
            case Done(value=value):
                await self._done(turn, job, value)
            case Waits():
                await self._park(turn, job)
            case Stopped(error=error):
                await self._stopped(turn, job, error)

    async def _done(self, turn: Turn, job: Job, value: object) -> None:
        activation = self._activation
        changes, writes = self._unpark(job.waiting)
        kept = await finish.reply_of(activation, turn, value)
        changes |= await finish.changes(activation, turn, self.instance.actor)
        writes += await finish.travelling(activation, turn.outgoing)
        if turn.stop is not None:
            # told to stop, it came to an end by itself: what it returned is as far as it got
            writes.append(self._cancelled(turn, turn.stop[1], is_partial=True))
        await activation.commit(
            turn.handled, to=[(turn.mail, kept), *self.inner.answers], writes=writes, changes=changes
        )
        resumption.end_steps(activation, turn)

    async def _stopped(self, turn: Turn, job: Job, error: CallboardError) -> None:
        """What it had changed is thrown away, what it did stands in its steps, and why in an event."""
        activation = self._activation
        self.forget()
        changes, writes = self._unpark(job.waiting)
        writes.append(self._cancelled(turn, str(error), is_partial=False))
        changes |= {"turns": activation.known.turns + 1, "timers": verdict.firing(turn.mail)}
        if not turn.mail.reply_to:
            # nobody hears of it by an answer; from a dead letter it can be put back
            await activation.letter(turn.mail, failure_of(error), attempts=turn.attempt)
        found = replies.error_reply(turn.mail.id, error)
        await activation.commit([job.cause_seq], to=((turn.mail, found),), writes=writes, changes=changes)
        _log.info(events.TURN_CANCELLED, actor=str(turn.address), seq=turn.mail.seq, reason=str(error))

    async def _park(self, turn: Turn, job: Job) -> None:
        activation = self._activation
        if turn.wait is None:
            return
        # what it had changed is thrown away: it runs again from the start, with its journal; turns inside it run anew
        self.forget()
        parked, writes = await park.kept_writes(activation, turn, turn.wait, job.waiting)
        timers = finish.timers(activation.known, turn, turn.own_timers)
        await activation.commit(
            [job.cause_seq],
            writes=[*await finish.travelling(activation, turn.own_outgoing), *writes],
            changes={"parked": verdict.parking(parked), "timers": timers},
        )

    def _cancelled(self, turn: Turn, reason: str, *, is_partial: bool) -> Write:
        facts = {
            "seq": turn.mail.seq,
            "reason": reason,
            "partial": is_partial,
            "steps": turn.journal.executed + turn.journal.replayed,
        }
        return event_write(turn.address, CANCELLED, facts, ttl_s=self._activation.services.rules.event_ttl_s)

    def _unpark(self, waiting: Parked | None) -> tuple[dict[str, object], list[Write]]:
        """Return what a commit changes and writes when it ends a parked turn; nothing for another one."""
        if waiting is None:
            return {}, []
        return {"parked": verdict.unparking({waiting.seq})}, park.end_writes(self._activation, waiting)

    async def _bury(
        self, mail: Mail, cause_seq: int, waiting: Parked | None, failure: Failure, *, attempts: int
    ) -> None:
        """Make a dead letter of a mail, and an end of the parked turn that it began."""
        changes, writes = self._unpark(waiting)
        await self._activation.bury(
            mail, failure, attempts=attempts, cause_seq=cause_seq, changes=changes, writes=writes
        )

    async def _after_error(self, turn: Turn, job: Job, error: BaseException) -> float | None:
        """Decide what follows from a failed attempt; return the seconds until the next, None when it was the last."""
        activation = self._activation
        options = activation.kind.options
        policy = policy_of(job.handler, options.retry)
        is_final = isinstance(error, (PayloadTooLargeError, StateTooLargeError))
        decision = policy.decide(error, policy.attempts if is_final else turn.attempt, trace=_trace(error))
        failure = decision.failure
        _log.warning(
            events.TURN_FAILED,
            actor=str(turn.address),
            seq=turn.mail.seq,
            attempt=turn.attempt,
            code=failure.code,
            type=failure.type or "",
        )
        if isinstance(decision, Retry):
            self.forget()
            if self.budget.spend(options, activation.services.clock.monotonic()):
                return decision.delay_s
            await self._give_up(turn, failure)
            return None
        await self.instance.failed(error)
        await self._bury(turn.mail, job.cause_seq, job.waiting, failure, attempts=turn.attempt)
        return None

    async def _give_up(self, turn: Turn, failure: Failure) -> None:
        """Fail the actor. The mail stays the next in turn, for when a person restarts it."""
        options = self._activation.kind.options
        reason = (
            f"{options.restart_budget} restarts in {options.restart_window_s:g} s did not help: "
            f"{failure.code}: {failure.message}"
        )
        changes, writes = failing(self._activation, failure, reason, seq=turn.mail.seq)
        await self._activation.commit([], changes=changes, writes=writes)
        _log.error(events.ACTOR_FAILED, actor=str(turn.address), code=failure.code, message=changes["reason"])

    # --- from outside

    def stop(self, code: str, text: str) -> None:
        """Stop the mail under way, in an attempt or between two. ``code`` says what follows (see ``execute``)."""
        if not self._attempt.stop(code, text) and self.job is not None:
            self._cancel = (code, text)
        self.nudge.set()

    def leave(self) -> None:
        """Begin no turn that still waits for its place: the actor goes to another host."""
        self._attempt.leave()

    def halt(self) -> None:
        """Let the steps under way finish, and stop the turn when it wants to begin another: the worker drains."""
        turn = self._activation.turn
        if turn is not None:
            turn.journal.gate.shut(lambda: self.stop(STOP_DRAIN, DRAINS))

    def forget(self) -> None:
        """Throw the instance away; the next turn makes a new one from the record."""
        self.instance.forget()

    def restart(self) -> None:
        """Begin anew: no instance, the whole restart budget; a turn under way is stopped and answered with an error."""
        self.stop(STOP_CANCEL, "the actor was restarted by request")
        self.budget.refill()
        self.forget()

    async def hook(self, name: str) -> None:
        """Call the pause or the resume hook, after the turn under way."""
        await self.instance.hook(name, is_busy=self.job is not None)

    # --- inside

    async def _pause(self, delay_s: float) -> None:
        """Wait before the next attempt; an order from outside ends the wait."""
        clock = self._activation.services.clock
        until_s = clock.monotonic() + delay_s
        while self._cancel is None and self._activation.known.status == "active" and clock.monotonic() < until_s:
            self.nudge.clear()
            sleeper = asyncio.ensure_future(clock.sleep(until_s - clock.monotonic()))
            waiter = asyncio.ensure_future(self.nudge.wait())
            try:
                await asyncio.wait((sleeper, waiter), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeper.cancel()
                waiter.cancel()


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-8))
