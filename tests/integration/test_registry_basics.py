"""Agents register, are found, picked and asked: over a real server, in this process."""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

import callboard
from callboard.runtime import subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.errors import RegistryAwayError, RegistryError
from callboard.runtime.registry.handle import AgentHandle
from tests.support.actors import steps_of
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

HOSTING = replace(QUICK, hosts_registry=True)


class Text(Struct):
    text: str


class Scribe(Actor, name="scribe", capabilities=["summarise"], labels={"tone": "dry"}):
    @on
    async def write(self, m: Text) -> str:
        return f"{self.key}: {m.text}"


async def test_an_agent_that_was_asked_once_is_found_picked_and_asked(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Scribe, options=HOSTING)
    assert await world.client.actor("scribe/ann").ask(Text("a")) == "ann: a"
    client = Client(await world.connect())

    async def is_found() -> bool:
        found = await client.find("summarise")
        return [agent.record.address for agent in found.agents] == ["scribe/ann"]

    await eventually(is_found)
    agent = await client.pick("summarise", labels={"tone": "dry"})
    assert isinstance(agent, AgentHandle)
    assert await agent.ask(Text("b")) == "ann: b"
    assert agent.why.able == 1
    await client.close()


class Go(Struct):
    text: str


class Errand(Actor, name="errand"):
    runs = 0

    @on
    async def go(self, m: Go) -> list[str]:
        Errand.runs += 1
        agent = await self.pick("summarise")
        answer = await agent.ask(Text(m.text))
        if Errand.runs == 1:
            message = "once more"
            raise ValueError(message)
        found = await callboard.find("summarise")
        return [answer, *(each.record.address for each in found.agents)]


@capability("ask-around")
async def ask_around(text: str) -> str:
    agent = await callboard.pick("summarise")
    answer: str = await agent.ask(Text(text))
    return answer


async def test_a_pick_in_a_turn_is_a_step_that_a_second_run_finds_again(callboard_world: World) -> None:
    Errand.runs = 0
    world = callboard_world
    await world.start(Scribe, Errand, ask_around, options=HOSTING)
    await world.client.actor("scribe/ann").ask(Text("a"))
    await eventually(lambda: knows(world, "scribe/ann"))
    assert await world.client.actor("errand/1").ask(Go("x")) == ["ann: x", "scribe/ann"]
    assert Errand.runs == 2
    assert (await steps_of(world, "errand/1")).count("~pick summarise") == 1
    assert await world.client.call("ask-around", "y", timeout_s=10.0) == "ann: y"


async def test_outside_of_everything_it_says_what_is_missing() -> None:
    with pytest.raises(RegistryError, match=r"callboard.pick\(\) needs a connection"):
        await callboard.pick("x")


async def test_a_paused_agent_is_not_picked_and_a_killed_one_has_left(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Scribe, options=HOSTING)
    for key in ("ann", "bob"):
        await world.client.actor(f"scribe/{key}").ask(Text("a"))
    await eventually(lambda: knows(world, "scribe/ann", "scribe/bob"))
    await order(world, "ann", "pause")

    async def status() -> list[str]:
        return [each.status for each in (await world.client.find("summarise")).agents]

    await eventually(lambda: is_equal(status(), ["paused", "idle"]))
    picked = [await world.client.pick("summarise") for _ in range(4)]
    assert {each.address for each in picked if isinstance(each, AgentHandle)} == {"scribe/bob"}
    await order(world, "ann", "kill")
    await eventually(lambda: is_equal(status(), ["idle"]))


async def test_a_task_of_an_offered_capability_goes_to_a_registered_agent(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(Scribe, options=HOSTING)
    await world.client.actor("scribe/ann").ask(Text("a"))
    await eventually(lambda: knows(world, "scribe/ann"))
    house = running.worker.house
    assert house is not None
    await eventually(lambda: house.cache.is_warm)
    assert await world.client.call("summarise", Text("b"), timeout_s=10.0) == "ann: b"


async def test_a_worker_of_plain_tasks_starts_without_the_actors_stream(callboard_world: World) -> None:
    world = callboard_world
    await world.bus.delete_stream("CB_ACTORS")
    running = await world.start(ask_around, options=HOSTING)
    assert running.worker.house is None
    with pytest.raises(RegistryAwayError):
        await world.client.find("x")


async def knows(world: World, *addresses: str) -> bool:
    found = await world.client.find("summarise")
    return [agent.record.address for agent in found.agents] == list(addresses)


async def is_equal(found: Awaitable[object], wanted: object) -> bool:
    return await found == wanted


async def order(world: World, key: str, what: str) -> None:
    body = msgspec.json.encode({"op": what, "reason": "a test"})
    await world.bus.request(subjects.ctl_actor("scribe", key), body, timeout_s=5.0)
