"""The only place that reads time or sleeps; tests hand in another clock."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """Time as the runtime sees it."""

    def monotonic(self) -> float:
        """Return seconds from a fixed but unknown start; for durations and deadlines inside one process."""
        ...

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC; for records and for deadlines that travel."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Wait ``delay_s`` seconds (0 yields once). Cancelling ends the wait."""
        ...


class SystemClock:
    """The machine's clock."""

    __slots__ = ()

    # On Linux it goes on while the process is stopped. Both are asked for several times a task, so no Python frame
    # stands between.
    monotonic = staticmethod(time.monotonic)
    now = staticmethod(partial(datetime.now, UTC))

    async def sleep(self, delay_s: float) -> None:
        """Wait on the running event loop."""
        await asyncio.sleep(delay_s)


SYSTEM_CLOCK = SystemClock()
