"""The gate before the steps of one run of a turn: shut, it lets those under way finish and none begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class StepGate:
    """Open until somebody shuts it. Steps inside of a step pass in any case: the outer one is under way."""

    __slots__ = ("_on_rest", "_running", "_waiting")

    def __init__(self) -> None:
        """Begin open."""
        self._running = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._on_rest: Callable[[], None] | None = None

    def shut(self, on_rest: Callable[[], None]) -> None:
        """Let no further step begin; ``on_rest`` is called when one wants to and none is under way."""
        if self._on_rest is None:
            self._on_rest = on_rest

    async def enter(self) -> None:
        """Pass, or wait before the shut gate to be cancelled."""
        if self._on_rest is None:
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        loop.call_soon(self._look)
        await waiter

    def begun(self) -> None:
        """Count a step that is under way."""
        self._running += 1

    def ended(self) -> None:
        """Count it no more."""
        self._running -= 1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        # never from inside the turn's own task: a task that is cancelled while it runs forgets what it returns
        if self._on_rest is None or self._running or not self._waiting:
            return
        # first the reason, then the end of those who wait: they may stand in other tasks, or be waited for by a thread
        self._on_rest()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.cancel()
