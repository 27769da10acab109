"""The bus port on every adapter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest_asyncio

from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.faulty import FaultyBus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.memory import MemoryBroker
from callboard.runtime.contract.broker import Broker
from callboard.runtime.contract.bus import BusContract, Connect
from tests.support.server import NatsServer


class TestJetStream(BusContract):
    @pytest_asyncio.fixture
    async def broker(  # type: ignore[override] # a fixture, and pytest knows what it asks for
        self, make_server: Callable[..., NatsServer]
    ) -> AsyncIterator[Broker]:
        server = await make_server().start()

        async def join(name: str) -> Bus:
            return await connect(server.url, name=name)

        found = Broker("jetstream", join)
        yield found
        await found.close()


class TestMemory(BusContract):
    @asynccontextmanager
    async def make(self) -> AsyncIterator[Connect]:
        memory = MemoryBroker()

        async def join(name: str) -> Bus:
            return memory.connect(name=name)

        yield join


class TestFaulty(BusContract):
    """Without faults it must be a bus like any other."""

    @asynccontextmanager
    async def make(self) -> AsyncIterator[Connect]:
        memory = MemoryBroker()

        async def join(name: str) -> Bus:
            return FaultyBus(memory.connect(name=name), Random(1))

        yield join
