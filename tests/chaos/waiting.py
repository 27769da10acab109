"""Wait for something to become true, with a bound; no fixed sleeps."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.02


async def eventually(
    look: Callable[[], T | Awaitable[T]], *, within_s: float, what: str = "", every_s: float = POLL_S
) -> T:
    """Return the first truthy answer of ``look``.

    Raises:
        AssertionError: If there is none within ``within_s``; it names ``what`` and the last answer.
    """
    give_up_s = time.monotonic() + within_s
    while True:
        found = look()
        answer: T = await found if inspect.isawaitable(found) else found
        if answer:
            return answer
        if time.monotonic() > give_up_s:
            message = f"{what or 'it'} did not happen within {within_s:g} s; the last answer was {answer!r}"
            raise AssertionError(message)
        await asyncio.sleep(every_s)
