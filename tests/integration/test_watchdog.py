"""A node cut off from its peers keeps its clients: the link is healthy and JetStream never answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callboard.runtime import events
from callboard.runtime.bus import jetstream_state
from callboard.runtime.bus.base import PubAck, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.errors import BusTimeoutError
from tests.support.broker import LOG
from tests.support.eventually import eventually
from tests.support.proxy import MuteProxy
from tests.support.server import NatsServer

TIMEOUT_S = 0.4


@pytest_asyncio.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[MuteProxy]:
    proxy = await MuteProxy(nats_server.port).start()
    yield proxy
    await proxy.close()


async def _silence(proxy: MuteProxy, told: list[str]) -> list[PubAck | str]:
    """Store once a turn while the proxy swallows the answers; return what came of each."""
    bus = await connect(proxy.url, name="test", on_event=lambda event, _: told.append(event))
    try:
        await bus.create_stream(LOG)
        proxy.mute()
        found: list[PubAck | str] = []
        for _ in range(5):
            try:
                found.append(await bus.store(Write("l.a", b""), timeout_s=TIMEOUT_S))
            except BusTimeoutError:
                found.append("timeout")
                await eventually(lambda: bus.is_connected)
        return found
    finally:
        await bus.close()


async def test_a_silent_jetstream_is_left_after_three_timeouts(proxy: MuteProxy) -> None:
    told: list[str] = []
    found = await _silence(proxy, told)
    assert found[:3] == ["timeout"] * 3
    assert isinstance(found[-1], PubAck)
    assert events.BUS_RECONNECT_FORCED in told
    assert proxy.connections == 2


async def test_without_the_watchdog_the_silence_would_last(proxy: MuteProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    monkeypatch.setattr(jetstream_state, "_UNANSWERED", 1_000_000)
    assert await _silence(proxy, []) == ["timeout"] * 5
    assert proxy.connections == 1


async def test_timeouts_beside_answers_leave_the_link_alone(nats_server: NatsServer) -> None:
    told: list[str] = []
    bus = await connect(nats_server.url, name="test", on_event=lambda event, _: told.append(event))
    try:
        await bus.create_stream(LOG)

        async def ask_in_vain() -> None:
            # An acknowledgement that no consumer takes and somebody listens to: it stays without answer.
            with pytest.raises(BusTimeoutError):
                await bus.ack(["deaf"], confirm=True, timeout_s=0.2)

        await bus.subscribe("deaf", lambda _: None)
        for _ in range(6):
            await asyncio.gather(ask_in_vain(), bus.store(Write("l.a", b"")))
        assert events.BUS_RECONNECT_FORCED not in told
    finally:
        await bus.close()
