"""Waiting for a state instead of for time."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from callboard.runtime.clock import SYSTEM_CLOCK, Clock

_POLL_S = 0.01


async def eventually(
    check: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = 5.0, clock: Clock = SYSTEM_CLOCK
) -> None:
    """Return as soon as ``check`` holds; fail when it does not within ``timeout_s``."""
    limit_s = SYSTEM_CLOCK.monotonic() + timeout_s
    while True:
        found = check()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        assert SYSTEM_CLOCK.monotonic() < limit_s, (
            f"still not true after {timeout_s:g} s: {inspect.getsource(check).strip()}"
        )
        await SYSTEM_CLOCK.sleep(_POLL_S if clock is SYSTEM_CLOCK else 0)
