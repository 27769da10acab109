"""A host was taken for dead and comes back: what another has begun, or is about to begin, it does not begin as well.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from callboard import Actor, on
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.bus.base import PubAck, Write
from callboard.runtime.errors import RetryableError
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.simulation.loop import process
from tests.simulation.actor_desk import CURSOR, Fleet, Stage, Work, play, true
from tests.simulation.actor_mutants import HOMES, look_without_a_word
from tests.simulation.mutants import broken


class Shaky(Actor, name="desk", retry=RetryPolicy(attempts=6, base_s=0.3, max_s=0.3)):
    """Its first attempt fails."""

    @on
    async def work(self, m: Work) -> str:
        Stage.begun.append(f"{process.get().name.partition('-')[0]} {self.attempt}")
        await asyncio.sleep(m.takes_s)
        if len(Stage.ended) == 0:
            Stage.ended.append(m.name)
            text = "not yet"
            raise RetryableError(text)
        return m.name


def test_a_takeover_is_refused_when_the_owner_came_back_before_it_was_written() -> None:
    play(_a_takeover_is_written_as_the_owner_returns)


def test_an_owner_that_only_looks_when_it_comes_back_is_caught() -> None:
    """Negative control."""
    with broken(look_without_a_word, HOMES), pytest.raises(AssertionError):
        play(_a_takeover_is_written_as_the_owner_returns)


@pytest.mark.parametrize("fault", ["pause", "cut"])
def test_a_host_that_comes_back_makes_no_further_attempt_at_a_turn_that_it_had_kept(fault: str) -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a", Shaky)
        await fleet.owned_by("a")
        await fleet.tell("ann", "shaky", 10.0)
        await fleet.world.eventually(lambda: true(Stage.begun), within_s=10.0)
        heir = await fleet.start_heir("a", actor=Shaky)
        await fleet.owned_by(heir)
        begin, end = _fault(fleet, fault)
        begin("a")
        await fleet.world.eventually(lambda: true(len(Stage.begun) > 1), within_s=20.0, what="the heir begins")
        end("a")
        await asyncio.sleep(30.0)
        assert Stage.begun[:2] == ["a 1", f"{heir} 1"]
        assert not any(run.startswith("a ") for run in Stage.begun[2:])

    play(scene)


def test_a_host_that_is_cut_off_makes_no_further_attempt_before_it_is_back() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a", Shaky)
        owner = await fleet.start_heir("a", actor=Shaky)
        await fleet.owned_by(owner)
        await fleet.tell("ann", "shaky", 2.0)
        await fleet.world.eventually(lambda: true(Stage.begun), within_s=10.0)
        fleet.world.cut(owner)
        await asyncio.sleep(20.0)
        fleet.world.mend(owner)
        await asyncio.sleep(10.0)
        assert Stage.begun[0] == f"{owner} 1"
        assert Stage.begun[1:] == ["a 1"]

    play(scene)


async def _a_takeover_is_written_as_the_owner_returns(fleet: Fleet) -> None:
    await fleet.start("a")
    owner = await fleet.start_heir("a")
    partition = await fleet.owned_by(owner)
    await asyncio.sleep(5.0)
    # its write of each second is not due when it comes back
    partition.save = _not_now  # type: ignore[method-assign]
    under_way: list[str] = []

    async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
        if write.subject == CURSOR and cursors.decode(write.data).owner == fleet.world.workers["a"].id:
            under_way.append(write.subject)
            while not Stage.begun:  # noqa: ASYNC110 - a quarter of a second later would be too late
                await asyncio.sleep(0.0005)
        return await act()

    for bus in fleet.buses["a"]:
        bus.on_store = store
    fleet.world.pause(owner)
    await fleet.tell("ann", "late", 20.0)
    await fleet.world.eventually(lambda: true(under_way), within_s=20.0, what="a takes over")
    fleet.world.resume(owner)
    await fleet.world.eventually(lambda: true(Stage.ended), within_s=60.0)
    await asyncio.sleep(10.0)
    assert Stage.begun == ["late"]
    assert await fleet.done("ann") == ["late"]


async def _not_now() -> None:
    return


def _fault(fleet: Fleet, fault: str) -> tuple[Callable[[str], None], Callable[[str], None]]:
    world = fleet.world
    return (world.pause, world.resume) if fault == "pause" else (world.cut, world.mend)
