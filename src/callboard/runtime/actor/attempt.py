"""One attempt at a turn: its seat, its handler's task, its time limit, and stopping it from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from msgspec import Struct

from callboard.runtime import crash, events, logs
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.execute import (
    STOP_DEADLINE,
    STOP_TIMEOUT,
    Abandoned,
    Done,
    Ending,
    Part,
    Raised,
    ended,
    execute,
)
from callboard.runtime.actor.handler import Handler
from callboard.runtime.actor.instance import Instance
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.record import Parked, ParkedTurn
from callboard.runtime.actor.reenter import Reentry
from callboard.runtime.actor.seat import Seat
from callboard.runtime.actor.turn import Turn
from callboard.runtime.bus import header
from callboard.runtime.errors import CallboardError

_log = logs.get_logger(__name__)
# A handler that swallows its cancellation is cancelled again, and let go of in the end.
STOP_AGAIN_S = 0.5
MAX_STOPS = 5
END_WAIT_S = 5.0


class Job(Struct, frozen=True):
    """One mail on its way through a handler.

    Attributes:
        mail: What the handler is given; for a resumed turn the mail that it began with.
        cause_seq: Sequence of the mail that counts as handled by it.
        parked: The kept turn that goes on, with ``waiting``, its entry in the actor's record.
    """

    mail: Mail
    cause_seq: int
    handler: Handler
    argument: object
    parked: ParkedTurn | None = None
    waiting: Parked | None = None


class Attempts:
    """Makes one attempt after the other for one activation."""

    def __init__(self, activation: Staged, instance: Instance, inner: Reentry) -> None:
        """Begin with none under way."""
        self._activation = activation
        self._instance = instance
        self._inner = inner
        self._task: asyncio.Task[Ending] | None = None
        self._seating: asyncio.Task[None] | None = None
        self._outcome: asyncio.Future[Ending] | None = None

    async def make(
        self,
        turn: Turn,
        job: Job,
        *,
        order: Callable[[], tuple[str, str] | None],
        is_ours: Callable[[], Awaitable[bool]],
    ) -> Ending:
        """Make one attempt, unless ``order`` returns a stop that came before it could begin.

        Waiting for a place takes as long as others' turns, and the process may have stood still meanwhile: ``is_ours``
        says at the last moment whether the turn is another's by now.

        Raises:
            CallboardError: If the state cannot be loaded: the mail stays.
        """
        try:
            actor = await self._instance.make()
        except CallboardError:
            raise
        except Exception as error:  # noqa: BLE001 - the class's own constructor; it is data from here on
            return Raised(error)
        seat = Seat(self._activation.services.slots)
        if not await self._seated(seat, turn):
            return Abandoned()
        try:
            turn.seat = seat
            stop = order()
            if stop is not None:
                return ended(stop)
            refused = await self._instance.start(actor, turn)
            if refused is not None:
                return Raised(refused)
            if not await is_ours():
                stop = order()
                return Abandoned() if stop is None else ended(stop)
            if crash.point:
                crash.at("before-effect")
            self._inner.begin(turn, actor)
            turn.has_begun = True
            services = self._activation.services
            services.stats[self._activation.kind.name].started += 1
            run = execute(turn, job.handler, actor, job.argument, part=self.part(turn), executor=self._executor)
            ending = await self._see(turn, job.handler, asyncio.ensure_future(run))
            if crash.point:
                crash.at("after-effect")
            return ending
        finally:
            turn.is_over = True
            seat.leave()

    def part(self, turn: Turn) -> Part | None:
        """Return what takes the parts of a turn's streamed answer; None when its asker wants them in one."""
        if header.STREAM not in turn.mail.headers:
            return None
        services = self._activation.services

        async def part(number: int, value: object) -> None:
            if turn.mail.reply_to:
                await replies.send_part(services, turn.mail.reply_to, number, value)

        return part

    def stop(self, code: str, text: str) -> bool:
        """Stop the attempt under way; False when none is."""
        turn, running = self._activation.turn, self._task
        if turn is None or running is None or running.done():
            return False
        if turn.stop is None:
            turn.stop = (code, text)
            self._insist(running, turn, 1)
        return True

    def leave(self) -> None:
        """Give up waiting for a place for a turn that has not begun: it is run elsewhere."""
        if self._seating is not None:
            self._seating.cancel()

    # --- inside

    async def _seated(self, seat: Seat, turn: Turn) -> bool:
        """Wait for a place; False when the actor went to another host before its turn began."""
        if turn.attempt > 1 or not self._activation.services.slots.locked():
            await seat.take()
            return True
        self._seating = seating = asyncio.ensure_future(seat.take())
        try:
            await asyncio.wait([seating])
        except asyncio.CancelledError:
            seating.cancel()
            seat.leave()
            raise
        finally:
            self._seating = None
        if seating.cancelled() or self._activation.is_gone:
            seat.leave()
            return False
        return True

    @property
    def _executor(self) -> Executor | None:
        return self._activation.services.executor

    async def _see(self, turn: Turn, handler: Handler, running: asyncio.Task[Ending]) -> Ending:
        self._task = running
        outcome = self._outcome = asyncio.get_running_loop().create_future()
        running.add_done_callback(self._hand_on)
        self._activation.turn = turn
        services = self._activation.services
        begun_s = services.clock.monotonic()
        timer = self._limit(turn, handler)
        try:
            ending = await self._outlive(running, outcome)
            if isinstance(ending, Done | Raised):
                await self._inner.end()
            return ending
        finally:
            self._inner.stop()
            services.stats[self._activation.kind.name].ran(services.clock.monotonic() - begun_s)
            if timer is not None:
                timer.cancel()
            self._task = self._outcome = None
            self._activation.turn = None

    def _hand_on(self, running: asyncio.Task[Ending]) -> None:
        """Pass the end of a handler on to who waits for it, unless it was let go of before."""
        outcome = self._outcome if running is self._task else None
        error = None if running.cancelled() else running.exception()
        if outcome is None or outcome.done():
            return
        turn = self._activation.turn
        if running.cancelled() and turn is not None and turn.stop is not None:
            # the stop came before its first word, or with its last
            outcome.set_result(ended(turn.stop))
        elif running.cancelled():
            outcome.cancel()
        elif error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(running.result())

    async def _outlive(self, running: asyncio.Task[Ending], outcome: asyncio.Future[Ending]) -> Ending:
        try:
            return await outcome
        except asyncio.CancelledError:
            if not running.done():
                running.cancel()
                await asyncio.wait([running], timeout=END_WAIT_S)
            raise

    def _limit(self, turn: Turn, handler: Handler) -> asyncio.TimerHandle | None:
        limits = [limit for limit in (handler.timeout_s, self._activation.kind.options.turn_timeout_s) if limit]
        code, limit_s = STOP_TIMEOUT, min(limits) if limits else None
        if turn.deadline is not None:
            left_s = max(0.0, (turn.deadline - self._activation.services.clock.now()).total_seconds())
            if limit_s is None or left_s < limit_s:
                code, limit_s = STOP_DEADLINE, left_s
        if limit_s is None:
            return None
        return asyncio.get_running_loop().call_later(limit_s, self._out_of_time, code, limit_s)

    def _out_of_time(self, code: str, limit_s: float) -> None:
        _ = self.stop(code, f"the turn was stopped after {limit_s:g} s: its {code} was reached")

    def _insist(self, running: asyncio.Task[Ending], turn: Turn, count: int) -> None:
        """Cancel a handler, again if it swallows that, and let go of it when it will not end."""
        if running.done() or running is not self._task or self._outcome is None:
            return
        if count > MAX_STOPS:
            _log.error(events.HANDLER_ABANDONED, actor=str(turn.address), seq=turn.mail.seq)
            turn.is_over = True
            if not self._outcome.done() and turn.stop is not None:
                self._outcome.set_result(ended(turn.stop))
            return
        _ = running.cancel()
        self._inner.stop()
        asyncio.get_running_loop().call_later(STOP_AGAIN_S, self._insist, running, turn, count + 1)
