"""Agents register, are found, picked and asked: over a real server, in this process."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.client import Client
from callboard.runtime.registry.handle import AgentHandle
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
