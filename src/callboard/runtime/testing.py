"""Doubles for tests of programs built on Callboard."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count

_START = datetime(2026, 1, 1, tzinfo=UTC)
# Wake-ups chain: sleeper -> timer -> sink -> handler -> commit. Idle loop turns cost about a microsecond each.
_SETTLE_TURNS = 50


class FakeClock:
    """A clock that moves only when told. Implements ``Clock``."""

    def __init__(self, *, start: datetime = _START, monotonic_s: float = 1000.0) -> None:
        """Begin at ``start`` on the wall and at ``monotonic_s`` since the unknown start."""
        self._start = start
        self._began = monotonic_s
        self._time = monotonic_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    def monotonic(self) -> float:
        """Return the fake seconds."""
        return self._time

    def now(self) -> datetime:
        """Return the fake wall time; it moves in step with ``monotonic``."""
        return self._start + timedelta(seconds=self._time - self._began)

    async def sleep(self, delay_s: float) -> None:
        """Wait until ``advance`` has moved the clock by ``delay_s``; 0 yields once."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (self._time + delay_s, next(self._arrivals), waiter))
        await waiter

    async def advance(self, delay_s: float) -> None:
        """Move the clock, waking sleepers one due time after the other and letting the loop settle after each."""
        target = self._time + delay_s
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, waiter = heappop(self._sleepers)
            if waiter.done():
                continue
            self._time = max(self._time, due)
            waiter.set_result(None)
            await self.settle()
        self._time = target
        await self.settle()

    async def settle(self, turns: int = _SETTLE_TURNS) -> None:
        """Let ready work run for ``turns`` loop turns without moving the clock."""
        for _ in range(turns):
            await asyncio.sleep(0)
