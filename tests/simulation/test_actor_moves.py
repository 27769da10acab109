"""A partition changes hands while an actor of it is in mid-turn: the turn goes on where it runs, and runs nowhere else.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.held import FREED, Freed
from callboard.runtime.actor.partition import Partition
from callboard.runtime.bus.base import Message, PubAck, Write
from callboard.runtime.errors import BusTimeoutError, ConflictError
from tests.simulation.actor_desk import CURSOR, LOST, Fleet, Stage, play, true


def test_a_turn_goes_on_where_it_runs_when_its_partition_moves() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 30.0)
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.tell("ann", "next")
        await fleet.begun("next")
        assert Stage.begun == ["long", "next"]
        assert Stage.ended[0] == "long"
        assert await fleet.done("ann") == ["long", "next"]

    play(scene)


def test_an_actor_in_mid_turn_is_not_called_free_while_its_partition_is_being_handed_over() -> None:
    """The owner tells of one that has just ended, and hears its own cursor, before it has noted the next one."""

    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        await fleet.tell("ann", "short", 20.0)
        await fleet.tell("bob", "long", 60.0)
        await fleet.begun("short")
        await fleet.begun("long")

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            ack = await act()
            if write.subject == CURSOR and cursors.decode(write.data).held:
                # the word of it comes when the first of the two has ended
                await fleet.world.eventually(lambda: true("short" in Stage.ended), within_s=30.0)
                await asyncio.sleep(0.1)
            return ack

        async def publish(subject: str) -> None:
            if subject == FREED:
                stored = await fleet.world.bus.get_last(subjects.ACTORS, CURSOR)
                assert stored is not None
                old._on_cursor(Message(CURSOR, stored.data))
                await asyncio.sleep(0.01)

        for bus in fleet.buses["a"]:
            bus.on_store, bus.on_publish = store, publish
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await asyncio.sleep(40.0)
        assert Stage.begun.count("long") == 1

    play(scene)


def test_a_turn_that_would_not_end_does_not_free_the_one_that_came_after_it() -> None:
    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        await fleet.tell("ann", "long", 60.0)
        await fleet.begun("long")
        partition = await fleet.owned_by("a")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        assert ("desk", 0, "ann") in old.held.activations
        former = Partition.activation(partition, "nobody")
        former.address = old.held.activations["desk", 0, "ann"].address
        # an activation of an earlier ownership comes to rest
        partition.settled(former)
        await asyncio.sleep(10.0)
        assert Stage.begun == ["long"]

    play(scene)


@pytest.mark.parametrize("knows_epochs", [True, False])
def test_a_late_notice_of_an_earlier_hold_does_not_free_the_present_one(knows_epochs: bool) -> None:
    """Without the epoch, as an older Callboard sends it, it does: two hosts then run the actor at once."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "short", 20.0)
        await fleet.begun("short")
        heir = await fleet.start_heir("a")
        held = await fleet.owned_by(heir)
        await fleet.world.eventually(lambda: true(Stage.ended), within_s=60.0)
        epoch = held.epoch if knows_epochs else None
        late = msgspec.json.encode(Freed(fleet.world.workers["a"].id, "desk", 0, "ann", epoch))
        await fleet.world.stop(heir)
        await fleet.owned_by("a")
        await fleet.tell("ann", "long", 60.0)
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.tell("ann", "next")
        await asyncio.sleep(1.0)
        await fleet.world.bus.publish(FREED, late)
        await asyncio.sleep(5.0)
        if not knows_epochs:
            assert Stage.begun.count("long") == 2
            return
        assert Stage.begun == ["short", "long"]
        await fleet.begun("next")
        assert Stage.ended[:2] == ["short", "long"]
        assert await fleet.done("ann") == ["short", "long", "next"]

    play(scene)


def test_an_actor_that_is_let_go_of_is_free_at_once_for_its_new_owner() -> None:
    """And not only when that one has looked: the notice is new enough."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 20.0)
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        partition = await fleet.owned_by(heir)
        host = fleet.world.workers[heir].host
        assert host is not None

        async def look() -> None:
            return

        host.held.look = look  # type: ignore[method-assign]
        await fleet.tell("ann", "next")
        await fleet.begun("next")
        assert partition.activations["ann"].held_by is None
        assert Stage.begun == ["long", "next"]

    play(scene)


def test_losing_a_partition_that_was_handed_over_leaves_its_held_turns_alone() -> None:
    """A look at the cursor was on its way when the partition went to another host, and shows it only afterwards."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 20.0)
        await fleet.begun("long")
        partition = await fleet.owned_by("a")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await partition.check()
        await fleet.world.eventually(lambda: true(Stage.ended), within_s=60.0)
        await asyncio.sleep(10.0)
        assert Stage.begun == ["long"]
        assert await fleet.done("ann") == ["long"]

    play(scene)


def test_losing_an_earlier_ownership_is_not_the_loss_of_the_present_one() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        former = await fleet.owned_by("a")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.world.stop(heir)
        present = await fleet.owned_by("a")
        assert present is not former
        former.is_handed = False
        former.lose()
        assert fleet.partition("a") is present

    play(scene)


def test_a_hand_over_whose_outcome_is_unknown_keeps_the_turn_that_it_names() -> None:
    """The cursor was written and the word of it lost: the turn is held, so it is not stopped here."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 30.0)
        await fleet.begun("long")
        lost: list[str] = []

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            ack = await act()
            if write.subject == CURSOR and cursors.decode(write.data).held and not lost:
                lost.append(write.subject)
                raise BusTimeoutError(LOST)
            return ack

        for bus in fleet.buses["a"]:
            bus.on_store = store
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.world.eventually(lambda: true(Stage.ended), within_s=60.0)
        await asyncio.sleep(10.0)
        assert lost
        assert Stage.begun == ["long"]
        assert await fleet.done("ann") == ["long"]

    play(scene)


def test_nothing_begins_after_a_hand_over_that_may_still_arrive() -> None:
    """The client library sends what was in its buffer after a reconnect, whoever has given up on it meanwhile."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.owned_by("a")
        late: list[Callable[[], Awaitable[PubAck]]] = []
        done: list[str] = []

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if write.subject == CURSOR and cursors.decode(write.data).owner != fleet.world.workers["a"].id:
                if not late:
                    late.append(act)
                    raise BusTimeoutError(LOST)
                if not done:
                    # it still lies in the buffer
                    raise BusTimeoutError(LOST)
            return await act()

        for bus in fleet.buses["a"]:
            bus.on_store = store
        heir = await fleet.start_heir("a")
        await fleet.world.eventually(lambda: true(late), within_s=20.0)
        await fleet.tell("ann", "long", 30.0)
        await asyncio.sleep(0.3)
        done.append("arrived")
        with contextlib.suppress(ConflictError):
            await late[0]()
        await fleet.owned_by(heir)
        await fleet.world.eventually(lambda: true(Stage.ended), within_s=60.0)
        await asyncio.sleep(10.0)
        assert Stage.begun == ["long"]

    play(scene)


def test_a_lower_bound_in_the_cursor_does_not_pass_for_a_finished_turn() -> None:
    """``pending`` may name a mail that was handled long ago; that it is handled says nothing of the turn under way."""

    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        await fleet.tell("ann", "first")
        await fleet.world.eventually(lambda: true(Stage.ended), within_s=20.0)
        await fleet.tell("ann", "long", 30.0)
        await fleet.begun("long")
        partition = await fleet.owned_by("a")
        real = partition.next_cursor

        def vague(**given: Any) -> Cursor:  # noqa: ANN401
            found = real(**given)
            return msgspec.structs.replace(found, pending=dict.fromkeys(found.pending, 1))

        partition.next_cursor = vague  # type: ignore[method-assign]
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await asyncio.sleep(10.0)
        assert Stage.begun == ["first", "long"]
        assert old.held.activations
        await fleet.world.eventually(lambda: true("long" in Stage.ended), within_s=60.0)
        await fleet.tell("ann", "last")

        async def is_done() -> bool:
            return await fleet.done("ann") == ["first", "long", "last"]

        await fleet.world.eventually(is_done, within_s=20.0)

    play(scene)


def test_an_order_reaches_the_host_that_still_has_the_actor_in_mid_turn() -> None:
    """Carried out by the new owner it would write the record, and the turn's own commit would be refused."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 20.0)
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        order = msgspec.json.encode({"op": "pause", "reason": "lunch"})
        answer = await fleet.world.bus.request(subjects.ctl_actor("desk", "ann"), order)
        assert msgspec.json.decode(answer.data) == {"ok": True, "status": "paused", "reason": "lunch"}
        await fleet.tell("ann", "next")
        await asyncio.sleep(30.0)
        assert Stage.begun == ["long"]
        assert await fleet.done("ann") == ["long"]
        order = msgspec.json.encode({"op": "resume"})
        await fleet.world.bus.request(subjects.ctl_actor("desk", "ann"), order)
        await fleet.begun("next")

    play(scene)


def test_a_drain_outlasts_a_broker_that_does_not_answer() -> None:
    """Its turns end, and the worker ends without an error."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 10.0)
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        await fleet.world.stop(heir)
        await fleet.owned_by("a")
        await fleet.start(heir)

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if write.subject == CURSOR:
                raise BusTimeoutError(LOST)
            return await act()

        async def tail(*_: object, **__: object) -> None:
            raise BusTimeoutError(LOST)

        for bus in fleet.buses["a"]:
            bus.on_store = store
            bus.tail = tail  # type: ignore[attr-defined]
        await fleet.world.stop("a")
        assert Stage.begun[0] == "long"
        assert await fleet.done("ann") == ["long"]

    play(scene)


def test_a_draining_host_begins_nothing_for_an_actor_it_had_not_in_memory() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 10.0)
        await fleet.begun("long")
        stopping = asyncio.ensure_future(fleet.world.stop("a"))
        await asyncio.sleep(1.0)
        await fleet.tell("bob", "late", 3.0)
        await stopping
        assert Stage.begun == ["long"]
        await fleet.start("b")
        await fleet.begun("late")
        assert Stage.begun == ["long", "late"]

    play(scene)


def test_a_partition_that_was_handed_to_a_draining_host_goes_on_at_once() -> None:
    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        partition = await fleet.owned_by("a")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.tell("ann", "long", 25.0)
        await fleet.begun("long")
        stopping = asyncio.ensure_future(fleet.world.stop(heir))
        await fleet.owned_by("a")
        # somebody who has not heard of the drain hands it back
        partition = old.partitions["desk", 0]
        await old._hand_over(partition, fleet.world.workers[heir].id)
        await fleet.tell("bob", "short")
        await asyncio.sleep(3.0)
        assert "short" in Stage.ended
        await stopping
        assert Stage.begun.count("long") == 1

    play(scene)
