"""An agent asks people and shares context in handlers of its own."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from callboard.agents import approvals
from callboard.agents.agent import Agent
from callboard.agents.context import Context
from callboard.runtime.actor.handler import on
from tests.support.eventually import eventually
from tests.support.world import World


class Wish(Struct):
    text: str


class Clerk(Agent, name="clerk", model="extractive"):
    """Does what was wished for."""

    @on
    async def wish(self, m: Wish) -> str:
        before = await self.context.get("wishes", 0)
        await self.context.private.set("last", m.text)
        grant = await self.approve(m, to="ops")
        return f"{before} {grant.by} {await self.context.increment('wishes')}"


async def test_an_agent_asks_and_shares(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Clerk)
    shared = Context(world.bus, by="ann", clock=world.clock)
    await shared.set("wishes", 4)
    waiting = asyncio.create_task(world.client.actor("clerk/c").ask(Wish("tea"), timeout_s=60))

    async def asked() -> bool:
        return len(await approvals.ls(world.bus)) == 1

    await eventually(asked, within_s=20)
    await shared.set("wishes", 7)
    (found,) = await approvals.ls(world.bus)
    await approvals.grant(world.bus, found.id, by="ops", hash=found.entry.hash)
    # what it read before it waited it reads again; what it counts is counted now, once
    assert await waiting == "4 ops 8"
    assert await Context(world.bus, scope="private/clerk/c", by="x").get("last") == "tea"
