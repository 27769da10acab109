"""A watch of the shared context over a link that breaks: nothing that was changed meanwhile is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callboard.agents.context import Change, Context
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.config import TopologySettings
from tests.support.eventually import eventually
from tests.support.proxy import MuteProxy
from tests.support.server import NatsServer


@pytest_asyncio.fixture
async def direct(nats_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await connect(nats_server.url, name="writer")
    await apply(bus, await plan(bus, declared(TopologySettings())))
    yield bus
    await bus.close()


class Watcher:
    def __init__(self, bus: Bus, prefix: str = "", *, from_start: bool = False) -> None:
        self.seen: list[Change] = []
        self._context = Context(bus, by="watcher")
        self._task = asyncio.create_task(self._run(prefix, from_start=from_start))

    @property
    def numbers(self) -> list[int]:
        return [change.new for change in self.seen if change.key == "k"]

    async def begun(self, writer: Context) -> None:
        """Wait until it hears."""

        async def heard() -> bool:
            await writer.set("begin", 0)
            return bool(self.seen)

        await eventually(heard)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, prefix: str, *, from_start: bool) -> None:
        async for change in self._context.watch(prefix, from_start=from_start):
            self.seen.append(change)


@pytest.mark.parametrize("from_start", [False, True])
async def test_changes_during_a_cut_are_seen_after_it(
    direct: Bus, nats_server: NatsServer, *, from_start: bool
) -> None:
    proxy = await MuteProxy(nats_server.port).start()
    bus = await connect(proxy.url, name="watcher")
    writer = Context(direct, by="writer")
    watcher = Watcher(bus, from_start=from_start)
    await watcher.begun(writer)
    await writer.set("k", 1)
    await eventually(lambda: watcher.numbers == [1])
    proxy.mute()
    await writer.set("k", 2)
    await writer.set("k", 3)
    assert (await Context(direct, by="x").get("k"), watcher.numbers) == (3, [1])
    await bus.reconnect()
    await eventually(lambda: watcher.numbers == [1, 2, 3], within_s=20)
    await writer.set("k", 4)
    await eventually(lambda: watcher.numbers == [1, 2, 3, 4])
    assert [(change.old, change.by) for change in watcher.seen if change.key == "k"][1:] == [
        (1, "writer"),
        (2, "writer"),
        (3, "writer"),
    ]
    await watcher.close()
    await bus.close()
    await proxy.close()


async def test_changes_around_the_death_of_the_server_are_seen(direct: Bus, nats_server: NatsServer) -> None:
    bus = await connect(nats_server.url, name="watcher")
    writer = Context(direct, by="writer")
    watcher = Watcher(bus)
    await watcher.begun(writer)
    for n in range(10):
        await writer.set("k", n)
    await nats_server.restart()
    await eventually(lambda: direct.is_connected, within_s=20)
    for n in range(10, 20):
        await writer.set("k", n)
    await eventually(lambda: watcher.numbers == list(range(20)), within_s=20)
    await watcher.close()
    await bus.close()
