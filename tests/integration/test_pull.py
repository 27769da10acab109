"""Standing pulls on a real server: what expires, goes missing or piles up there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callboard.runtime import events
from callboard.runtime.bus.base import Delivery
from callboard.runtime.bus.jetstream import JetStreamBus, connect
from callboard.runtime.bus.jetstream_pull import StandingPull
from tests.support.broker import fill, hands, work_queue
from tests.support.eventually import eventually
from tests.support.proxy import MuteProxy
from tests.support.server import NatsServer


@pytest_asyncio.fixture
async def told() -> list[tuple[str, dict[str, object]]]:
    """Return what the bus reports."""
    return []


@pytest_asyncio.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[MuteProxy]:
    proxy = await MuteProxy(nats_server.port).start()
    yield proxy
    await proxy.close()


@pytest_asyncio.fixture
async def bus(proxy: MuteProxy, told: list[tuple[str, dict[str, object]]]) -> AsyncIterator[JetStreamBus]:
    bus = await connect(proxy.url, name="test", on_event=lambda event, fields: told.append((event, fields)))
    await work_queue(bus)
    yield bus
    await bus.close()


def _short(bus: JetStreamBus, got: list[Delivery]) -> StandingPull:
    return StandingPull(bus._link, "W", "c", got.append, heartbeat_s=0.1, expires_s=0.3)


async def test_requests_that_expire_are_asked_again_for_what_is_left(
    bus: JetStreamBus, told: list[tuple[str, dict[str, object]]]
) -> None:
    got: list[Delivery] = []
    pull = _short(bus, got)
    pull.grant(4)
    await fill(bus, b"1")
    await eventually(lambda: got)
    pull.grant(3)
    heard = pull.last_heard
    await eventually(lambda: len([event for event, _ in told if event == events.BUS_REPULLED]) >= 4)
    assert pull.last_heard > heard
    assert pull.problem is None
    assert pull.credit == 6
    await fill(bus, *(b"%d" % number for number in range(10)))
    await eventually(lambda: len(got) == 7)
    await asyncio.sleep(0.5)
    assert len(got) == 7
    await pull.close()


async def test_a_pull_that_hears_nothing_asks_again(
    bus: JetStreamBus, proxy: MuteProxy, told: list[tuple[str, dict[str, object]]]
) -> None:
    got: list[Delivery] = []
    pull = _short(bus, got)
    pull.grant(2)
    await fill(bus, b"1")
    await eventually(lambda: got)
    proxy.mute()
    await eventually(lambda: events.BUS_DEAFENED in [event for event, _ in told], within_s=5)
    # Three times deaf, and the node is left; what stands there is asked for again.
    await eventually(lambda: proxy.connections == 2, within_s=10)
    await eventually(lambda: bus.is_connected)
    await fill(bus, b"2", b"3")
    await eventually(lambda: len(got) == 2)
    assert pull.credit == 0
    await pull.close()


async def test_one_grant_a_message_leaves_few_requests_at_the_server(bus: JetStreamBus) -> None:
    """The server keeps 512 of them for a consumer, whoever asks."""
    taken = await hands(bus, credit=200)
    for round_number in range(1, 16):
        await fill(bus, *(b"x" for _ in range(40)))
        await taken.have(40 * round_number)
        await bus.ack(taken.tokens[-40:])
        for _ in range(40):
            taken.pull.grant(1)
            await asyncio.sleep(0)
    info = await bus._api("CONSUMER.INFO.W.c")
    assert taken.pull.credit == 200
    assert 1 <= info["num_waiting"] <= 8


@pytest.mark.parametrize("workers", [3])
async def test_hundreds_of_slots_in_several_workers_stay_served(nats_server: NatsServer, workers: int) -> None:
    buses = [await connect(nats_server.url, name=f"worker-{number}") for number in range(workers)]
    try:
        await work_queue(buses[0], max_ack_pending=100_000)
        taken = [await hands(bus) for bus in buses]
        for _ in range(300):
            for worker in taken:
                worker.pull.grant(1)
            await asyncio.sleep(0)
        total = 300 * workers
        await fill(buses[0], *(b"x" for _ in range(total + 10)))
        await eventually(lambda: sum(len(worker.got) for worker in taken) == total, within_s=10)
        assert [worker.pull.credit for worker in taken] == [0] * workers
        assert [worker.pull.problem for worker in taken] == [None] * workers
    finally:
        for bus in buses:
            await bus.close()
