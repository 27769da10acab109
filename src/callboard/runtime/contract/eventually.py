"""Waiting in tests: for something to become true, never for a time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable

from callboard.runtime.clock import SYSTEM_CLOCK

POLL_S = 0.01


async def eventually(
    condition: Callable[[], object] | Callable[[], Awaitable[object]],
    *,
    within_s: float = 5.0,
    what: str = "",
    every_s: float = POLL_S,
) -> None:
    """Wait until ``condition`` holds; fail with ``what`` when it does not in time."""
    deadline = time.monotonic() + within_s
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        if time.monotonic() > deadline:
            message = f"not within {within_s} s: {what or inspect.getsource(condition).strip()}"
            raise AssertionError(message)
        await SYSTEM_CLOCK.sleep(every_s)
