"""A stream's leader that dies forgets its last deliveries and hands those tasks out again, as if for the first time.

The workers' links may stand all the while, so nothing but what they tell each other says that the task is running.
"""

from __future__ import annotations

from typing import Any

import pytest

from callboard.runtime.capability import Capability, capability
from callboard.runtime.doubt import Doubt
from callboard.runtime.simulation.loop import process
from callboard.runtime.simulation.run import Simulation, run
from callboard.runtime.simulation.world import World, open_world
from tests.chaos.breakage import deaf_to_newest
from tests.simulation.mutants import broken

GAP_S = 3.0


def _slow(world: World, begun: list[str]) -> Capability[..., Any]:
    @capability("work", concurrency=2)
    async def work(n: int) -> int:
        begun.append(process.get().name)
        await world.clock.sleep(20.0)
        return n

    return work


def _starts(seed: int, *, workers: str, is_hung: bool) -> list[str]:
    """Return who began the one task of a world whose leader dies just after it was handed out."""

    async def main(simulation: Simulation) -> list[str]:
        begun: list[str] = []
        async with open_world(simulation) as world:
            for name in workers:
                await world.start(_slow(world, begun), name=name)
            # the workers must know each other
            await world.clock.sleep(5.0)
            # without an id: nothing else has it asked about
            await world.client.submit("work", 1)
            await world.clock.sleep(0.05)
            assert len(begun) == 1
            await world.lose_leader(GAP_S, is_hung=is_hung)
            await world.clock.sleep(30.0)
        return begun

    return run(main, seed, max_time_s=200.0).value


@pytest.mark.parametrize("is_hung", [False, True])
@pytest.mark.parametrize("workers", ["a", "abc"])
def test_a_task_that_is_handed_out_as_new_again_does_not_run_beside_itself(workers: str, is_hung: bool) -> None:
    for seed in range(8):
        assert len(_starts(seed, workers=workers, is_hung=is_hung)) == 1, f"seed {seed}"


def test_without_the_words_of_the_others_it_does() -> None:
    """Negative control."""
    with broken(deaf_to_newest, [Doubt]):
        assert any(len(_starts(seed, workers="abc", is_hung=False)) > 1 for seed in range(8))
