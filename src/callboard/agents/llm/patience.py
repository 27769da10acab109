"""How long a call of a model is tried: requests, the pauses between them, and one limit of time over all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from callboard.agents.errors import ModelError, ModelTimeoutError
from callboard.agents.llm.fault import is_spent
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.retry import RetryPolicy

BASE_S: Final = 0.5
T = TypeVar("T")


class Patience:
    """The time and the tries of one call.

    Attributes:
        retries: Requests that were made again so far.
    """

    def __init__(
        self, *, model: str, timeout_s: float, attempts: int, max_wait_s: float, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.retries = 0
        self._model = model
        self._timeout_s = timeout_s
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._policy = RetryPolicy(attempts=attempts, base_s=BASE_S, max_s=max(BASE_S, max_wait_s), jitter=0.2)
        self._end_s = clock.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds until the limit, 0 beyond it."""
        return max(0.0, self._end_s - self._clock.monotonic())

    @asynccontextmanager
    async def limit(self) -> AsyncIterator[None]:
        """End what runs inside at the limit. Not to be held over a ``yield`` of a stream.

        Raises:
            ModelTimeoutError: If the limit passed.
        """
        scope = asyncio.timeout(self.left_s)
        try:
            async with scope:
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise self.timed_out() from error

    def timed_out(self) -> ModelTimeoutError:
        """Return the error of a call that reached its limit."""
        message = f"{self._model} did not finish its answer within {self._timeout_s:g} s; allow more time (timeout_s)"
        return ModelTimeoutError(message, model=self._model)

    async def pause(self, error: ModelError) -> bool:
        """Wait before another request, and return True; or False if there is none to be made.

        None is made after an error that does not pass, beyond the attempts, when the provider asks for a longer pause
        than is allowed, and when the pause would end beyond the limit.
        """
        if not error.retryable or is_spent(error) or self.retries + 1 >= self._policy.attempts:
            return False
        gap_s = error.retry_after_s
        if gap_s is None:
            gap_s = self._policy.gap_s(self.retries + 1)
        elif gap_s > self._max_wait_s:
            return False
        if gap_s >= self.left_s:
            return False
        await self._clock.sleep(gap_s)
        self.retries += 1
        return True


async def persist(patience: Patience, attempt: Callable[[], Awaitable[T]]) -> T:
    """Return what ``attempt`` returns, made again as long as the patience lasts.

    Raises:
        ModelError: The last one.
    """
    while True:
        try:
            async with patience.limit():
                return await attempt()
        except ModelError as error:
            if not await patience.pause(error):
                raise
