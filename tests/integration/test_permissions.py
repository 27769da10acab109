"""What the server refuses is told as a refusal, at once and with its subject, though on the wire it is a silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from callboard.runtime.bus.base import PubAck, Write
from callboard.runtime.bus.jetstream import JetStreamBus, connect
from callboard.runtime.errors import PermissionDeniedError
from tests.support.broker import LOG, fill, hands, work_queue
from tests.support.eventually import eventually
from tests.support.server import NatsServer

USERS = """
authorization { users: [
  { user: admin, password: admin }
  { user: worker, password: worker, permissions: {
    publish: { allow: ["t.>", "l.open", "$JS.API.CONSUMER.MSG.NEXT.W.c", "$JS.ACK.W.c.>", "$JS.API.DIRECT.GET.L.>"] }
    subscribe: { allow: ["_INBOX_w.>", "open.>"] } } }
] }
"""


@pytest_asyncio.fixture
async def server(make_server: Callable[..., NatsServer]) -> NatsServer:
    return await make_server(more=USERS).start()


@pytest_asyncio.fixture
async def admin(server: NatsServer) -> AsyncIterator[JetStreamBus]:
    bus = await connect(server.url, name="admin", user="admin", password="admin")
    await work_queue(bus)
    await bus.create_stream(LOG)
    yield bus
    await bus.close()


@pytest_asyncio.fixture
async def worker(server: NatsServer, admin: JetStreamBus) -> AsyncIterator[JetStreamBus]:
    bus = await connect(server.url, name="worker", user="worker", password="worker", inbox_prefix="_INBOX_w")
    yield bus
    await bus.close()


async def test_what_is_allowed_works(worker: JetStreamBus) -> None:
    assert await worker.store(Write("l.open", b"1")) == PubAck("L", 1)
    taken = await hands(worker, credit=1)
    await fill(worker, b"1")
    await taken.have(1)
    await worker.ack(taken.tokens, confirm=True)
    found = await worker.get_last("L", "l.open")
    assert found is not None
    await worker.subscribe("open.a", lambda _: None)


async def test_a_denied_call_fails_at_once_and_names_its_subject(worker: JetStreamBus) -> None:
    calls = {
        "l.Closed": worker.store(Write("l.Closed", b""), timeout_s=30),
        "closed": worker.request("closed", b"", timeout_s=30),
        "$JS.API.STREAM.NAMES": worker.stream_names(),
        "$JS.API.STREAM.CREATE.X": worker.create_stream(LOG.__class__(name="X", subjects=("x",))),
        "l.closed.2": worker.store_batch([Write("l.open", b""), Write("l.closed.2", b""), Write("l.open", b"")]),
    }
    async with asyncio.timeout(3):
        for subject, call in calls.items():
            with pytest.raises(PermissionDeniedError) as caught:
                await call
            assert caught.value.subject == subject


async def test_a_denied_write_among_many_fails_alone(worker: JetStreamBus) -> None:
    found = await worker.store_many([Write("l.open", b"1"), Write("l.closed", b"2"), Write("l.open", b"3")])
    assert isinstance(found[0], PubAck)
    assert isinstance(found[1], PermissionDeniedError)
    assert isinstance(found[2], PubAck)


async def test_a_denied_subscription_is_refused(worker: JetStreamBus) -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        await worker.subscribe("Closed.a", lambda _: None)
    assert caught.value.subject == "Closed.a"
    with pytest.raises(PermissionDeniedError):
        await worker.subscribe("closed.*", lambda _: None, queue="group")


async def test_a_denied_publish_is_told_by_the_next_flush_and_once(worker: JetStreamBus) -> None:
    await worker.publish("t.Open")
    await worker.publish("My.history")
    await worker.publish("t.open")
    with pytest.raises(PermissionDeniedError) as caught:
        await worker.flush()
    assert caught.value.subject == "My.history"
    with pytest.raises(PermissionDeniedError):
        await worker.request("closed", b"")
    # the refusal of a call was told to its caller
    await worker.flush()


async def test_a_denied_pull_has_a_problem(admin: JetStreamBus, worker: JetStreamBus) -> None:
    config = (await admin.consumers("W"))[0].config
    await admin.create_consumer("W", config.__class__(name="other", filter_subject="t.b"))
    pull = await worker.pull("W", "other", lambda _: None)
    pull.grant(1)
    await eventually(lambda: pull.problem is not None)
    assert "permissions" in (pull.problem or "")
    assert pull.credit == 1


async def test_an_inbox_prefix_of_somebody_else_is_told_at_the_start(server: NatsServer, admin: JetStreamBus) -> None:
    with pytest.raises(PermissionDeniedError, match="inbox prefix"):
        await connect(server.url, name="worker", user="worker", password="worker")
