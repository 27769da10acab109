"""Looking at actors and giving orders about them, with records written by hand, on both adapters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from msgspec import Raw

from callboard.runtime import subjects
from callboard.runtime.actor import inspection
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.record import Parked, StateRecord, Timer
from callboard.runtime.blobs import BlobStore
from callboard.runtime.errors import ActorStoppedError, InvalidNameError, NoHostError, NotFoundError
from tests.support.hand_host import GREETER, HandHost, put_cursor, put_state
from tests.support.world import World

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
BOB = Address("greeter", "b.o*b ü")


@pytest.fixture
async def host(callboard_world: World) -> AsyncIterator[HandHost]:
    found = await HandHost(await callboard_world.connect("host")).open()
    yield found
    await found.close()


async def test_actors_are_listed_by_their_records_and_their_mail(callboard_world: World) -> None:
    bus = callboard_world.bus
    waits = Parked(seq=1, awaiting="Approval", since=NOON)
    await put_state(bus, GREETER, StateRecord(applied=1, by="w", turns=4, status="paused", reason="look", at=NOON))
    await put_state(bus, Address("clerk", "1"), StateRecord(applied=1, by="w", turns=1, parked=[waits]))
    await callboard_world.client.actor(BOB).tell({"text": "x"}, type="Ask")
    await callboard_world.client.actor(BOB).tell({"text": "y"}, type="Ask")
    found = await inspection.actors(bus)
    assert [(a.address, a.status, a.turns, a.parked, a.stored) for a in found] == [
        ("clerk/1", "active", 1, 1, 0),
        ("greeter/ann", "paused", 4, 0, 0),
        (str(BOB), "new", 0, 0, 2),
    ]
    assert (found[1].reason, found[1].at) == ("look", NOON)
    assert [a.address for a in await inspection.actors(bus, kind="clerk")] == ["clerk/1"]
    assert len(await inspection.actors(bus, limit=2)) == 2
    with pytest.raises(InvalidNameError):
        await inspection.actors(bus, kind="no such")


async def test_the_mailbox_is_what_is_above_applied_and_not_ahead(callboard_world: World) -> None:
    ann = callboard_world.client.actor(BOB)
    seqs = [await ann.tell({"n": n}, type="Ask", id=f"m{n}") for n in range(5)]
    await callboard_world.client.actor("greeter/other").tell(1)
    await put_state(callboard_world.bus, BOB, StateRecord(applied=seqs[1], ahead=[seqs[3]], by="w", turns=3))
    waiting = await inspection.mailbox(callboard_world.bus, BOB)
    assert [(w.seq, w.id, w.type, w.size_bytes) for w in waiting] == [
        (seqs[2], "m2", "Ask", 7),
        (seqs[4], "m4", "Ask", 7),
    ]
    assert len(await inspection.mailbox(callboard_world.bus, BOB, limit=1)) == 1
    assert await inspection.mailbox(callboard_world.bus, Address("greeter", "nobody")) == []


async def test_one_actor_is_shown_with_its_owner_mail_timers_and_waits(callboard_world: World, host: HandHost) -> None:
    bus = callboard_world.bus
    seq = await callboard_world.client.actor(GREETER).tell({"text": "x"}, type="Ask")
    state = StateRecord(
        applied=seq - 1,
        by="worker-1",
        turns=7,
        state=Raw(b'{"turns":7}'),
        timers={"tea": Timer(generation=3, due=NOON)},
        parked=[Parked(seq=1, awaiting="Approval", since=NOON, until=NOON)],
    )
    await put_state(bus, GREETER, state)
    await put_cursor(bus, GREETER, "worker-1", epoch=9)
    asking = asyncio.create_task(inspection.show(bus, GREETER))
    order = await host.ordered()
    assert (order.subject, json.loads(order.data)) == ("cb.ctl.actor.greeter.ann", {"op": "show"})
    await host.answer(order, {"ok": True, "running": {"seq": 8}})
    view = await asking
    assert (view.address, view.status, view.turns, view.owner, view.epoch) == (
        "greeter/ann",
        "active",
        7,
        "worker-1",
        9,
    )
    assert (view.mailbox.count, view.mailbox.is_more) == (1, False)
    assert view.mailbox.oldest is not None
    assert view.mailbox.oldest.seq == seq
    assert view.timers["tea"].due == NOON
    assert view.parked[0].awaiting == "Approval"
    assert view.is_answering
    assert view.running is not None
    assert json.loads(bytes(view.running))["running"] == {"seq": 8}


async def test_an_actor_without_host_is_shown_from_its_record_alone(callboard_world: World) -> None:
    await callboard_world.client.actor(GREETER).tell({"text": "x"}, type="Ask")
    view = await inspection.show(callboard_world.bus, GREETER)
    assert (view.status, view.owner, view.is_answering, view.mailbox.count) == ("new", "", False, 1)
    with pytest.raises(NotFoundError, match="nothing is known"):
        await inspection.show(callboard_world.bus, Address("greeter", "nobody"))


async def test_a_long_mailbox_is_counted_up_to_a_limit(callboard_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "COUNT_LIMIT", 3)
    for number in range(4):
        await callboard_world.client.actor(GREETER).tell(number)
    view = await inspection.show(callboard_world.bus, GREETER)
    assert (view.mailbox.count, view.mailbox.is_more) == (3, True)


async def test_the_state_is_told_wherever_it_lies(callboard_world: World) -> None:
    bus = callboard_world.bus
    with pytest.raises(NotFoundError, match="no state"):
        await inspection.state_json(bus, GREETER)
    await put_state(bus, GREETER, StateRecord(applied=1, by="w"))
    assert await inspection.state_json(bus, GREETER) is None
    await put_state(bus, GREETER, StateRecord(applied=2, by="w", state=Raw(b'{"turns":1}')))
    assert await inspection.state_json(bus, GREETER) == Raw(b'{"turns":1}')
    blob = await BlobStore(bus).put(b'{"turns":2}')
    await put_state(bus, GREETER, StateRecord(applied=3, by="w", blob=blob))
    assert await inspection.state_json(bus, GREETER) == Raw(b'{"turns":2}')


async def test_an_order_goes_to_the_owner_and_its_answer_comes_back(callboard_world: World, host: HandHost) -> None:
    pausing = asyncio.create_task(inspection.order(callboard_world.bus, BOB, "pause", reason="look"))
    order = await host.ordered()
    assert subjects.actor_of(order.subject.replace("cb.ctl.actor", "cb.ctl")) == (BOB.type, BOB.key)
    assert json.loads(order.data) == {"op": "pause", "reason": "look"}
    await host.answer(order, {"ok": True, "status": "paused"})
    assert await pausing == {"ok": True, "status": "paused"}
    again = asyncio.create_task(inspection.order(callboard_world.bus, BOB, "requeue", seq=7))
    order = await host.ordered(2)
    assert json.loads(order.data) == {"op": "requeue", "seq": 7}
    await host.answer(order, {"error": {"code": "actor_stopped", "message": "it is dead"}})
    with pytest.raises(ActorStoppedError, match="it is dead"):
        await again


async def test_an_order_without_a_host_says_so(callboard_world: World) -> None:
    with pytest.raises(NoHostError, match="worker start"):
        await inspection.order(callboard_world.bus, GREETER, "pause")


async def test_an_order_that_no_owner_answers_says_so(
    callboard_world: World, host: HandHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_ORDER_TIMEOUT_S", 0.1)
    with pytest.raises(NoHostError, match="owns greeter/ann now"):
        await inspection.order(callboard_world.bus, GREETER, "pause")
