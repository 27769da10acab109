"""Looking at actors and giving orders about them, with records written by hand, on both adapters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from msgspec import Raw, Struct

from callboard.cli import agents
from callboard.runtime import subjects
from callboard.runtime.actor import inspection
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.record import Parked, StateRecord, Timer
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import ActorStoppedError, DecodeError, InvalidNameError, NoHostError, NotFoundError
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.hand_host import GREETER, HandHost, put_cursor, put_state
from tests.support.world import World


class Hold(Struct):
    fails: bool = False


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


async def test_the_mail_that_runs_does_not_wait(callboard_world: World, capsys: pytest.CaptureFixture[str]) -> None:
    is_running, goes_on = asyncio.Event(), asyncio.Event()

    class Holder(Actor, name="greeter", retry=RetryPolicy(attempts=2, gaps_s=(60.0,))):
        @on
        async def hold(self, m: Hold) -> None:
            if m.fails:
                raise ValueError
            is_running.set()
            await goes_on.wait()

    await callboard_world.start(Holder)
    ann = callboard_world.client.actor(GREETER)
    first = await ann.tell(Hold())
    await is_running.wait()
    view = await inspection.show(callboard_world.bus, GREETER)
    # its first turn: there is no record yet, and nothing waits
    assert (view.status, view.mailbox.count, view.mailbox.oldest) == ("new", 0, None)
    second = await ann.tell(Hold(fails=True))
    third = await ann.tell(Hold())
    view = await inspection.show(callboard_world.bus, GREETER)
    assert view.mailbox.count == 2
    assert view.mailbox.oldest is not None
    assert view.mailbox.oldest.seq == second
    # it is not handled either
    assert [mail.seq for mail in await inspection.mailbox(callboard_world.bus, GREETER)] == [first, second, third]
    goes_on.set()

    async def waits_for_its_next_attempt() -> bool:
        view = await inspection.show(callboard_world.bus, GREETER)
        said = json.loads(bytes(view.running or b"{}")).get("running") or {}
        return bool(said.get("waits_for_retry")) and view.mailbox.count == 1

    await eventually(waits_for_its_next_attempt)
    agents._show(await inspection.show(callboard_world.bus, GREETER))
    assert "(Hold) failed and waits for its next attempt" in capsys.readouterr().out


async def test_of_a_record_that_cannot_be_read_all_else_is_shown(
    callboard_world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    bus = callboard_world.bus
    ann = callboard_world.client.actor(GREETER)
    await ann.tell({"text": "x"}, type="Ask")
    stands = await bus.store(Write(subjects.state("greeter", "ann"), b'{"v":1,"applied":'))
    view = await inspection.show(bus, GREETER)
    assert (view.address, view.status, view.record_seq, view.record_bytes) == (
        "greeter/ann",
        "undecodable",
        stands.seq,
        17,
    )
    assert "not a state record" in view.problem
    assert view.at is not None
    for part in (
        "cb.state.greeter.ann",
        f"replay agent greeter/ann --at {stands.seq - 1}",
        "agents resume greeter/ann",
    ):
        assert part in view.fix
    (line,) = await inspection.actors(bus)
    assert (line.status, line.reason, line.stored) == ("undecodable", view.problem, 1)
    for look in (inspection.mailbox(bus, GREETER), inspection.state_json(bus, GREETER)):
        with pytest.raises(DecodeError, match="the record of greeter/ann cannot be read"):
            await look
    agents._show(view)
    shown = capsys.readouterr().out
    for text in ("undecodable: this is not", f"17 B at sequence {stands.seq} of", "1 on disk", "to do:", view.fix):
        assert text in shown
    assert "turns:" not in shown


async def test_what_is_said_to_mend_a_record_does(callboard_world: World) -> None:
    world = callboard_world
    await put_state(world.bus, GREETER, StateRecord(turns=4, by="w"))
    good = await world.bus.get_last(subjects.ACTORS, subjects.state("greeter", "ann"))
    assert good is not None
    await world.bus.store(Write(subjects.state("greeter", "ann"), b"{}}"))

    class Free(Actor, name="greeter"):
        @on
        async def hold(self, m: Hold) -> None:
            pass

    await world.start(Free)
    await world.client.actor(GREETER).tell(Hold())

    async def is_noticed() -> bool:
        view = await inspection.show(world.bus, GREETER)
        return view.is_answering and b"state_decode" in bytes(view.running or b"")

    await eventually(is_noticed)
    await world.bus.store(Write(good.subject, good.data))
    assert (await inspection.order(world.bus, GREETER, "resume"))["status"] == "active"

    async def is_handled() -> bool:
        view = await inspection.show(world.bus, GREETER)
        return (view.status, view.turns, view.mailbox.count, view.problem, view.fix) == ("active", 5, 0, "", "")

    await eventually(is_handled)


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
