"""A turn's place among those that may run at once in a worker; it is free while the turn only waits for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Seat:
    """One place. Turns that ask actors of their own worker would else hold the very places that those need."""

    __slots__ = ("_away", "_has", "_is_left", "_slots")

    def __init__(self, slots: asyncio.Semaphore) -> None:
        """Hold none yet."""
        self._slots = slots
        self._has = False
        self._is_left = False
        self._away = 0

    async def take(self) -> None:
        """Wait for a place and hold it."""
        await self._slots.acquire()
        self._has = True

    def leave(self) -> None:
        """Give it back for good."""
        self._is_left = True
        self._free()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Give it to others inside the block. A turn that is being stopped does not wait for it again."""
        self._away += 1
        self._free()
        is_stopped = False
        try:
            yield
        except Exception:
            raise
        except BaseException:
            is_stopped = True
            raise
        finally:
            self._away -= 1
            if not (self._away or is_stopped or self._is_left or self._has):
                await self.take()
                self._check()

    def _check(self) -> None:
        """Give back what came after the turn had left."""
        if self._is_left:
            self._free()

    def _free(self) -> None:
        if self._has:
            self._has = False
            self._slots.release()
