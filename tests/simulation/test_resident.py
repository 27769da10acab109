"""A resident actor is awake without mail: on one host of the fleet, never for long on two, and soon on another.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.partition import Partition
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import ActorError
from callboard.runtime.registry.actor import Lead
from callboard.runtime.registry.desk import Desk
from callboard.runtime.registry.lookup import raise_refusal
from callboard.runtime.registry.message import FIND
from callboard.runtime.simulation.run import Simulation, run
from callboard.runtime.simulation.world import World, open_world
from callboard.runtime.worker_options import WorkerOptions

PLAIN = WorkerOptions(hosts_registry=False)
# A kill is noticed by pings, a freeze by silence.
KILLED_S = 2.0
FROZEN_S = 6.0
# A host that wakes has stopped its resident within this.
WOKEN_S = 1.5


class Ask(Struct):
    """Where are you?"""


class Fail(Struct):
    """Fail this turn."""


class Log:
    """Who began and ended to be resident, and when."""

    started: ClassVar[list[tuple[float, str]]] = []
    stopped: ClassVar[list[tuple[float, str]]] = []
    fails: ClassVar[int] = 0


class Beacon(Actor, name="beacon", residents=["main"]):
    """Says when it wakes and when it goes."""

    async def on_start(self) -> None:
        home = self.residence
        if Log.fails:
            Log.fails -= 1
            message = "not yet"
            raise ActorError(message)
        Log.started.append((home.clock.monotonic(), home.worker))

    async def on_stop(self) -> None:
        Log.stopped.append((self.residence.clock.monotonic(), self.residence.worker))

    @on
    async def where(self, _: Ask) -> str:
        return self.residence.worker

    @on
    async def fail(self, _: Fail) -> None:
        message = "as told"
        raise ValueError(message)


def play(scene: Callable[[World], Awaitable[None]]) -> None:
    async def main(simulation: Simulation) -> None:
        Log.started, Log.stopped, Log.fails = [], [], 0
        async with open_world(simulation, TopologySettings(partitions=4)) as world:
            await scene(world)

    run(main, 1, max_time_s=300.0)


async def resident(world: World, *, count: int) -> str:
    """Wait until so many have started in all; return the short name of the last one's host."""

    async def holds() -> bool:
        return len(Log.started) >= count

    await world.eventually(holds, within_s=30.0, what=f"{count} residents")
    return Log.started[-1][1].rsplit("-", 1)[0]


async def fleet(world: World, count: int = 3) -> str:
    for name in "abc"[:count]:
        await world.start(Beacon, name=name, options=PLAIN)
    await asyncio.sleep(5.0)
    return await resident(world, count=1)


def test_one_host_has_it_awake_without_any_mail() -> None:
    async def scene(world: World) -> None:
        name = await fleet(world)
        assert len(Log.started) == len(Log.stopped) + 1
        await asyncio.sleep(100.0)
        assert len(Log.started) == len(Log.stopped) + 1
        assert await world.actor("beacon/main").ask(Ask()) == world.workers[name].id

    play(scene)


def test_after_a_kill_another_host_has_it_within_two_seconds() -> None:
    async def scene(world: World) -> None:
        for _ in range(2):
            name = await fleet(world) if not Log.started else await resident(world, count=1)
            before, killed_s = len(Log.started), world.clock.monotonic()
            world.crash(name)
            await resident(world, count=before + 1)
            assert Log.started[-1][0] - killed_s < KILLED_S
            await asyncio.sleep(1.0)

    play(scene)


def test_a_host_that_joins_takes_it_when_it_is_its_and_the_former_one_stops() -> None:
    async def scene(world: World) -> None:
        await world.start(Beacon, name="a", options=PLAIN)
        await resident(world, count=1)
        for name in "bcdefgh":
            await world.start(Beacon, name=name, options=PLAIN)
            await asyncio.sleep(4.0)
        assert len(Log.started) > 1, "it never moved: take other names"
        assert len(Log.stopped) == len(Log.started) - 1
        for (stopped_s, _), (started_s, _) in zip(Log.stopped, Log.started[1:], strict=False):
            assert abs(stopped_s - started_s) < 1.0

    play(scene)


def test_a_drain_stops_it_and_the_last_one_leaves_nothing_awake() -> None:
    async def scene(world: World) -> None:
        name = await fleet(world, 2)
        before = len(Log.started)
        await world.stop(name)
        other = await resident(world, count=before + 1)
        assert other != name
        await world.stop(other)
        assert len(Log.stopped) == len(Log.started)

    play(scene)


@pytest.mark.parametrize("frozen_s", [1.0, 6.0, 12.0])
def test_a_frozen_host_loses_it_and_stops_when_it_wakes(frozen_s: float) -> None:
    async def scene(world: World) -> None:
        name = await fleet(world)
        before, stops = len(Log.started), len(Log.stopped)
        old = world.workers[name].id
        world.pause(name)
        await asyncio.sleep(frozen_s)
        if frozen_s >= FROZEN_S:
            assert len(Log.started) == before + 1
        world.resume(name)
        await asyncio.sleep(WOKEN_S)
        stopped = [worker for _, worker in Log.stopped[stops:]]
        assert (old in stopped) == (frozen_s >= FROZEN_S)
        # it may have gone back to the one that woke
        await asyncio.sleep(5.0)
        assert len(Log.started) == len(Log.stopped) + 1

    play(scene)


def test_a_start_that_fails_is_tried_again_and_a_turn_waits_for_it() -> None:
    async def scene(world: World) -> None:
        Log.fails = 3
        await world.start(Beacon, name="a", options=PLAIN)
        assert await world.actor("beacon/main").ask(Ask(), timeout_s=20.0) == world.workers["a"].id
        assert Log.fails == 0

    play(scene)


def test_a_turn_that_fails_replaces_the_object_in_good_order() -> None:
    async def scene(world: World) -> None:
        await world.start(Beacon, name="a", options=PLAIN)
        await resident(world, count=1)
        await world.actor("beacon/main").tell(Fail())
        await resident(world, count=2)
        assert Log.stopped[0][0] <= Log.started[1][0]
        assert await world.actor("beacon/main").ask(Ask()) == world.workers["a"].id
        assert len(Log.started) == len(Log.stopped) + 1

    play(scene)


# --- the registry itself


async def _asked(world: World) -> bool:
    raise_refusal(await world.bus.request(FIND, b"{}", timeout_s=0.5))
    return True


def test_the_registry_answers_again_within_two_seconds_of_its_leaders_death() -> None:
    async def scene(world: World) -> None:
        for name in "abc":
            await world.start(Beacon, name=name, options=WorkerOptions())
        await asyncio.sleep(5.0)
        for _ in range(2):
            led = await world.actor("registry/main").ask(Lead())
            killed_s = world.clock.monotonic()
            world.crash(led["worker"].rsplit("-", 1)[0])
            await world.eventually(lambda: _asked(world), within_s=10.0)
            assert world.clock.monotonic() - killed_s < KILLED_S
            await asyncio.sleep(5.0)

    play(scene)


async def _thaws(world: World) -> None:
    """Freeze the leader, let another take over, and count the answers when both are awake."""
    for name in "ab":
        await world.start(Beacon, name=name, options=WorkerOptions())
    await asyncio.sleep(5.0)
    led = await world.actor("registry/main").ask(Lead())
    name = led["worker"].rsplit("-", 1)[0]
    world.pause(name)
    await world.eventually(lambda: _asked(world), within_s=10.0)
    answers: list[bytes] = []
    inbox = world.bus.inbox()
    await world.bus.subscribe(inbox, lambda message: answers.append(message.data))
    world.resume(name)
    for _ in range(20):
        before = len(answers)
        await world.bus.publish(FIND, b"{}", reply=inbox)
        await asyncio.sleep(0.2)
        # none while it moves on
        assert len(answers) <= before + 1
    assert answers


def test_a_leader_that_was_frozen_answers_nothing_once_it_was_taken_over() -> None:
    play(_thaws)


def test_one_that_did_not_ask_whether_it_leads_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""

    async def stays(_: Desk) -> None:
        return

    async def always(_: Partition) -> bool:
        return True

    monkeypatch.setattr(Desk, "close", stays)
    monkeypatch.setattr(Partition, "is_ours", always)
    with pytest.raises(AssertionError):
        play(_thaws)
