"""What is sent to a stream without a leader is lost; what may come twice is sent again before its time is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Message, StreamConfig, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.jetstream_bus import JetStreamBus
from callboard.runtime.errors import BusTimeoutError
from tests.support.eventually import eventually
from tests.support.server import NatsServer

SUBJECT = "late.a"


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[JetStreamBus]:
    """A connection that takes its server for one of a cluster."""
    found = await connect(nats_server.url, name="test")
    found._server = replace(found.server, cluster="c")
    yield found
    await found.close()


async def unheard(bus: JetStreamBus) -> list[Message]:
    """Have somebody listen who does not answer: a stream without a leader looks the same to who stores there."""
    heard: list[Message] = []
    await bus.subscribe("late.>", heard.append)
    await bus.flush()
    return heard


async def appear(bus: JetStreamBus, heard: list[Message], count: int) -> None:
    await eventually(lambda: len(heard) >= count)
    await bus.create_stream(StreamConfig(name="LATE", subjects=("late.>",), allow_atomic=True, allow_direct=True))


@pytest.mark.parametrize(
    "write",
    [Write(SUBJECT, b"1", {"Nats-Msg-Id": "one"}), Write(SUBJECT, b"1", header.build(expected_seq=0), again=True)],
    ids=["by its id", "by its condition"],
)
async def test_a_write_that_may_come_twice_is_stored_once_a_stream_is_there(bus: JetStreamBus, write: Write) -> None:
    heard = await unheard(bus)
    storing = asyncio.create_task(bus.store(write, timeout_s=20))
    many = asyncio.create_task(bus.store_many([Write("late.b", b"", {"Nats-Msg-Id": "b"}), write], timeout_s=20))
    await appear(bus, heard, 3)
    await asyncio.gather(storing, many)
    assert storing.result().seq
    assert await bus.subject_counts("LATE") == {SUBJECT: 1, "late.b": 1}


async def test_a_batch_that_may_come_twice_is_stored_whole(bus: JetStreamBus) -> None:
    heard = await unheard(bus)
    writes = [Write(SUBJECT, b"1", header.build(expected_seq=0), again=True), Write("late.b", b"2")]
    storing = asyncio.create_task(bus.store_batch(writes, timeout_s=20))
    await appear(bus, heard, 2)
    assert (await storing).count == 2
    assert await bus.subject_counts("LATE") == {SUBJECT: 1, "late.b": 1}


async def test_a_write_without_a_name_is_sent_once(bus: JetStreamBus) -> None:
    heard = await unheard(bus)
    with pytest.raises(BusTimeoutError):
        await bus.store(Write(SUBJECT, b"1"), timeout_s=2.5)
    with pytest.raises(BusTimeoutError):
        await bus.store_batch([Write(SUBJECT, b"1"), Write("late.b", b"2")], timeout_s=2.5)
    assert len(heard) == 3
