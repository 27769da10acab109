"""A host stands still for seconds in mid-turn and comes back when another has gone on: it begins nothing again.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.simulation.actor_desk import Fleet, Stage, Stairs, play, true

STEPS = 14
# the thawed host comes back at another moment of its heir's step each time
FROZEN_S = [5.0 + step / 10 for step in range(25)]


@pytest.mark.parametrize("frozen_s", FROZEN_S)
def test_a_host_that_stood_still_begins_no_step_that_its_heir_recorded(frozen_s: float) -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.owned_by("a")
        await fleet.world.actor("desk/ann").tell(Stairs(STEPS))
        await fleet.begun("s2")
        await asyncio.sleep(0.5)
        fleet.world.pause("a")
        await fleet.start("b")
        await asyncio.sleep(frozen_s)
        fleet.world.resume("a")
        await fleet.world.eventually(lambda: true(f"s{STEPS - 1}" in Stage.ended), within_s=60.0)
        await asyncio.sleep(5.0)
        assert Stage.again == []
        twice = [name for name in Stage.begun if Stage.begun.count(name) > 1]
        assert set(twice) <= {"s2"}

    play(scene)


@pytest.mark.parametrize("frozen_s", FROZEN_S[::4])
def test_a_host_that_stood_still_with_a_turn_it_had_kept_begins_no_step_that_its_heir_recorded(frozen_s: float) -> None:
    """The partition had been handed on before, so that it was another's already when the host froze."""

    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        await fleet.owned_by("a")
        await fleet.world.actor("desk/ann").tell(Stairs(STEPS))
        await fleet.begun("s2")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        assert list(old.held.activations) == [("desk", 0, "ann")]
        await fleet.begun("s4")
        await asyncio.sleep(0.5)
        fleet.world.pause("a")
        await asyncio.sleep(frozen_s)
        fleet.world.resume("a")
        await fleet.world.eventually(lambda: true(f"s{STEPS - 1}" in Stage.ended), within_s=60.0)
        await asyncio.sleep(5.0)
        assert Stage.again == []
        twice = [name for name in Stage.begun if Stage.begun.count(name) > 1]
        assert set(twice) <= {"s4"}

    play(scene)
