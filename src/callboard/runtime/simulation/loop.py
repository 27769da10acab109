"""An event loop without a clock, sockets or threads: time jumps, and dice decide which of the ready callbacks is next.

What is shuffled, and what is not. Each turn takes everything that is ready. Steps of different tasks may come in any
order, and some are put off to the next turn, as the arrival of answers would have it. A task's own steps cannot
overtake each other, and neither can the plain callbacks (``call_soon``, timers, futures' callbacks) of one process:
transports rely on their order. Nothing depends on the order of a set or on addresses: the order before the shuffle is
by number of process and task.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar, TypeVarTuple

from callboard.runtime.errors import SimulationDeadlockError, SimulationStuckError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
MAX_STEPS = 5_000_000
MAX_TIME_S = 36_000.0
# A turn costs this at most, so that timers meet work that is under way.
TURN_MAX_S = 2e-5
# One in so many ready tasks lets a turn pass.
PUT_OFF_ONE_IN = 16


class Process:
    """What shares a fate inside the simulation: its callbacks run, are held back, or never run again.

    Attributes:
        is_held: Its ready callbacks are kept in ``held`` and not run.
    """

    def __init__(self, name: str, *, number: int) -> None:
        """Run from the start; ``number`` is unique."""
        self.name = name
        self.number = number
        self.is_held = False
        self.held: list[_Ready] = []


WORLD = Process("world", number=0)
process: contextvars.ContextVar[Process] = contextvars.ContextVar("callboard_process", default=WORLD)


class SimulatedTask(asyncio.Task[T]):
    """A task that knows its place in the order of creation, and its process."""

    number: int
    process: Process


class _Ready:
    """A callback whose time has come."""

    __slots__ = ("handle", "key", "process")

    def __init__(self, handle: asyncio.Handle, owner: Process, number: int) -> None:
        self.handle = handle
        self.process = owner
        # number 0 is the one strand of the process's plain callbacks
        self.key = (owner.number, number)


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs until the given main is done, jumping from timer to timer.

    Attributes:
        steps: Callbacks run so far.
    """

    def __init__(
        self, dice: random.Random, *, max_steps: int = MAX_STEPS, max_time_s: float = MAX_TIME_S, is_fair: bool = False
    ) -> None:
        """Begin at second 0.

        Args:
            dice: Decides the order of what is ready.
            max_steps: Callbacks before ``SimulationStuckError``.
            max_time_s: Virtual seconds before ``SimulationStuckError``.
            is_fair: True keeps the order of the real loop: first come, first served.
        """
        super().__init__()
        self.steps = 0
        self._dice = dice
        self._max_steps = max_steps
        self._max_time_s = max_time_s
        self._is_fair = is_fair
        self._now_s = 0.0
        self._queue: list[_Ready] = []
        self._due: list[tuple[float, int, asyncio.TimerHandle, Process]] = []
        self._arrivals = count(1)
        self._tasks = count(1)
        self.set_task_factory(self._make_task)

    # --- what asyncio asks of a loop

    def time(self) -> float:
        """Return the virtual seconds since the beginning."""
        return self._now_s

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Run ``callback`` in one of the next turns."""
        handle = asyncio.Handle(callback, args, self, context)
        self._queue.append(_ready(handle, callback, context))
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Run ``callback`` at virtual second ``when``; of equal times the first come is the first."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._due, (when, next(self._arrivals), handle, _process_of(context)))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Run ``callback`` in ``delay`` virtual seconds."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run ``func`` on this very thread, in a later turn: what blocks, blocks everybody."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        self.call_soon(_fulfil, future, func, args)
        return future

    def allow_more(self) -> None:
        """Begin to count steps and time anew, for winding up."""
        self._max_steps += self.steps
        self._max_time_s += self._now_s

    # --- processes

    def hold(self, owner: Process) -> None:
        """Run none of its callbacks from now on; what becomes ready is kept."""
        owner.is_held = True

    def release(self, owner: Process) -> None:
        """Run its callbacks again, those that were kept first."""
        owner.is_held = False
        held, owner.held = owner.held, []
        self._queue[:0] = held

    def waiting(self) -> list[str]:
        """Return, for people, who is not done and where it waits."""
        tasks = [task for task in asyncio.all_tasks(self) if isinstance(task, SimulatedTask)]
        return [_describe(task) for task in sorted(tasks, key=lambda task: task.number)]

    # --- inside

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        **options: Any,  # noqa: ANN401 - whatever this Python hands to a task
    ) -> SimulatedTask[T]:
        # numbered before it is made: its first step is asked for by its construction
        owner = _process_of(options.get("context"))
        task: SimulatedTask[T] = SimulatedTask.__new__(SimulatedTask)
        task.number = next(self._tasks)
        task.process = owner
        task.__init__(coro, loop=loop, **options)  # type: ignore[misc]
        return task

    def _run_once(self) -> None:
        self._take_due()
        if not self._queue:
            if self._is_ending():
                return
            self._jump()
        batch, self._queue = self._queue, []
        for ready in self._order(batch):
            owner = ready.process
            if ready.handle.cancelled():
                continue
            if owner.is_held:
                owner.held.append(ready)
                continue
            self.steps += 1
            ready.handle._run()  # noqa: SLF001 - what the loop of the library does
        self._now_s += TURN_MAX_S * self._dice.random()
        if self.steps > self._max_steps or self._now_s > self._max_time_s:
            message = f"not done after {self.steps} steps and {self._now_s:.0f} virtual seconds"
            raise SimulationStuckError(_with_tasks(message, self.waiting()))

    def _order(self, batch: list[_Ready]) -> list[_Ready]:
        if len(batch) == 1 or self._is_fair:
            return batch
        strands: dict[tuple[int, int], deque[_Ready]] = {}
        for ready in batch:
            strands.setdefault(ready.key, deque()).append(ready)
        dice = self._dice
        if len(strands) == 1:
            return batch
        keys = sorted(ready.key for ready in batch)
        dice.shuffle(keys)
        put_off = keys[0] if dice.randrange(PUT_OFF_ONE_IN) == 0 else None
        if put_off is not None:
            self._queue.extend(strands.pop(put_off))
        return [strands[key].popleft() for key in keys if key != put_off]

    def _take_due(self) -> None:
        due = self._due
        while due and due[0][0] <= self._now_s:
            _, _, handle, owner = heappop(due)
            if not handle.cancelled():
                self._queue.append(_Ready(handle, owner, 0))

    def _jump(self) -> None:
        while not self._queue:
            if not self._due:
                message = f"nothing can happen any more at virtual second {self._now_s:.3f}"
                raise SimulationDeadlockError(_with_tasks(message, self.waiting()))
            self._now_s = max(self._now_s, self._due[0][0])
            self._take_due()

    def _is_ending(self) -> bool:
        return bool(getattr(self, "_stopping", False))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave it in the heap; it is dropped when its time comes."""

    def _process_events(self, event_list: list[Any]) -> None:
        """Have none: there are no sockets."""

    def _write_to_self(self) -> None:
        """Wake nobody: there are no threads."""


def _process_of(context: contextvars.Context | None) -> Process:
    return process.get() if context is None else context.get(process, WORLD)


def _ready(handle: asyncio.Handle, callback: Callable[..., object], context: contextvars.Context | None) -> _Ready:
    task = getattr(callback, "__self__", None)
    if isinstance(task, SimulatedTask):
        return _Ready(handle, task.process, task.number)
    return _Ready(handle, _process_of(context), 0)


def _fulfil(future: asyncio.Future[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    try:
        future.set_result(function(*args))
    except BaseException as error:  # noqa: BLE001 - it belongs to the waiter
        future.set_exception(error)


def _with_tasks(message: str, tasks: list[str]) -> str:
    return "; waiting:\n  ".join([message, "\n  ".join(tasks)]) if tasks else message


def _describe(task: SimulatedTask[Any]) -> str:
    waits_at = ""
    step: Any = task.get_coro()
    while step is not None:
        frame = getattr(step, "cr_frame", None) or getattr(step, "gi_frame", None) or getattr(step, "ag_frame", None)
        if frame is not None:
            waits_at = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        step = getattr(step, "cr_await", None) or getattr(step, "gi_yieldfrom", None)
    held = " (held)" if task.process.is_held else ""
    return f"{task.process.name}{held}: {task.get_name()} at {waits_at or 'its beginning'}"
