"""What every contract test runs on: each adapter in turn, with as many connections as a test asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from random import Random

import pytest
import pytest_asyncio

from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.faulty import FaultyBus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.memory import MemoryBroker
from tests.support.broker import Broker
from tests.support.server import NatsServer


@pytest_asyncio.fixture(params=["jetstream", "memory", "faulty"])
async def broker(request: pytest.FixtureRequest, make_server: Callable[..., NatsServer]) -> AsyncIterator[Broker]:
    """Return a broker that knows nothing yet; its connections are closed afterwards."""
    if request.param == "jetstream":
        server = await make_server().start()

        async def join(name: str) -> Bus:
            return await connect(server.url, name=name)
    else:
        memory = MemoryBroker()

        async def join(name: str) -> Bus:
            bus = memory.connect(name=name)
            # Without faults it must be a bus like any other.
            return FaultyBus(bus, Random(1)) if request.param == "faulty" else bus

    broker = Broker(request.param, join)
    yield broker
    await broker.close()


@pytest_asyncio.fixture
async def bus(broker: Broker) -> Bus:
    """Return one connection."""
    return await broker.connect()
