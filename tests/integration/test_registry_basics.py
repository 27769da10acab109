"""Agents register, are found, picked and asked: over a real server, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

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
from callboard.runtime.errors import BusError, RegistryAwayError, RegistryError
from callboard.runtime.registry.actor import Lead, Led
from callboard.runtime.registry.handle import AgentHandle
from callboard.runtime.registry.message import FIND, Query
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


async def test_an_orderly_move_of_the_leader_leaves_no_question_without_an_answer(callboard_world: World) -> None:
    world = callboard_world
    running = [await world.start(Scribe, options=HOSTING) for _ in range(3)]
    assert await world.client.actor("scribe/ann").ask(Text("a")) == "ann: a"
    lead = world.client.actor("registry/main")
    bus = await world.connect("asker")
    answers: list[bool] = []
    body = msgspec.json.encode(Query(capability="summarise"))

    async def ask_on() -> None:
        while True:
            try:
                # whether it says that the agent is free depends on where that one is just now
                answers.append(b'"agents"' in (await bus.request(FIND, body, timeout_s=1.0)).data)
            except BusError:
                answers.append(False)

    async def is_known() -> bool:
        with suppress(BusError):
            return b"ann" in (await bus.request(FIND, body, timeout_s=1.0)).data
        return False

    await eventually(is_known)
    asking = asyncio.create_task(ask_on())
    try:
        for _ in range(2):
            leader = (await lead.ask(Lead(), returns=Led)).worker
            old = next(each for each in running if each.worker.id == leader)
            running.remove(old)
            seen = len(answers)
            await old.stop()
            assert (await lead.ask(Lead(), returns=Led)).worker != leader
            await eventually(lambda seen=seen: len(answers) > seen + 3)
    finally:
        asking.cancel()
    assert answers.count(False) == 0, f"{answers.count(False)} of {len(answers)} questions had none"
    await bus.close()
