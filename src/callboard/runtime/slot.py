"""A slot: one place in a pool that runs one task at a time."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import contextvars
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime
from typing import Any, Protocol

from callboard.runtime import codec, context, crash, tracing
from callboard.runtime.capability import Capability, fill_context
from callboard.runtime.claim import Claim, Stage
from callboard.runtime.clock import Clock
from callboard.runtime.context import TaskContext
from callboard.runtime.errors import (
    DeadlineError,
    DecodeError,
    EncodeError,
    HandlerExitError,
    RetryableError,
    TaskCancelledError,
    TaskTimeoutError,
)
from callboard.runtime.outcome import Cancelled, Completed, Expired, Failed, Outcome, Retry, Returned
from callboard.runtime.record import failure_of
from callboard.runtime.stats import PoolStats

DRAIN_RETURN_S = 0.05
_OURS = {__file__, concurrent.futures.thread.__file__}


class SlotHost(Protocol):
    """What a slot needs of its pool."""

    capability: Capability[..., Any]
    clock: Clock
    executor: Executor | None
    ready: deque[Claim]
    running: dict[str, Slot]
    lingering: dict[Slot, float]
    stats: PoolStats

    def next_is_due(self) -> None:
        """Start further slots in the next loop turn, if claims are ready."""
        ...

    def may_begin(self, claim: Claim) -> bool:
        """Return whether the claim is still ours; if not, it is let go of."""
        ...

    def context_of(self, claim: Claim) -> TaskContext:
        """Return what the handler may know."""
        ...

    def finished(self, claim: Claim, outcome: Outcome) -> None:
        """Take the end of a run."""
        ...

    def rested(self, slot: Slot) -> None:
        """Take the slot back as idle."""
        ...


class Slot:
    """Runs claims from its pool's ready queue, one at a time, until none is ready; then it rests."""

    __slots__ = ("_context", "_pool", "claim", "is_shut", "task", "thread")

    def __init__(self, pool: SlotHost) -> None:
        """Belong to ``pool``."""
        self._pool = pool
        self._context: TaskContext | None = None
        self.claim: Claim | None = None
        self.is_shut = False
        self.task: asyncio.Task[None] | None = None
        self.thread: asyncio.Future[Any] | None = None

    @property
    def context(self) -> TaskContext | None:
        """The context of the task that runs now, made when first asked for."""
        if self._context is None and self.claim is not None:
            self._context = self._pool.context_of(self.claim)
        return self._context

    @property
    def stop_reason(self) -> str | None:
        """Why the run under way is being stopped, None when it is not."""
        return self.claim.stop_reason if self.claim is not None else None

    async def run(self) -> None:
        """Run ready claims one after the other; ends when none is left, or when a handler changed context variables."""
        pool = self._pool
        context.holder.set(self)
        clean = contextvars.copy_context()
        try:
            while pool.ready:
                claim = pool.ready.popleft()
                if pool.ready:
                    pool.next_is_due()
                await self._run_one(claim)
                if contextvars.copy_context() != clean or (self.task is not None and self.task.cancelling()):
                    # the next task must not meet what this handler left behind: go on in a fresh task
                    break
        finally:
            self.claim = None
            pool.rested(self)

    async def _run_one(self, claim: Claim) -> None:
        pool = self._pool
        self.claim = claim
        self._context = None
        if not pool.may_begin(claim):
            return
        claim.stage = Stage.RUNNING
        claim.started_at = pool.clock.monotonic()
        pool.running[claim.token] = self
        try:
            if crash.point:
                crash.at("before-effect")
            outcome = await self._outcome(claim)
            if crash.point:
                crash.at("after-effect")
        finally:
            pool.running.pop(claim.token, None)
        if claim.stop_reason is not None:
            self._uncancel()
        thread, self.thread = self.thread, None
        if thread is not None and not thread.done():
            await self._outlive(thread, claim, outcome)
        else:
            pool.finished(claim, outcome)

    async def _outlive(self, thread: asyncio.Future[Any], claim: Claim, outcome: Outcome) -> None:
        """See a stopped run to the end of its thread, which nothing can interrupt; the slot is taken until then.

        What would run the task again waits for it, with the lease held: otherwise it would run twice side by side. A
        result that the thread gives after all counts, it has been paid for.
        """
        pool = self._pool
        runs_again = isinstance(outcome, Retry | Returned)
        if not runs_again:
            pool.finished(claim, outcome)
        pool.lingering[self] = pool.clock.monotonic()
        try:
            await asyncio.wait([thread])
        finally:
            del pool.lingering[self]
        if not runs_again:
            return
        if thread.exception() is None:
            try:
                outcome = Completed(codec.encode(thread.result()))
            except Exception as error:  # noqa: BLE001 - a model's own code runs here
                outcome = Failed(failure_of(error))
        pool.finished(claim, outcome)

    async def _outcome(self, claim: Claim) -> Outcome:
        capability = self._pool.capability
        try:
            args, kwargs = capability.bind(claim.payload, claim.content_type)
        except DecodeError as error:
            claim.started_at = None  # the handler never ran
            return Failed(failure_of(error))
        except BaseException as error:  # noqa: BLE001 - a constructor or validator of the user's type may raise anything
            cause = failure_of(error)
            claim.started_at = None
            return Failed(failure_of(DecodeError(f"the payload does not fit: {cause.type}: {cause.message}")))
        claim.is_json = True
        self._pool.stats.started += 1
        if kwargs:
            kwargs = fill_context(kwargs, self._pool.context_of(claim))
        try:
            with tracing.handling(f"task {capability.name}", claim.delivery.headers, claim.traits):
                if capability.is_async:
                    value = await capability.function(*args, **kwargs)
                else:
                    value = await self._in_thread(capability.function, args, kwargs)
            return Completed(codec.encode(value))
        except EncodeError as error:
            return Failed(failure_of(error))
        except BaseException as error:
            # a handler may raise anything, and a panic in Rust is no Exception
            if self._is_ending(error):
                raise
            return self._raised(error, claim)

    def _is_ending(self, error: BaseException) -> bool:
        """Return whether the slot is ended from outside, rather than its handler having raised."""
        if isinstance(error, asyncio.CancelledError):
            return self.is_shut and self.claim is not None and self.claim.stop_reason is None
        if not isinstance(error, GeneratorExit):
            return False
        try:
            return asyncio.current_task() is not self.task
        except RuntimeError:
            # no loop runs: what is left of a program that ends is thrown away
            return True

    def _raised(self, error: BaseException, claim: Claim) -> Outcome:
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return Failed(failure_of(HandlerExitError(f"the handler tried to end its process: {error!r}")))
        if claim.stop_reason is not None:
            # told to stop, it let the cancellation out, or raised something of its own on its way
            return self._stopped(claim, error)
        trace = _trace(error)
        if isinstance(error, asyncio.CancelledError):
            # the handler cancelled itself, or what it awaited was cancelled
            error = RetryableError("the handler let a CancelledError out that nobody sent it")
        return self._decided(error, claim, trace=trace)

    def _decided(self, error: BaseException, claim: Claim, *, trace: str) -> Outcome:
        try:
            return self._pool.capability.retry.decide(error, claim.attempt, trace=trace)
        except Exception as broken:  # noqa: BLE001 - the exception's own code, or a policy that overflows
            return Failed(failure_of(broken, trace=trace))

    async def _in_thread(
        self, function: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        own = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        self.thread = loop.run_in_executor(self._pool.executor, lambda: _call(own, function, args, kwargs))
        return await asyncio.shield(self.thread)

    def _uncancel(self) -> None:
        if self.task is not None:
            while self.task.cancelling():
                self.task.uncancel()

    def _stopped(self, claim: Claim, error: BaseException) -> Outcome:
        match claim.stop_reason:
            case "timeout":
                limit_s = self._pool.capability.timeout_s
                late = TaskTimeoutError(f"the run took longer than its timeout_s of {limit_s} s and was cancelled")
                return self._decided(late, claim, trace=_trace(error))
            case "deadline":
                text = f"the deadline {_stamp(claim.context_deadline)} passed while it ran"
                return Expired(failure_of(DeadlineError(text)))
            case "drain":
                return Returned(DRAIN_RETURN_S)
            case _:
                return Cancelled(failure_of(TaskCancelledError(claim.stop_text or "cancelled")))


def _call(
    own: contextvars.Context, function: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, object]
) -> object:
    try:
        return own.run(function, *args, **kwargs)
    except (StopIteration, GeneratorExit) as error:
        # a future refuses the one, and the waiter would hang; the other would close the waiting coroutine
        message = f"the handler raised {type(error).__name__}"
        raise RuntimeError(message) from error
    except (SystemExit, KeyboardInterrupt) as error:
        message = f"the handler tried to end its process: {error!r}"
        raise HandlerExitError(message) from error


def _trace(error: BaseException) -> str:
    """Return the last frames of the handler; ours, which lead to every handler, would only hide them."""
    own = error.__traceback__
    while own is not None and own.tb_frame.f_code.co_filename in _OURS:
        own = own.tb_next
    return "".join(traceback.format_exception(type(error), error, own or error.__traceback__, limit=-8))


def _stamp(moment: datetime | None) -> str:
    return moment.isoformat() if moment is not None else ""
