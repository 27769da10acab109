"""A host stands still for seconds in mid-turn and comes back when another has gone on: it begins nothing again.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.hosting import ActorHost
from callboard.runtime.actor.step import CRASHED
from callboard.runtime.bus.base import PubAck, Write
from tests.simulation.actor_desk import CURSOR, Fleet, Stage, Stairs, play, true

STEPS = 14
# the thawed host comes back at another moment of its heir's step each time
FROZEN_S = [5.0 + step / 10 for step in range(25)]


@pytest.mark.parametrize("frozen_s", FROZEN_S)
def test_a_host_that_stood_still_begins_no_step_that_its_heir_recorded(frozen_s: float) -> None:
    async def scene(fleet: Fleet) -> None:
        await _climbing(fleet)
        await asyncio.sleep(0.5)
        fleet.world.pause("a")
        await fleet.start("b")
        await asyncio.sleep(frozen_s)
        fleet.world.resume("a")
        await _only_begun_again(fleet, "s2")

    play(scene)


@pytest.mark.parametrize("frozen_s", FROZEN_S[::4])
def test_a_host_that_stood_still_records_no_step_that_its_heir_is_about_to_run(frozen_s: float) -> None:
    """The heir has read what was recorded and is slow to begin; the step that was frozen ends meanwhile."""

    async def scene(fleet: Fleet) -> None:
        await _climbing(fleet)
        await asyncio.sleep(0.5)
        fleet.world.pause("a")
        await fleet.start("b")

        async def slow(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if CRASHED in write.subject:
                await asyncio.sleep(4.0)
            return await act()

        for bus in fleet.buses["b"]:
            bus.on_store = slow
        await asyncio.sleep(frozen_s)
        fleet.world.resume("a")
        await fleet.world.eventually(lambda: true(f"s{STEPS - 1}" in Stage.ended), within_s=90.0)
        records = await fleet.steps("ann")
        assert not records["s2"].startswith("a-") or Stage.begun.count("s2") == 1

    play(scene)


@pytest.mark.parametrize("frozen_s", FROZEN_S[::4])
def test_a_host_that_stood_still_with_a_turn_it_had_kept_begins_no_step_that_its_heir_recorded(frozen_s: float) -> None:
    """The partition had been handed on before, so that it was another's already when the host froze."""

    async def scene(fleet: Fleet) -> None:
        old = await _climbing(fleet)
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        assert list(old.held.activations) == [("desk", 0, "ann")]
        await fleet.begun("s4")
        await asyncio.sleep(0.5)
        fleet.world.pause("a")
        await asyncio.sleep(frozen_s)
        fleet.world.resume("a")
        await _only_begun_again(fleet, "s4")

    play(scene)


def test_an_heir_takes_a_record_that_came_in_while_it_noted_the_death() -> None:
    """The dead host's last record was on its way when the heir read the journal, and stands before it begins."""

    async def scene(fleet: Fleet) -> None:
        _ = await _climbing(fleet)
        late: list[Write] = []
        _hold_record(fleet, "a", "s2", late)
        await fleet.start("b")
        await fleet.world.eventually(lambda: true(late), within_s=20.0, what="s2 is on its way")
        fleet.world.pause("a")

        async def arrives_before(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if CRASHED in write.subject:
                while late:
                    _ = await fleet.world.bus.store(late.pop())
            return await act()

        for bus in fleet.buses["b"]:
            bus.on_store = arrives_before
        await fleet.begun("s3")
        assert Stage.begun.count("s2") == 1

    play(scene)


def test_a_host_whose_step_another_has_recorded_begins_no_further_one() -> None:
    """Its beats come back all the while: only the other's record says that the turn is not its own any more."""

    async def scene(fleet: Fleet) -> None:
        old = await _climbing(fleet)
        late: list[Write] = []
        _hold_record(fleet, "a", "s2", late, is_let_go=True)
        partition = await fleet.owned_by("a")
        # its write of each second would be refused, and tell it
        partition.save = _not_now  # type: ignore[method-assign]
        await fleet.world.eventually(lambda: true(late), within_s=20.0, what="s2 ends")
        assert old.partitions
        found = await fleet.cursor()
        taken = msgspec.structs.replace(found, epoch=found.epoch + 1, owner="z-9")
        _ = await fleet.world.bus.store(Write(subject=CURSOR, data=cursors.encode(taken)))
        record = msgspec.json.decode(late[0].data)
        record["worker"] = "z-9"
        _ = await fleet.world.bus.store(msgspec.structs.replace(late[0], data=msgspec.json.encode(record)))
        late.clear()
        await asyncio.sleep(0.5)
        assert "s3" not in Stage.begun

    play(scene)


@pytest.mark.parametrize("frozen_s", FROZEN_S[::4])
def test_a_host_that_stood_still_begins_no_turn_that_waited_for_a_place(frozen_s: float) -> None:
    """The turn before it ends the moment that the host comes back, so there is a place: but the mail is another's."""

    async def scene(fleet: Fleet) -> None:
        usual = fleet.options
        fleet.options = msgspec.structs.replace(usual, actor_rules=msgspec.structs.replace(usual.actor_rules, turns=1))
        await fleet.start("a")
        await fleet.owned_by("a")
        await fleet.tell("ann", "first", 3.0)
        await fleet.begun("first")
        await fleet.tell("bob", "second", 30.0)
        await asyncio.sleep(0.5)
        assert Stage.begun == ["first"]
        fleet.world.pause("a")
        fleet.options = usual
        await fleet.start("b")
        await asyncio.sleep(frozen_s)
        fleet.world.resume("a")
        await fleet.world.eventually(lambda: true("second" in Stage.ended), within_s=90.0)
        await asyncio.sleep(5.0)
        assert Stage.begun.count("second") == 1

    play(scene)


def _hold_record(fleet: Fleet, name: str, of: str, held: list[Write], *, is_let_go: bool = False) -> None:
    """Keep back what a host records of a step: for ever, or until ``held`` is empty again."""

    async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
        if f".{of}." in write.subject:
            held.append(write)
            while held or not is_let_go:  # noqa: ASYNC110 - the network knows no events
                await asyncio.sleep(0.01)
        return await act()

    for bus in fleet.buses[name]:
        bus.on_store = store


async def _not_now() -> None:
    return


async def _climbing(fleet: Fleet) -> ActorHost:
    """Start a host with a turn of many steps, and see the third begin."""
    host = await fleet.start("a")
    await fleet.owned_by("a")
    await fleet.world.actor("desk/ann").tell(Stairs(STEPS))
    await fleet.begun("s2")
    return host


async def _only_begun_again(fleet: Fleet, name: str) -> None:
    """See the turn to its end: at most the step that was under way began a second time."""
    await fleet.world.eventually(lambda: true(f"s{STEPS - 1}" in Stage.ended), within_s=60.0)
    await asyncio.sleep(5.0)
    assert Stage.again == []
    assert {begun for begun in Stage.begun if Stage.begun.count(begun) > 1} <= {name}
