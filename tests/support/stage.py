"""One turn's journal under test: a broker with the actors' stream, and a clock that does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus, PubAck, Stored, Write
from callboard.runtime.bus.memory import MemoryBroker
from callboard.runtime.bus.topology import declared
from callboard.runtime.config import TopologySettings

ANN = Address("greeter", "ann/1")
SEQ = 7
STREAMS = ("CB_ACTORS", "OBJ_CB_BLOBS")

Pause = Callable[[str], Awaitable[None]]


class HastyClock:
    """A clock on which every sleep is over at once. Implements ``Clock``."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.time_s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time_s)

    async def sleep(self, delay_s: float) -> None:
        if delay_s > 0:
            self.slept.append(delay_s)
            self.time_s += delay_s
        await asyncio.sleep(0)


class PausingBus:
    """A connection that calls ``pause`` before and after whatever a journal asks of it."""

    def __init__(self, bus: Bus, pause: Pause) -> None:
        self._bus = bus
        self._pause = pause

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the real connection's
        return getattr(self._bus, name)

    async def store(self, write: Write, **options: Any) -> PubAck:  # noqa: ANN401
        await self._pause("before store")
        answer = await self._bus.store(write, **options)
        await self._pause("after store")
        return answer

    async def get_many(self, stream: str, names: Sequence[str], **options: Any) -> list[Stored]:  # noqa: ANN401
        await self._pause("before read")
        answer = await self._bus.get_many(stream, names, **options)
        await self._pause("after read")
        return answer


async def provision(bus: Bus) -> None:
    """Make the streams that a journal uses."""
    for config in declared(TopologySettings()).streams:
        if config.name in STREAMS:
            await bus.create_stream(config)


class Stage:
    """A broker on which runs of one turn follow or race each other."""

    def __init__(self, connect: Callable[[], Bus]) -> None:
        self.clock = HastyClock()
        self._connect = connect
        self._buses: list[Bus] = []
        self.bus = self.connect()

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Stage]:
        """Give a stage on an in-memory broker; lifetimes there run on the real clock, so nothing expires."""
        stage = cls(MemoryBroker().connect)
        await provision(stage.bus)
        try:
            yield stage
        finally:
            for bus in stage._buses:
                await bus.close()

    def connect(self) -> Bus:
        """Open a connection that is closed with the stage."""
        bus = self._connect()
        self._buses.append(bus)
        return bus

    def journal(
        self,
        kind: type[Journal] = Journal,
        *,
        is_fresh: bool = False,
        pause: Pause | None = None,
        **options: Any,  # noqa: ANN401 - the journal's own
    ) -> Journal:
        """Begin a run of the turn on a connection of its own."""
        bus = self.connect()
        if pause is not None:
            bus = PausingBus(bus, pause)  # type: ignore[assignment] # all but three methods are handed on
        given: dict[str, Any] = {
            "worker": "w1",
            "clock": self.clock,
            "blobs": BlobStore(bus, clock=self.clock),
            "ttl_s": 3600.0,
        }
        return kind(bus, ANN, SEQ, is_fresh=is_fresh, **given | options)

    async def records(self) -> dict[str, list[StepRecord]]:
        """Return all records of the turn by entry, oldest first."""
        found: dict[str, list[StepRecord]] = {}
        async for stored in self.bus.read("CB_ACTORS", subjects=(subjects.steps(ANN.type, ANN.key, SEQ),)):
            found.setdefault(step.entry_of(stored.subject), []).append(step.decode(stored.data))
        return found
