"""An ordered reader: a feed whose messages are taken in batches; its owner makes the next one when it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime

from callboard.runtime.bus.base import Delivery
from callboard.runtime.bus.jetstream_admin import Administration
from callboard.runtime.bus.jetstream_feed import Feed
from callboard.runtime.bus.jetstream_link import Link
from callboard.runtime.errors import BusError


class OrderedReader:
    """One consumer's worth of reading. It only notices that it broke; its owner opens the next one.

    Attributes:
        is_broken: Nothing more comes.
    """

    def __init__(self, admin: Administration, link: Link, stream: str, subjects: Sequence[str]) -> None:
        self._arrived: list[Delivery] = []
        self._signal = asyncio.Event()
        self._is_idle = False
        self.is_broken = False
        self._feed = Feed(
            admin, link, stream=stream, subjects=subjects, take=self._take, broke=self._broke, idled=self._idled
        )

    @property
    def was_heard(self) -> bool:
        """Whether anything came, so that another one may be opened at once."""
        return self._feed.was_heard

    async def open(self, *, start_seq: int | None, start_time: datetime | None) -> int:
        """Begin to read; return how many messages wait. One round trip.

        Raises:
            BusError: If it cannot be made.
        """
        return await self._feed.open(start_seq=start_seq, start_time=start_time)

    async def batch(self) -> list[Delivery]:
        """Return what has arrived, in order; empty when the reader broke, or the server had nothing for a second."""
        while not self._arrived and not self.is_broken and not self._is_idle:
            self._signal.clear()
            await self._signal.wait()
        self._is_idle = False
        arrived, self._arrived = self._arrived, []
        return arrived

    async def is_dry(self) -> bool:
        """Return whether nothing is left to read now: what waited at first may have been purged, or expired, since."""
        try:
            return await self._feed.is_dry() and not self._arrived
        except BusError as error:
            self._feed.fail(str(error))
            return False

    def taken(self, count: int) -> None:
        """Say that ``count`` messages are used up, so that more may come."""
        self._feed.grant(count)

    async def close(self) -> None:
        """Give up the consumer."""
        await self._feed.close()

    def _take(self, delivery: Delivery) -> None:
        self._arrived.append(delivery)
        self._signal.set()

    def _broke(self, _reason: str) -> None:
        self.is_broken = True
        self._signal.set()

    def _idled(self) -> None:
        self._is_idle = True
        self._signal.set()
