"""The JetStream adapter through crashes of its server and through the client library's own dead ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callboard.runtime import events
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Message, PubAck, Write
from callboard.runtime.bus.jetstream import JetStreamBus, connect
from callboard.runtime.errors import BusError, BusTimeoutError
from tests.support.broker import LOG, Hands, fill, hands, work_queue
from tests.support.eventually import eventually
from tests.support.server import NatsServer


@pytest_asyncio.fixture
async def told() -> list[str]:
    """Return what the bus reports, by name."""
    return []


@pytest_asyncio.fixture
async def bus(nats_server: NatsServer, told: list[str]) -> AsyncIterator[JetStreamBus]:
    bus = await connect(nats_server.url, name="test", on_event=lambda event, _: told.append(event))
    yield bus
    await bus.close()


async def _down(bus: Bus) -> None:
    await eventually(lambda: not bus.is_connected)


async def _up(bus: Bus, *, within_s: float = 5.0) -> None:
    await eventually(lambda: bus.is_connected, within_s=within_s)


async def test_a_restart_is_noticed_and_told(bus: JetStreamBus, nats_server: NatsServer, told: list[str]) -> None:
    calls: list[float] = []
    bus.on_reconnect(lambda: calls.append(bus.connected_at))
    first = bus.connected_at
    nats_server.kill()
    await _down(bus)
    await nats_server.start()
    await _up(bus)
    await eventually(lambda: calls)
    assert bus.connected_at > first
    await eventually(lambda: bus.server.name != "")
    assert told == [events.BUS_CONNECTED, events.BUS_DISCONNECTED, *_failures(told), events.BUS_RECONNECTED]


def _failures(told: list[str]) -> list[str]:
    return [event for event in told if event == events.BUS_FAILED]


async def test_a_pending_store_is_answered_when_the_link_breaks(bus: JetStreamBus, nats_server: NatsServer) -> None:
    await bus.create_stream(LOG)
    nats_server.pause()
    waiting = [
        asyncio.create_task(bus.store(Write("l.a", b""), timeout_s=30)),
        asyncio.create_task(bus.store_batch([Write("l.a", b""), Write("l.b", b"")], timeout_s=30)),
        asyncio.create_task(bus.request("l.a", b"", timeout_s=30)),
        asyncio.create_task(bus.ack(["$JS.ACK.L.c.1.1.1.1.1"], confirm=True, timeout_s=30)),
    ]
    many = asyncio.create_task(bus.store_many([Write("l.a", b"")] * 3, timeout_s=30))
    await asyncio.sleep(0.05)
    nats_server.kill()
    async with asyncio.timeout(2):
        for task in waiting:
            with pytest.raises(BusTimeoutError, match="connection lost"):
                await task
        assert [type(answer) for answer in await many] == [BusTimeoutError] * 3


async def test_what_is_published_while_away_goes_out_afterwards(bus: JetStreamBus, nats_server: NatsServer) -> None:
    heard: list[Message] = []
    await bus.subscribe("news", heard.append)
    nats_server.kill()
    await _down(bus)
    await bus.publish("news", b"1")
    flushed = asyncio.create_task(bus.flush(timeout_s=10))
    await nats_server.start()
    await flushed
    await eventually(lambda: [message.data for message in heard] == [b"1"])


async def test_a_subscription_made_while_away_works_afterwards(bus: JetStreamBus, nats_server: NatsServer) -> None:
    heard: list[Message] = []
    nats_server.kill()
    await _down(bus)
    await bus.subscribe("news", heard.append)
    await nats_server.start()
    await _up(bus)
    await bus.publish("news", b"1")
    await eventually(lambda: heard)


async def test_an_idle_pull_asks_again_for_exactly_its_credit(bus: JetStreamBus, nats_server: NatsServer) -> None:
    await work_queue(bus)
    taken = await hands(bus, credit=3)
    await bus.flush()
    for _ in range(2):
        nats_server.kill()
        await _down(bus)
        assert taken.pull.problem == "not connected"
        taken.pull.grant(1)
        await nats_server.start()
        await _up(bus)
        assert taken.pull.problem is None
    await fill(bus, *(b"%d" % number for number in range(9)))
    await taken.have(5)
    await bus.flush()
    await asyncio.sleep(0.1)
    assert taken.bodies == [b"%d" % number for number in range(5)]
    assert taken.pull.credit == 0


async def test_under_load_nothing_acknowledged_is_lost_and_the_credit_is_kept(
    bus: JetStreamBus, nats_server: NatsServer
) -> None:
    await work_queue(bus, ack_wait_s=1.0)
    stored: set[str] = set()
    refused = 0
    is_over = False

    async def write(name: int) -> None:
        nonlocal refused
        number = 0
        while not is_over:
            task = f"{name}-{number}"
            try:
                await bus.store(Write("t.a", task.encode(), header.build(msg_id=task)), timeout_s=10)
                stored.add(task)
            except BusError:
                refused += 1
                await asyncio.sleep(0.01)
            number += 1

    worker = _Worker(bus, credit=32)
    await worker.open()
    writers = [asyncio.create_task(write(name)) for name in range(8)]
    for _ in range(3):
        await asyncio.sleep(0.4)
        nats_server.kill()
        await _down(bus)
        await nats_server.start()
        await _up(bus)
    await asyncio.sleep(0.3)
    is_over = True
    await asyncio.gather(*writers)
    await eventually(lambda: stored <= worker.done, within_s=10, what="all stored tasks done")
    await worker.close()
    assert len(stored) > 100
    assert refused < len(stored)
    assert worker.highest <= 32


class _Worker:
    """Acks what it gets, and watches that it never holds more than it granted."""

    def __init__(self, bus: Bus, *, credit: int) -> None:
        self._bus = bus
        self._credit = credit
        self._taken = Hands()
        self._held = 0
        self.highest = 0
        self.done: set[str] = set()

    async def open(self) -> None:
        self._wake = asyncio.Event()
        self._pull = await self._bus.pull("W", "c", self._sink)
        self._task = asyncio.create_task(self._work())
        self._pull.grant(self._credit)

    def _sink(self, delivery: object) -> None:
        self._taken.got.append(delivery)  # type: ignore[arg-type] # a delivery, for the test's own list
        self._held += 1
        self.highest = max(self.highest, self._held + self._pull.credit)
        self._wake.set()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            burst, self._taken.got = self._taken.got, []
            await self._bus.ack([delivery.token for delivery in burst])
            self.done |= {delivery.data.decode() for delivery in burst}
            self._held -= len(burst)
            self._pull.grant(len(burst))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._pull.close()


async def test_following_goes_on_where_it_was(bus: JetStreamBus, nats_server: NatsServer) -> None:
    await bus.create_stream(LOG)
    seen: list[int] = []

    async def follow() -> None:
        async for stored in bus.read("L", follow=True):
            seen.append(stored.seq)  # noqa: PERF401 - looked at while it grows

    task = asyncio.create_task(follow())
    for round_number in range(1, 4):
        await bus.store_many([Write("l.a", b"") for _ in range(100)])
        # A reader that has not begun yet is told of the break; one that has goes on by itself.
        await eventually(lambda: seen)
        nats_server.kill()
        await _down(bus)
        await nats_server.start()
        await _up(bus)
        await eventually(lambda: len(seen) >= round_number * 100)  # noqa: B023 - awaited in this very turn
        assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen == list(range(1, 301))


async def test_a_client_that_gave_up_is_replaced(bus: JetStreamBus, told: list[str]) -> None:
    """The client library closes for good when the server names an error of the protocol."""
    await work_queue(bus)
    heard: list[Message] = []
    await bus.subscribe("news", heard.append)
    taken = await hands(bus, credit=2)
    first = bus.connected_at
    await bus._link.send("a", bytes((1 << 20) - 5), "", {"X": "over the limit together with the body"})
    await eventually(lambda: bus.connected_at > first and bus.is_connected)
    await bus.publish("news", b"1")
    await eventually(lambda: heard)
    await fill(bus, b"1", b"2", b"3")
    await taken.have(2)
    assert await bus.store(Write("t.a", b"4")) == PubAck("W", 4)
    assert events.BUS_RECONNECT_FORCED in told
    assert taken.bodies == [b"1", b"2"]


@pytest.mark.slow
async def test_a_server_that_hangs_with_full_buffers_is_left_and_found_again(
    bus: JetStreamBus, nats_server: NatsServer
) -> None:
    """The client library would wait for its old socket to be written out, for as long as the server hangs."""
    await work_queue(bus)
    taken = await hands(bus, credit=1)
    nats_server.pause()
    for _ in range(8):
        await bus.publish("t.b", bytes(900_000))
    await eventually(lambda: not bus.is_connected, within_s=12)
    await asyncio.sleep(10)
    nats_server.resume()
    await _up(bus, within_s=15)
    await bus.store(Write("t.a", b"1"))
    await taken.have(1)


async def test_a_flush_that_gave_up_does_not_cost_the_connection(
    bus: JetStreamBus, nats_server: NatsServer, told: list[str]
) -> None:
    """A late pong would end the client library's read loop."""
    nats_server.pause()
    with pytest.raises(BusTimeoutError):
        await bus.flush(timeout_s=0.1)
    cancelled = asyncio.create_task(bus.flush(timeout_s=5))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    nats_server.resume()
    await bus.flush()
    await bus.stream_names()
    assert told == [events.BUS_CONNECTED]


async def test_a_flush_covers_what_was_published_before_it(nats_server: NatsServer) -> None:
    """The client library sends its ping ahead of what waits in its buffer."""
    sender = await connect(nats_server.url, name="sender")
    hearer = await connect(nats_server.url, name="hearer")
    try:
        heard: list[Message] = []
        await hearer.subscribe("a", heard.append)
        for number in range(1, 50):
            await sender.publish("a", b"x")
            await sender.flush()
            await hearer.flush()
            assert len(heard) == number
    finally:
        await sender.close()
        await hearer.close()
