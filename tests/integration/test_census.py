"""The list of everybody: actors and agents together, whether somebody leads the registry or not."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import census
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.inspection import Line, order
from callboard.runtime.errors import NoAgentError, NoRespondersError
from callboard.runtime.registry.message import REGISTER, AgentView, Query, Register
from callboard.runtime.registry.record import AgentRecord
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

HOSTING = replace(QUICK, hosts_registry=True)


class Say(Struct):
    text: str


class Plain(Actor, name="plain"):
    @on
    async def say(self, m: Say) -> str:
        return m.text


class Scribe(Actor, name="scribe", capabilities=["scribble"], labels={"zone": "a"}):
    @on
    async def say(self, m: Say) -> str:
        return m.text


async def register(world: World, key: str) -> None:
    body = Register(type="other", key=key, capabilities=["scribble"], host="there", instance="x")

    async def is_in() -> bool:
        try:
            answer = await world.bus.request(REGISTER, msgspec.json.encode(body))
        except NoRespondersError:
            # nobody leads yet
            return False
        return not (answer.headers or {})

    await eventually(is_in)


async def listed(world: World) -> dict[str, census.Member]:
    return {each.address: each for each in await census.members(world.bus)}


async def test_actors_and_agents_stand_in_one_list(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(Plain, Scribe, options=HOSTING)
    for address in ("plain/p", "scribe/s b.c@d"):
        await world.client.actor(address).ask(Say("x"))
    await register(world, "o")

    async def is_complete() -> bool:
        found = await listed(world)
        return set(found) == {"other/o", "plain/p", "scribe/s b.c@d"} and bool(found["scribe/s b.c@d"].worker)

    await eventually(is_complete, within_s=10)
    found = await listed(world)
    plain, scribe, other = found["plain/p"], found["scribe/s b.c@d"], found["other/o"]
    assert (plain.status, plain.is_registered, plain.turns) == ("active", False, 1)
    assert (scribe.status, scribe.capabilities, scribe.turns) == ("idle", ["scribble"], 1)
    assert (scribe.worker, scribe.load) == (running.worker.id, 0.0)
    assert (other.is_hosted, other.host, other.capabilities) == (False, "there", ["scribble"])
    assert [each.address for each in await census.members(world.bus, kind="other")] == ["other/o"]
    assert (await census.leader(world.bus)).owner == running.worker.id
    # one of them
    view = await census.agent(world.bus, Address("scribe", "s b.c@d"))
    assert view is not None
    assert view.record.labels == {"zone": "a"}
    assert await census.agent(world.bus, Address("scribe", "s")) is None
    # what a person stopped is said to be stopped
    await order(world.bus, Address("scribe", "s b.c@d"), "pause", reason="wait")
    found = await listed(world)
    assert (found["scribe/s b.c@d"].status, found["scribe/s b.c@d"].reason) == ("paused", "wait")


async def test_pages_are_put_together(callboard_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = callboard_world
    await world.start(Plain, options=HOSTING)
    for key in ("a", "b", "c", "d", "e"):
        await register(world, key)
    monkeypatch.setattr(census, "MAX_LIMIT", 2)
    found = await census.find(world.bus, Query(capability="scribble", limit=4))
    assert [view.record.key for view in found.agents] == ["a", "b", "c", "d"]
    assert found.next == "other/d"
    for key in ("a", "c", "e"):
        view = await census.agent(world.bus, Address("other", key))
        assert view is not None
        assert view.record.key == key


async def test_without_a_leader_the_records_answer(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(Plain, options=HOSTING)
    await register(world, "o")
    await running.stop()
    assert (await census.find(world.bus, Query(capability="scribble"))).agents == []
    found = await census.find(world.bus, Query(capability="scribble", status=["offline"]))
    assert [view.record.address for view in found.agents] == ["other/o"]
    with pytest.raises(NoAgentError, match="other/o fits"):
        await census.pick(world.bus, Query(capability="scribble"))
    with pytest.raises(NoAgentError, match="near it: scribble"):
        await census.pick(world.bus, Query(capability="scribbel"))


def test_what_a_record_says_comes_before_what_beats_say() -> None:
    record = AgentRecord(type="a", key="k", capabilities=[], registered_at=datetime(2026, 1, 1, tzinfo=UTC))
    view = AgentView(record=record, status="busy", busy=2, load=2.0)
    assert census.member("a/k", Line(address="a/k", status="killed", reason="why"), view).status == "killed"
    assert census.member("a/k", Line(address="a/k", status="active"), view).status == "busy"
    assert census.member("a/k", None, view).is_registered
    assert census.member("a/k", Line(address="a/k", status="new", stored=3), None).stored == 3
