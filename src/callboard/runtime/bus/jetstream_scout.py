"""Scouts: connections to the other servers of a cluster, to learn which of them reaches a leader before we go there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from callboard.runtime.bus.jetstream_link import Proof
from callboard.runtime.errors import CallboardError

DIAL_S = 1.0
ANSWER_S = 0.75
# How much later our own server may show a leader than another one, and keep us.
HERE_S = 0.2


class Scout(Protocol):
    """A connection to one server, for questions."""

    @property
    def is_connected(self) -> bool:
        """Whether it stands."""
        ...

    async def ask(self, subject: str, timeout_s: float) -> bytes:
        """Return the answer, nothing when there was none."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class Scouts:
    """The scouts of one link. They stand between two looks, so that an election is watched without new connections."""

    def __init__(self, dial: Callable[[str, float], Awaitable[Scout]]) -> None:
        """Prepare; ``dial`` connects to one address within so many seconds, or raises a ``CallboardError``."""
        self._dial = dial
        self._scouts: dict[str, Scout] = {}

    async def find(self, urls: Sequence[str], proof: Proof, *, here: str = "") -> str | None:
        """Return the first of ``urls`` whose server shows that it reaches a leader.

        "" when none does, or when the server at ``here`` shows it as well; None when none could be asked: they are
        away, or only reachable from elsewhere.
        """
        at_home = asyncio.create_task(self._asks(here, proof), name="bus-scout-here") if here else None
        asked = [asyncio.create_task(self._asks(url, proof), name="bus-scout") for url in urls]
        try:
            for answer in asyncio.as_completed(asked):
                if url := await answer:
                    return "" if await _holds(at_home) else url
            return "" if any(scout.is_connected for scout in self._scouts.values()) else None
        finally:
            asked += [at_home] if at_home is not None else []
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def recall(self) -> None:
        """Disconnect them all."""
        scouts, self._scouts = self._scouts, {}
        await asyncio.gather(*(scout.close() for scout in scouts.values()))

    async def _asks(self, url: str, proof: Proof) -> str:
        scout = self._scouts.get(url)
        if scout is None or not scout.is_connected:
            try:
                scout = await self._dial(url, DIAL_S)
            except CallboardError:
                # it is away, or lets nobody in
                return ""
            self._scouts[url] = scout
        return url if proof.holds(await scout.ask(proof.subject, ANSWER_S)) else ""


async def _holds(at_home: asyncio.Task[str] | None) -> bool:
    if at_home is None:
        return False
    await asyncio.wait({at_home}, timeout=HERE_S)
    return at_home.done() and bool(at_home.result())
