"""A capability that waits for 50 ms, as a call of a model or a service does, for `worker start bench.side_nap`."""

from __future__ import annotations

import asyncio

from callboard import capability

NAP_S = 0.05
SLOTS = 8


@capability("bench-nap", concurrency=SLOTS)
async def nap(number: int) -> int:
    """Wait, and give the number back."""
    await asyncio.sleep(NAP_S)
    return number
