"""Clients of a cluster whose servers are cut off from each other, are down, or have no leader yet."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from callboard.runtime import events
from callboard.runtime.bus import header, muster
from callboard.runtime.bus.base import Bus, ConsumerConfig, Delivery, StreamConfig, Write
from callboard.runtime.bus.jetstream import JetStreamBus, connect
from callboard.runtime.bus.jetstream_admin import API_TIMEOUT_S
from callboard.runtime.bus.jetstream_state import LinkState
from callboard.runtime.errors import BusConnectError, BusError, TopologyError
from tests.support.cluster import Servers
from tests.support.eventually import eventually

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

QUEUE = StreamConfig(
    name="Q", subjects=("q.>",), retention="workqueue", replicas=3, allow_direct=True, discard="new", max_bytes=1 << 20
)
LOG = StreamConfig(name="L", subjects=("l.>",), replicas=3, allow_direct=True)


@pytest_asyncio.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    found = Servers(tmp_path, count=3, more=lambda number: _config(tmp_path, number), has_mesh=True)
    try:
        yield found
    finally:
        found.kill()


def _config(folder: Path, number: int) -> str:
    store = json.dumps(str(folder / f"store-{number}"))
    return f"jetstream {{ store_dir: {store}, sync_interval: always, max_mem: 64MB, max_file: 1GB }}"


async def _prepare(servers: Servers) -> JetStreamBus:
    """Start the servers, make the streams, and return a connection."""
    await servers.start()
    bus = await connect(servers.url, name="test", connect_deadline_s=20.0)

    async def has_streams() -> bool:
        try:
            for config in (QUEUE, LOG):
                await bus.create_stream(config)
        except (TopologyError, BusError):
            return False
        return True

    await eventually(has_streams, within_s=20.0, what="streams with three copies", every_s=0.2)
    return bus


async def _store(bus: Bus, subject: str, body: bytes) -> None:
    """Store one message, however often it takes."""
    while True:
        try:
            await bus.store(Write(subject, body))
        except BusError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(0.05)
        else:
            return


def _seat(servers: Servers, bus: Bus) -> int:
    return next(n for n, server in enumerate(servers.all) if str(server.port) in bus.server.url)


@pytest.mark.parametrize("way", ["isolated", "deaf"])
async def test_a_client_of_a_server_cut_from_its_peers_leaves_it(servers: Servers, way: str) -> None:
    first = await _prepare(servers)
    told: list[str] = []
    bus = await connect(servers.url, name="cut", on_event=lambda event, _: told.append(event))
    try:
        await _store(bus, "l.a", b"old")
        number = _seat(servers, bus)
        assert servers.mesh is not None
        (servers.mesh.isolate if way == "isolated" else servers.mesh.deafen)(number)
        began_s = time.monotonic()
        reading = asyncio.create_task(_read_stale(bus))
        # answers that come from the copy of the server that is cut off prove nothing, however many there are
        await asyncio.wait_for(_store(bus, "l.a", b"new"), 30.0)
        took_s = time.monotonic() - began_s
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        print(f"{way}: stored again after {took_s:.1f} s")  # noqa: T201 - a measurement, for whoever looks
        assert events.BUS_RECONNECT_FORCED in told
        assert _seat(servers, bus) != number
        stored = await bus.get_last("L", "l.a", from_leader=True)
        assert stored is not None
        assert stored.data == b"new"
    finally:
        servers.mesh.heal()  # type: ignore[union-attr] # asserted above
        await bus.close()
        await first.close()


async def test_a_leader_that_is_cut_off_does_not_hold_its_clients(servers: Servers) -> None:
    """It goes on answering, that the first copy of a message is on its way: that is no word of a leader."""
    first = await _prepare(servers)
    bus = await connect(servers.url, name="cut")
    assert servers.mesh is not None
    try:
        number = _seat(servers, bus)
        await _lead(first, "L", f"cb{number}")
        servers.mesh.isolate(number)
        write = Write("l.a", b"new", {header.MSG_ID: "one"})
        async with asyncio.timeout(60.0):
            while True:
                try:
                    ack = await bus.store(write, timeout_s=0.5)
                except BusError:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert ack.seq == 1
        assert _seat(servers, bus) != number
        assert "stream '$G > L' has NO quorum" not in servers.all[number].log(), "it stayed until the server gave up"
    finally:
        servers.mesh.heal()
        await bus.close()
        await first.close()


async def _lead(bus: Bus, stream: str, server: str) -> None:
    """Have a stream led by ``server``."""
    wanted = json.dumps({"placement": {"preferred": server}}).encode()

    async def is_led() -> bool:
        info = await bus.stream_info(stream)
        if info is not None and info.leader == server:
            return True
        await bus.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", wanted)
        return False

    await eventually(is_led, within_s=30.0, what=f"{server} as the leader", every_s=0.5)


async def test_control_without_the_watchdog_it_stays_there(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await _prepare(servers)
    bus = await connect(servers.url, name="cut")
    assert servers.mesh is not None
    try:
        number = _seat(servers, bus)
        monkeypatch.setattr(LinkState, "unanswered", lambda self: None)
        servers.mesh.isolate(number)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_store(bus, "l.a", b"new"), 12.0)
        assert _seat(servers, bus) == number
    finally:
        servers.mesh.heal()
        await bus.close()
        await first.close()


async def _read_stale(bus: Bus) -> None:
    while True:
        try:
            await bus.get_last("L", "l.a")
        except BusError:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.02)


async def test_an_idle_pull_on_a_server_cut_off_is_served_by_another(servers: Servers) -> None:
    first = await _prepare(servers)
    bus = await connect(servers.url, name="idle")
    assert servers.mesh is not None
    try:
        await bus.create_consumer("Q", ConsumerConfig(name="c", filter_subject="q.a", ack_wait_s=4.0))
        got: list[Delivery] = []
        pull = await bus.pull("Q", "c", got.append)
        pull.grant(10)
        number = _seat(servers, bus)
        elsewhere = await connect([s.url for n, s in enumerate(servers.all) if n != number], name="elsewhere")
        try:
            servers.mesh.isolate(number)
            began_s = time.monotonic()
            await asyncio.wait_for(_store(elsewhere, "q.a", b"1"), 30.0)
            print(f"stored after {time.monotonic() - began_s:.1f} s")  # noqa: T201 - as above
            await eventually(lambda: got, within_s=30.0, what="a delivery", every_s=0.05)
            print(f"delivered after {time.monotonic() - began_s:.1f} s")  # noqa: T201 - as above
            assert _seat(servers, bus) != number
        finally:
            await elsewhere.close()
    finally:
        servers.mesh.heal()
        await bus.close()
        await first.close()


async def test_connecting_needs_no_particular_server(servers: Servers) -> None:
    bus = await _prepare(servers)
    await bus.close()
    servers.all[0].kill()
    waited: list[str] = []
    bus = await connect(
        servers.url, name="late", connect_deadline_s=30.0, on_event=lambda event, _: waited.append(event)
    )
    try:
        await asyncio.wait_for(_store(bus, "l.a", b"1"), 30.0)
    finally:
        await bus.close()


async def test_connecting_waits_for_a_leader_and_says_so(servers: Servers) -> None:
    await servers.start()
    told: list[str] = []
    bus = await connect(
        servers.url, name="early", connect_deadline_s=30.0, on_event=lambda event, _: told.append(event)
    )
    try:
        assert told[-1] == events.BUS_CONNECTED
        assert events.BUS_WAITED in told
    finally:
        await bus.close()


async def _refusal(servers: Servers) -> str:
    """Return why nobody is let in; a leader goes on for some seconds before it notices that it is alone."""
    said: list[str] = []

    async def is_refused() -> bool:
        try:
            bus = await connect(servers.url, name="alone", connect_deadline_s=3.0)
        except BusConnectError as error:
            said.append(str(error))
            return True
        await bus.close()
        return False

    await eventually(is_refused, within_s=40.0, what="a refusal", every_s=0.5)
    return said[0]


async def test_a_lost_majority_is_named(servers: Servers) -> None:
    bus = await _prepare(servers)
    await bus.close()
    names = {server.url: f"cb{number}" for number, server in enumerate(servers.all)}
    servers.all[1].kill()
    servers.all[2].pause()
    text = await _refusal(servers)
    assert "the cluster has lost its majority: 1 of 3 servers answer (cb0 at nats://127.0.0.1:" in text
    assert f"{servers.all[1].url} is away" in text
    assert f"{servers.all[2].url} takes connections and says nothing" in text
    found = await muster.look([server.url for server in servers.all], names=names)
    assert [(each.name, each.state) for each in found] == [("cb0", "answers"), ("cb1", "away"), ("cb2", "silent")]
    assert not muster.has_majority(found)
    servers.all[2].resume()


async def test_the_leader_is_asked_for_nothing_at_once(servers: Servers) -> None:
    """Where no subject fits nobody answers, and nobody is waited for: each turn taken over asks so."""
    bus = await _prepare(servers)
    await _store(bus, "l.a", b"1")
    async with asyncio.timeout(API_TIMEOUT_S / 2):
        assert await bus.get_many("L", ["l.b.>"], from_leader=True) == []
    assert [stored.data for stored in await bus.get_many("L", ["l.>"], from_leader=True)] == [b"1"]
    await bus.close()
