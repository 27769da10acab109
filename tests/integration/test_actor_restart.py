"""Actors over a restart of the server: what waits goes on waiting, what was due comes once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.config import TopologySettings
from tests.support.actors import handled, parked, record_of
from tests.support.eventually import eventually
from tests.support.server import NatsServer
from tests.support.world import World


class Order(Struct):
    item: str


class Approval(Struct):
    by: str


class Ring(Struct):
    text: str


rung: list[str] = []
runs: list[str] = []


class Desk(Actor):
    class State(Struct):
        orders: list[str] = []

    @on
    async def order(self, m: Order) -> str:
        runs.append(m.item)
        length = await self.step("length", len, m.item)
        found = await self.wait_for(Approval)
        self.state.orders.append(m.item)
        return f"{found.by} {length}"

    @on
    async def set(self, m: Ring) -> None:
        if m.text.startswith("set"):
            self.remind("one", Ring("due"), delay_s=1.5)
            self.tell(self.address, Ring("told"), delay_s=1.5)
        else:
            rung.append(m.text)


@pytest.fixture
async def server(make_server: Callable[..., NatsServer]) -> NatsServer:
    rung.clear()
    runs.clear()
    return await make_server().start()


@pytest.fixture
async def world(server: NatsServer) -> AsyncIterator[World]:
    """A world whose server a test may end and start again."""

    async def connect(name: str) -> Bus:
        return await jetstream.connect(server.url, name=name)

    bus = await connect("world")
    await apply(bus, await plan(bus, declared(TopologySettings())))
    found = World("jetstream", connect, bus)
    yield found
    await found.close()


async def test_a_parked_turn_outlives_a_restart_of_the_server(world: World, server: NatsServer) -> None:
    await world.start(Desk)
    desk = world.client.actor("desk/d")
    waiting = asyncio.create_task(desk.ask(Order("pen"), idempotency_key="k", timeout_s=50))
    await parked(world, "desk/d")
    server.kill()
    await server.restart()

    async def told() -> bool:
        try:
            await desk.tell(Approval("ann"), id="approval", timeout_s=1.0)
        except Exception:  # noqa: BLE001 - the link is not back yet
            return False
        return True

    await eventually(told, within_s=20)
    assert await waiting == "ann 3"
    assert runs == ["pen", "pen"]


async def test_what_was_due_while_the_server_was_down_comes_once(world: World, server: NatsServer) -> None:
    await world.start(Desk)
    await world.client.actor("desk/d").ask(Ring("set"))
    first = await record_of(world, "desk/d")
    assert list(first.timers) == ["one"]
    due = first.timers["one"].due
    assert isinstance(due, datetime)
    server.kill()
    await eventually(lambda: world.clock.now() > due, within_s=5)
    await server.restart()
    await eventually(lambda: sorted(rung) == ["due", "told"], within_s=20)
    found = await handled(world, "desk/d", 3)
    assert found.timers == {}
    assert sorted(rung) == ["due", "told"]
