"""The simulation's clock: monotonic time is the loop's, wall time may be wrong by host."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from callboard.runtime.clock import SYSTEM_CLOCK

START = datetime(2026, 1, 1, tzinfo=UTC)
_BEGAN_S = 1000.0


class VirtualClock:
    """Time of one host. Implements ``Clock``.

    Attributes:
        skew_s: How far its wall clock is ahead; may be changed at any time, as an administrator would.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, skew_s: float = 0.0) -> None:
        """Read the time of ``loop``."""
        self._loop = loop
        self._read_s = -1.0
        self._reads = 0
        self.skew_s = skew_s

    def monotonic(self) -> float:
        """Return the loop's seconds, from a start of their own."""
        return _BEGAN_S + self._loop.time()

    def now(self) -> datetime:
        """Return the wall time as this host has it; no two reads of a host give the same, as none do in earnest."""
        now_s = self._loop.time()
        self._reads = self._reads + 1 if now_s == self._read_s else 0
        self._read_s = now_s
        return START + timedelta(seconds=now_s + self.skew_s, microseconds=self._reads)

    async def sleep(self, delay_s: float) -> None:
        """Wait ``delay_s`` virtual seconds; 0 yields once."""
        await SYSTEM_CLOCK.sleep(delay_s)
