"""The contract of the bus port: a class of tests that every adapter inherits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest_asyncio

from callboard.runtime.bus.base import Bus
from callboard.runtime.contract.broker import Broker
from callboard.runtime.contract.bus_actors import BusForActors
from callboard.runtime.contract.bus_admin import BusAdmin
from callboard.runtime.contract.bus_core import BusCore
from callboard.runtime.contract.bus_read import BusRead
from callboard.runtime.contract.bus_store import BusStore
from callboard.runtime.contract.bus_tail import BusTail
from callboard.runtime.contract.bus_work import BusWork
from callboard.runtime.errors import InputError

Connect = Callable[[str], Awaitable[Bus]]
"""Opens one connection by its name."""


class BusContract(BusCore, BusStore, BusRead, BusTail, BusWork, BusAdmin, BusForActors):
    """All promises of the port; a class of tests inherits it and says by ``make`` how a broker comes about.

    ::

        class TestMine(BusContract):
            @asynccontextmanager
            async def make(self) -> AsyncIterator[Connect]:
                broker = MyBroker()
                yield broker.connect
    """

    def make(self) -> AbstractAsyncContextManager[Connect]:
        """Give a broker that knows nothing yet, for one test: what opens connections to it.

        Raises:
            InputError: If the class does not say.
        """
        message = f"{type(self).__name__} says no broker: give it `make`, or a fixture `broker`"
        raise InputError(message)

    @pytest_asyncio.fixture
    async def broker(self) -> AsyncIterator[Broker]:
        """Give a broker; its connections are closed afterwards."""
        async with self.make() as connect:
            found = Broker(type(self).__name__, connect)
            yield found
            await found.close()

    @pytest_asyncio.fixture
    async def bus(self, broker: Broker) -> Bus:
        """Give one connection."""
        return await broker.connect()
