"""A host stands still for seconds in mid-turn and comes back when another has gone on: it begins nothing again.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from callboard.runtime.actor.hosting import ActorHost
from callboard.runtime.actor.step import CRASHED
from callboard.runtime.bus.base import PubAck, Write
from tests.simulation.actor_desk import Fleet, Stage, Stairs, play, true

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
