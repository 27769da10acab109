"""Capabilities that actor types offer: tasks become questions to actors, each with one effect."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus import header
from callboard.runtime.capability import capability
from callboard.runtime.errors import ConfigError, TaskFailedError, TerminalError
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import events_of, state_of
from tests.support.eventually import eventually
from tests.support.world import World


class Greet(Struct):
    name: str


class Part(Struct):
    name: str
    word: str


ran: Counter[str] = Counter()
where: dict[str, str] = {}
gate: asyncio.Event


@pytest.fixture(autouse=True)
def fresh() -> None:
    global gate  # noqa: PLW0603 - one a test
    ran.clear()
    where.clear()
    gate = asyncio.Event()


class Greeter(Actor, capabilities=["greet"], retry=RetryPolicy(attempts=1)):
    class State(Struct):
        greeted: list[str] = []

    @on
    async def greet(self, m: Greet) -> str:
        ran[m.name] += 1
        where[m.name] = self.key
        if m.name.startswith("slow"):
            await gate.wait()
        if m.name == "bad":
            raise TerminalError(m.name)
        self.state.greeted.append(m.name)
        return f"hi {m.name}"

    @on
    async def part(self, m: Part) -> str:
        return f"{m.word} {m.name}"


async def test_a_task_is_answered_by_an_actor(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Greeter)
    client = world.client
    assert await client.call("greet", {"name": "ann"}, timeout_s=20) == "hi ann"
    assert await client.call("greet", {"name": "bob", "word": "bye"}, timeout_s=20) == "bye bob"
    assert await client.call("greet", Greet("cid"), headers={header.KEY: "front desk"}, timeout_s=20) == "hi cid"
    assert where["ann"].startswith("greet-")
    assert where["cid"] == "front desk"
    assert await state_of(world, "greeter/front desk") == {"greeted": ["cid"]}
    with pytest.raises(TaskFailedError, match="ask_failed"):
        await client.call("greet", {"name": "bad"}, timeout_s=20)
    with pytest.raises(TaskFailedError, match="unknown_message"):
        await client.call("greet", {"what": 1}, timeout_s=20)


async def test_tasks_go_to_the_actors_with_the_least_to_do(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(Greeter)
    slots = running.worker.options.concurrency
    tasks = [asyncio.create_task(world.client.call("greet", {"name": f"slow {n}"})) for n in range(slots)]
    await eventually(lambda: len(where) == slots, within_s=15)
    gate.set()
    await asyncio.gather(*tasks)
    assert sorted(where.values()) == sorted(f"greet-{number}" for number in range(1, slots + 1))


async def test_a_task_that_runs_again_has_no_second_effect(callboard_world: World) -> None:
    world = callboard_world
    first = await world.start(Greeter)
    task = asyncio.create_task(world.client.call("greet", {"name": "slow ann"}, id="greet/ann"))
    await eventually(lambda: ran["slow ann"] == 1)
    key = where["slow ann"]
    await world.start(Greeter)
    gate.set()
    await first.kill()
    assert await asyncio.wait_for(task, 40) == "hi slow ann"
    assert where["slow ann"] == key
    assert await state_of(world, f"greeter/{key}") == {"greeted": ["slow ann"]}
    others = [await state_of(world, f"greeter/greet-{number}") for number in range(1, 9)]
    assert sum(len(found["greeted"]) for found in others if found) == 1


async def test_a_cancelled_task_stops_the_turn(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Greeter)
    handle = await world.client.submit("greet", {"name": "slow ann"}, id="greet/ann")
    await eventually(lambda: ran["slow ann"] == 1)
    await world.client.cancel("greet", handle.id)
    key = where["slow ann"]

    async def stopped() -> bool:
        return [name for name, _ in await events_of(world, f"greeter/{key}")] == ["cancelled"]

    await eventually(stopped)
    assert (await world.client.call("greet", {"name": "bob"}, timeout_s=20)) == "hi bob"


async def test_the_deadline_of_a_task_ends_the_turn(callboard_world: World) -> None:
    from datetime import timedelta

    world = callboard_world
    await world.start(Greeter)
    with pytest.raises(TaskFailedError, match="expired"):
        await world.client.call("greet", {"name": "slow ann"}, deadline=timedelta(seconds=1), timeout_s=20)
    key = where["slow ann"]

    async def stopped() -> bool:
        return [name for name, _ in await events_of(world, f"greeter/{key}")] == ["cancelled"]

    await eventually(stopped)


async def test_one_worker_serves_a_capability_in_one_way(callboard_world: World) -> None:
    @capability("greet")
    async def greet(name: str) -> str:
        return name

    with pytest.raises(ConfigError, match="is offered twice"):
        await callboard_world.start(greet, Greeter)
