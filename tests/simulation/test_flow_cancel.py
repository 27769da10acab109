"""A run is cancelled: its agents, the runs below it and their agents all stop, whoever dies meanwhile.

Time is virtual. Each seed kills another host at another moment around the order to cancel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

import pytest
from msgspec import Struct

from callboard.agents import runs
from callboard.agents.flow import Flow, flow
from callboard.agents.message import AgentResult, Task
from callboard.agents.run import Run
from callboard.agents.run_record import run_address
from callboard.agents.stopper import STOPPER, Stopper, StopRun, cancel
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import SimulationError
from callboard.runtime.simulation.run import Simulation, run
from callboard.runtime.simulation.world import World, open_world
from callboard.runtime.worker_options import WorkerOptions

# With a class of the test's own in a companion's place.
ALONE = WorkerOptions(hosts_registry=False, hosts_companions=False)
# From the acknowledged order to the last sign of life: noticing a death, taking over, a few looks.
STOPPED_S = 30.0
WORKS_S = 600.0
AGENTS = {"a", "b", "c", "d"}


class Job(Struct):
    text: str


class Alive:
    """When each agent was last seen at work, by virtual time."""

    seen: ClassVar[dict[str, float]] = {}
    done: ClassVar[list[str]] = []


class Digger(Actor, name="digger"):
    """Works for ten minutes and shows it each second."""

    @on
    async def work(self, _: Task) -> AgentResult:
        clock = current_turn().clock
        for _second in range(int(WORKS_S)):
            Alive.seen[self.key] = asyncio.get_running_loop().time()
            await clock.sleep(1.0)
        Alive.done.append(self.key)
        return AgentResult(status="done", text="gold")


@flow
async def below(run: Run, job: Task) -> str:
    """Two agents of its own."""
    found = await run.parallel(["digger/c", "digger/d"], job.text)
    return ",".join(found.results)


@flow
async def above(run: Run, job: Job) -> str:
    """Two agents and a run below it."""
    found = await run.parallel(["digger/a", "digger/b", "run-below/1"], job.text)
    return ",".join(found.results)


PARTS: tuple[type[Actor], ...] = (Digger, below, above, Stopper)


class Hasty(Actor, name=STOPPER):
    """Gives the order once and looks no further: what a command that only sends it would do."""

    @on
    async def stop(self, m: StopRun) -> None:
        if m.seq == 0:
            _ = await cancel(current_turn().bus, run_address(m.run), m.reason)


def play(scene: Callable[[World], Awaitable[None]], seed: int) -> None:
    async def main(simulation: Simulation) -> None:
        Alive.seen.clear()
        Alive.done.clear()
        async with open_world(simulation, TopologySettings(partitions=4)) as world:
            await scene(world)

    run(main, seed, max_time_s=WORKS_S + 300.0)


async def all_dig(world: World, *parts: type[Actor]) -> None:
    for name in "abc":
        await world.start(*(parts or PARTS), name=name, options=ALONE if parts else None)
    name = await runs.start(world.client, above, Job("gold"), id="1")
    assert name == "above/1"

    async def dig() -> bool:
        return set(Alive.seen) == AGENTS

    await world.eventually(dig, within_s=30.0, what="all agents dig")


async def all_stop(world: World) -> None:
    ordered_s = asyncio.get_running_loop().time()

    async def ended() -> bool:
        return (await runs.show(world.bus, "above/1")).has_ended and (await runs.show(world.bus, "below/1")).has_ended

    await world.eventually(ended, within_s=STOPPED_S, what="both runs end")
    await asyncio.sleep(2 * STOPPED_S)
    assert (await runs.show(world.bus, "above/1")).status == "cancelled"
    assert (await runs.show(world.bus, "below/1")).status == "cancelled"
    late = {key: at - ordered_s for key, at in Alive.seen.items() if at - ordered_s > STOPPED_S}
    assert not late, f"still at work so many seconds after the order: {late}"
    assert not Alive.done


async def cancelled_while_one_dies(world: World) -> None:
    dice = world.simulation.dice("crash")
    victim = dice.choice("abc")
    early_s = dice.choice([0.0, 0.0, 0.5, 1.5])
    if early_s:
        # it is taken over, or about to be, when the order comes
        world.crash(victim)
        await asyncio.sleep(early_s)
    await runs.cancel(world.client, "above/1", reason="enough")
    if not early_s:
        await asyncio.sleep(dice.uniform(0.0, 1.5))
        world.crash(victim)
    await all_stop(world)


@pytest.mark.parametrize("seed", range(24))
def test_parent_cancelled_and_all_stop(seed: int) -> None:
    async def scene(world: World) -> None:
        await all_dig(world)
        await cancelled_while_one_dies(world)

    play(scene, seed)


def test_an_order_that_is_given_once_does_not_stop_all() -> None:
    """The other side of the test above: it finds a canceller that does not look again."""

    async def scene(world: World) -> None:
        await all_dig(world, Digger, below, above, Hasty)
        await cancelled_while_one_dies(world)

    failed = 0
    for seed in range(4):
        try:
            play(scene, seed)
        except (AssertionError, TimeoutError, SimulationError):
            failed += 1
    assert failed


def test_without_the_order_they_dig_to_the_end() -> None:
    """The other side of the test above: what it looks at does go on when nobody cancels."""

    async def scene(world: World) -> None:
        await all_dig(world)
        await asyncio.sleep(2 * STOPPED_S)
        now_s = asyncio.get_running_loop().time()
        assert all(now_s - at < 2.0 for at in Alive.seen.values())
        assert (await runs.show(world.bus, "above/1")).status == "running"

    play(scene, 1)


def test_a_flow_that_ends_without_an_agent_stops_it() -> None:
    @flow
    async def brief(run: Run, job: Job) -> str:
        found = await run.parallel(["digger/a", "digger/b"], job.text, join="collect", deadline_s=5.0, quorum=1)
        return ",".join(found.results)

    async def scene(world: World) -> None:
        parts: tuple[type[Actor], ...] = (Digger, brief, Stopper)
        await world.start(*parts, name="a")
        await world.start(*parts, name="b")
        name = await runs.start(world.client, brief, Job("gold"), id="1")
        view = await runs.wait(world.bus, name, timeout_s=30.0, clock=world.clock)
        assert view is not None
        assert view.status == "failed"
        assert "a quorum of 1 is out of reach" in view.error
        ended_s = asyncio.get_running_loop().time()
        await asyncio.sleep(STOPPED_S)
        assert all(at - ended_s < STOPPED_S / 2 for at in Alive.seen.values())

    assert issubclass(brief, Flow)
    play(scene, 1)
