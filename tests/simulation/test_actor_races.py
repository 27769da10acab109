"""Two things happen to one host or one actor at the same time: nothing is lost, doubled or stuck.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.actor.activation import Activation
from callboard.runtime.actor.services import ActorRules
from callboard.runtime.bus.base import PubAck, Write
from callboard.runtime.errors import BusTimeoutError
from callboard.runtime.worker import WorkerOptions
from tests.simulation.actor_desk import LOST, Fleet, Go, Hold, Narrow, Stage, Work, play, true


def test_a_stop_hook_that_never_ends_holds_up_neither_cursors_nor_the_end() -> None:
    async def scene(fleet: Fleet) -> None:
        Stage.never_stops = True
        await fleet.start("a")
        await fleet.tell("ann", "short")
        await fleet.begun("short")
        await asyncio.sleep(400.0)
        await fleet.tell("bob", "later")
        await fleet.begun("later")
        await asyncio.sleep(3.0)
        assert (await fleet.cursor()).pending == {}
        await fleet.world.stop("a")

    play(scene, max_time_s=900.0)


def test_a_mistake_in_one_actor_is_not_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Activation._step

    async def step(activation: Activation) -> bool:
        if activation.address.key == "bad":
            raise ZeroDivisionError
        return await real(activation)

    monkeypatch.setattr(Activation, "_step", step)

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 10.0)
        await fleet.begun("long")
        await fleet.tell("bad", "no")
        await fleet.world.eventually(lambda: true(Stage.ended), within_s=20.0)
        await fleet.tell("bob", "next")
        await fleet.begun("next")
        await fleet.world.stop("a")
        assert Stage.begun == ["long", "next"]

    play(scene)


def test_mail_is_not_lost_to_a_server_that_is_behind() -> None:
    """A direct get is answered by any server, and what the new owner is to read may not have reached that one."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 5.0)
        await fleet.tell("ann", "next")
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        for bus in fleet.buses[heir]:
            bus.is_behind = True
        await fleet.owned_by(heir)
        await fleet.begun("next")
        assert Stage.begun == ["long", "next"]

    play(scene)


def test_a_turn_is_not_run_again_because_its_large_state_could_not_be_stored_at_once() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        refused: list[str] = []

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if write.subject.startswith("$O.") and len(refused) < 4:
                refused.append(write.subject)
                raise BusTimeoutError(LOST)
            return await act()

        for bus in fleet.buses["a"]:
            bus.on_store = store
        assert await fleet.world.actor("desk/ann").ask(Work("large", keeps=300_000), timeout_s=60.0) == "large"
        assert len(refused) == 4
        assert Stage.begun == ["large"]

    play(scene)


def test_an_order_does_not_forget_a_turn_that_parks_at_the_same_time() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        desk = fleet.world.actor("desk/ann")
        await desk.tell(Hold("one"))
        await fleet.begun("one")
        await asyncio.sleep(1.0)
        (parked,) = await fleet.parked("ann")
        for bus in fleet.buses["a"]:
            bus.batch_takes_s = 1.0
            bus.get_takes_s = 1.0
        order = msgspec.json.encode({"op": "cancel", "seq": parked})
        ordering = asyncio.ensure_future(fleet.world.bus.request(subjects.ctl_actor("desk", "ann"), order))
        # the order reads while the other turn begins to write
        await asyncio.sleep(0.5)
        await desk.tell(Hold("two"))
        answer = await ordering
        assert msgspec.json.decode(answer.data)["ok"]
        await asyncio.sleep(3.0)
        assert len(await fleet.parked("ann")) == 1
        await desk.tell(Go("two"))
        await fleet.world.eventually(lambda: true(Stage.ended == ["two"]), within_s=20.0)

    play(scene)


def test_mail_that_is_being_refused_does_not_run_meanwhile() -> None:
    """Its dead letter takes longer than the turn that it waits behind."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a", Narrow)

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if write.subject.startswith("cb.dead."):
                await asyncio.sleep(3.0)
            return await act()

        for bus in fleet.buses["a"]:
            bus.on_store = store
        narrow = fleet.world.actor("narrow/ann")
        for name in ("first", "second"):
            await narrow.tell(Work(name, 1.0))
        await asyncio.sleep(6.0)
        await narrow.tell(Work("third"))
        await fleet.begun("third")
        assert Stage.begun == ["first", "third"]
        assert len(await fleet.world.stored("CB_DEAD", "cb.dead.mail.narrow.>")) == 1

    play(scene)


def test_a_turn_that_waits_for_a_place_moves_on_with_its_partition() -> None:
    """It has not begun, so nothing holds it to a host whose places are all taken."""

    async def scene(fleet: Fleet) -> None:
        fleet.options = WorkerOptions(actor_rules=ActorRules(turns=1), hosts_registry=False)
        old = await fleet.start("a")
        await fleet.tell("ann", "long", 60.0)
        await fleet.begun("long")
        await fleet.tell("bob", "short")
        await asyncio.sleep(1.0)
        assert Stage.begun == ["long"]
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.begun("short")
        assert Stage.ended == ["short"]
        assert list(old.held.activations) == [("desk", 0, "ann")]
        await fleet.world.eventually(lambda: true("long" in Stage.ended), within_s=90.0)
        assert Stage.begun == ["long", "short"]

    play(scene)


def test_hosts_that_died_are_forgotten() -> None:
    """Every start has a new name, so what is kept of the dead would grow for ever."""

    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        for _ in range(3):
            await fleet.start("b")
            await asyncio.sleep(3.0)
            fleet.world.crash("b")
        await asyncio.sleep(10.0)
        assert old.fleet._hosts == {}  # what is kept is the point
        assert fleet.world.workers["a"]._peers == {}

    play(scene)
