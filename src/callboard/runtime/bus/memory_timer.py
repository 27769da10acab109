"""The in-memory broker's only timer: one heap of due events, one named task that sleeps on the given clock."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from callboard.runtime.clock import Clock

# A sleep of ``due - now`` may end one float step before ``due``; without slack the timer would spin on it.
SLACK_S = 1e-9


class Timers:
    """Due events in order of time, then of arrival. Events are never cancelled: each must check that it still holds."""

    def __init__(self, clock: Clock) -> None:
        """Start with no events and stopped; ``start`` needs a running loop."""
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._arrivals = count()
        self._task: asyncio.Task[None] | None = None
        self._wake_at = 0.0
        self._is_running = False
        # the broker's own: what arms the timer may be any party's code
        self._context = contextvars.copy_context()

    def call_at(self, due: float, act: Callable[[], object]) -> None:
        """Run ``act`` at monotonic ``due`` or, when that has passed, with the next due events; never in this call."""
        heappush(self._heap, (max(due, self._clock.monotonic()), next(self._arrivals), act))
        self._arm()

    def run_due(self) -> None:
        """Run every event that is due; every broker operation calls it first, so nobody sees a stale state."""
        while self._heap and self._heap[0][0] <= self._clock.monotonic() + SLACK_S:
            heappop(self._heap)[2]()

    def start(self) -> None:
        """Let the clock drive the events from now on."""
        self._is_running = True
        self._arm()

    async def stop(self) -> None:
        """End the task; events stay and run late after the next ``start``."""
        self._is_running = False
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _arm(self) -> None:
        if not self._is_running or not self._heap:
            return
        if self._task is not None and not self._task.done():
            if self._wake_at <= self._heap[0][0]:
                return
            self._task.cancel()
        self._wake_at = self._heap[0][0]
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name="memory-broker-timer", context=self._context)

    async def _run(self) -> None:
        while self._heap:
            self._wake_at = self._heap[0][0]
            await self._clock.sleep(max(0.0, self._wake_at - self._clock.monotonic()))
            self.run_due()
