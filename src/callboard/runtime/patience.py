"""Repeating what the broker may do later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusError

T = TypeVar("T")

START_S = 30.0
"""For how long something that starts outwaits a broker without a leader."""

_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)


async def outlast(call: Callable[[], Awaitable[T]], *, clock: Clock, within_s: float | None = None) -> T:
    """Return what ``call`` returns, called again after each error that may pass.

    Args:
        call: A read, or a write that may be repeated.
        clock: Where pauses are slept, 0.05 to 2 s.
        within_s: Seconds after which the last error is raised; None never gives up.

    Raises:
        BusError: One that does not pass, or is still there after ``within_s``.
    """
    began_s = clock.monotonic()
    tries = 0
    while True:
        try:
            return await call()
        except BusError as error:
            if not error.retryable or (within_s is not None and clock.monotonic() - began_s > within_s):
                raise
        await clock.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
        tries += 1
