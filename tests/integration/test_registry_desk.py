"""The registry's desk as any language sees it: JSON requests and answers on plain subjects."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.errors import (
    DuplicateAgentError,
    InputError,
    InvalidNameError,
    NoAgentError,
    NoRespondersError,
    NotFoundError,
    RegistryAwayError,
)
from callboard.runtime.registry.handle import AgentHandle, PoolHandle
from callboard.runtime.registry.lookup import raise_refusal
from callboard.runtime.registry.message import BEAT, CHANGED, DEREGISTER, FIND, LIST, PICK, REGISTER
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

HOSTING = replace(QUICK, hosts_registry=True)


class Scribe(Actor, name="scribe", capabilities=["summarise"]):
    @on
    async def write(self, m: str) -> str:
        return m


@capability("reverse")
async def reverse(text: str) -> str:
    return text[::-1]


async def ask(bus: Bus, subject: str, **body: Any) -> Any:  # noqa: ANN401 - JSON
    answer = await bus.request(subject, msgspec.json.encode(body), timeout_s=3.0)
    raise_refusal(answer)
    return msgspec.json.decode(answer.data)


async def desk_of(world: World) -> Bus:
    """Start a worker that hosts the registry and wait until it answers."""
    await world.start(reverse, options=HOSTING)

    async def answers() -> bool:
        try:
            await ask(world.bus, FIND)
        except NoRespondersError:
            return False
        return True

    await eventually(answers)
    return world.bus


async def agent_of(world: World, key: str, *names: str, **more: Any) -> None:  # noqa: ANN401 - fields
    """Register an agent of no worker, with something that answers for it."""
    bus = world.bus
    found = await ask(bus, REGISTER, type="node", key=key, capabilities=list(names), instance=key, **more)

    def answer(message: Message) -> None:
        world.later(bus.publish(message.reply, msgspec.json.encode(f"{key} heard {len(message.data)} bytes")))

    await bus.subscribe(found["ask"], answer)


async def test_any_process_registers_is_found_and_is_asked(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    await agent_of(callboard_world, "n 1", "search", labels={"zone": "eu"}, weight=2)
    found = await ask(bus, FIND, capability="search")
    (agent,) = found["agents"]
    assert agent["record"]["key"] == "n 1"
    assert agent["status"] == "idle"
    picked = await ask(bus, PICK, capability="search")
    assert picked["ask"] == "cb.ask.node.n%201"
    handle = await callboard_world.client.pick("search", labels={"zone": "eu"})
    assert isinstance(handle, AgentHandle)
    assert await handle.ask({"q": 1}) == "n 1 heard 7 bytes"
    with pytest.raises(InputError, match="no mailbox"):
        handle.tell("x")


async def test_a_beat_tells_load_and_a_strangers_beat_is_refused(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    await agent_of(callboard_world, "a", "search")
    assert await ask(bus, BEAT, type="node", key="a", instance="a", busy=2, waiting=1) == {"ok": True}

    async def is_busy() -> bool:
        (agent,) = (await ask(bus, FIND, capability="search"))["agents"]
        return bool(agent["status"] == "busy" and agent["load"] == 3.0)

    await eventually(is_busy)
    with pytest.raises(NotFoundError, match="not registered"):
        await ask(bus, BEAT, type="node", key="stranger")
    with pytest.raises(DuplicateAgentError):
        await ask(bus, BEAT, type="node", key="a", instance="other", busy=9)
    (agent,) = (await ask(bus, FIND, capability="search"))["agents"]
    assert agent["busy"] == 2


async def test_two_living_processes_cannot_have_one_address(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    first = await ask(bus, REGISTER, type="node", key="a", capabilities=["x"], instance="p1", host="h1")
    with pytest.raises(DuplicateAgentError, match="held by p1 on h1") as caught:
        await ask(bus, REGISTER, type="node", key="a", capabilities=["x"], instance="p2")
    assert caught.value.holder == "p1 on h1"
    again = await ask(bus, REGISTER, type="node", key="a", capabilities=["y"], instance="p1")
    assert again["revision"] > first["revision"]
    assert (await ask(bus, FIND, capability="x"))["agents"] == []


async def test_who_falls_silent_loses_its_address(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    changes: list[tuple[str, str]] = []

    def hear(message: Message) -> None:
        body = msgspec.json.decode(message.data)
        changes.append((body["was"], body["now"]))

    await bus.subscribe(CHANGED, hear)
    await ask(bus, REGISTER, type="node", key="a", capabilities=["x"], instance="p1", timeout_s=1.0)

    async def is_offline() -> bool:
        found = await ask(bus, FIND, capability="x", status=["offline"])
        return len(found["agents"]) == 1

    await eventually(is_offline, within_s=12.0)
    await eventually(lambda: changes[-1][1] == "offline", what="that it is told")
    assert (await ask(bus, FIND, capability="x"))["agents"] == []
    await ask(bus, REGISTER, type="node", key="a", capabilities=["x"], instance="p2")
    await eventually(lambda: ("offline", "idle") in changes, what="that it is back")
    assert await ask(bus, DEREGISTER, type="node", key="a", instance="p2") == {"ok": True}
    await eventually(lambda: changes[-1][1] == "", what="that it has left")
    with pytest.raises(NotFoundError):
        await ask(bus, DEREGISTER, type="node", key="a")


async def test_an_address_that_workers_host_is_taken(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    await callboard_world.start(Scribe, options=HOSTING)
    await callboard_world.client.actor("scribe/ann").ask("x")

    async def is_known() -> bool:
        try:
            return len((await ask(bus, FIND, capability="summarise"))["agents"]) == 1
        except NoRespondersError:
            # the second worker may just be taking the registry over from the first
            return False

    await eventually(is_known)
    with pytest.raises(DuplicateAgentError, match="scribe/ann is held by"):
        await ask(bus, REGISTER, type="scribe", key="ann", capabilities=["summarise"], instance="p")


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"type": "no spaces", "key": "a"}, InvalidNameError, "agent type"),
        ({"type": "node", "key": ""}, InvalidNameError, "1 to 256 bytes"),
        ({"type": "node", "key": "a", "capabilities": ["So What"]}, InvalidNameError, "capability"),
        ({"type": "node", "key": "a", "weight": 0}, InputError, "weight is 0"),
        ({"type": "node", "key": "a", "timeout_s": 0.1}, InputError, "timeout_s is 0.1"),
    ],
)
async def test_a_registration_that_cannot_be_used_is_refused_in_words(
    callboard_world: World, body: dict[str, Any], kind: type[Exception], words: str
) -> None:
    bus = await desk_of(callboard_world)
    with pytest.raises(kind, match=words):
        await ask(bus, REGISTER, **body)


async def test_bodies_that_are_nothing_are_answered(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    for subject in (REGISTER, DEREGISTER, BEAT, FIND, PICK, LIST):
        answer = await bus.request(subject, b"\xff{not json", timeout_s=3.0)
        assert (answer.headers or {})["Cb-Error"] == "decode"
    await bus.publish(BEAT, b"\xff")
    await bus.publish("cb.beat.x", b"\xff")
    assert (await ask(bus, FIND))["agents"] == []


async def test_nobody_to_pick_is_told_with_the_reason(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    await agent_of(callboard_world, "a", "summarise", labels={"gpu": "t4"})
    with pytest.raises(NoAgentError, match="near it: summarise") as caught:
        await ask(bus, PICK, capability="sumarize")
    assert caught.value.near == ("summarise",)
    with pytest.raises(NoAgentError, match=r"label gpu=a100 left out 1 \(there are: t4\)") as caught:
        await ask(bus, PICK, capability="summarise", labels={"gpu": "a100"})
    assert caught.value.refused == {"labels.gpu": 1}
    assert (await ask(bus, FIND, capability="sumarize"))["near"] == ["summarise"]
    await ask(bus, BEAT, type="node", key="a", status="paused")

    async def is_paused() -> bool:
        return bool((await ask(bus, FIND, capability="summarise"))["agents"][0]["status"] == "paused")

    await eventually(is_paused)
    with pytest.raises(NoAgentError, match="none takes work now: 1 paused"):
        await ask(bus, PICK, capability="summarise")
    with pytest.raises(InputError, match="limit is 0"):
        await ask(bus, FIND, limit=0)


async def test_a_capability_of_plain_pools_gives_a_handle_that_submits(callboard_world: World) -> None:
    await desk_of(callboard_world)

    async def is_known() -> bool:
        return len((await ask(callboard_world.bus, FIND, capability="reverse"))["workers"]) == 1

    await eventually(is_known)
    handle = await callboard_world.client.pick("reverse")
    assert isinstance(handle, PoolHandle)
    assert await handle.ask("abc") == "cba"
    assert handle.why.text.startswith("no agent offers reverse")


async def test_a_pool_is_picked_by_the_labels_that_its_workers_bear(callboard_world: World) -> None:
    await desk_of(callboard_world)
    bus, client = callboard_world.bus, callboard_world.client
    await callboard_world.start(reverse, options=replace(QUICK, labels={"zone": "eu", "size": "XL_1"}))

    async def are_known() -> bool:
        return len((await ask(bus, FIND, capability="reverse"))["workers"]) == 2

    await eventually(are_known)
    for where in (client, Client(bus)):
        handle = await where.pick("reverse", labels={"zone": "eu"})
        assert isinstance(handle, PoolHandle)
        assert (handle.capability, await handle.ask("abc")) == ("reverse--zone_eu", "cba")
    with pytest.raises(NoAgentError, match=r"label zone=us left out 2 \(there are: eu\).*nearest is ") as caught:
        await client.pick("reverse", labels={"zone": "us"})
    assert caught.value.refused == {"labels.zone": 2}
    with pytest.raises(NoAgentError, match="type=scribe left out 2"):
        await client.pick("reverse", type="scribe")
    with pytest.raises(InvalidNameError, match="cannot ask for the label size=XL_1"):
        await client.pick("reverse", labels={"size": "XL_1"})
    # agents there are, without the label: the pool that bears it does it
    await agent_of(callboard_world, "a", "reverse", labels={"zone": "us"})
    assert isinstance(await client.pick("reverse", labels={"zone": "us"}), AgentHandle)
    assert isinstance(await client.pick("reverse", labels={"zone": "eu"}), PoolHandle)
    with pytest.raises(NoAgentError, match=r"label zone=asia left out 1 \(there are: us\)"):
        await client.pick("reverse", labels={"zone": "asia"})


async def test_pages_go_on_where_the_last_one_ended(callboard_world: World) -> None:
    bus = await desk_of(callboard_world)
    for number in range(5):
        await ask(bus, REGISTER, type="node", key=f"{number}", capabilities=["x"], instance="p")
    first = await ask(bus, LIST, limit=3)
    second = await ask(bus, LIST, limit=3, after=first["next"])
    keys = [agent["record"]["key"] for page in (first, second) for agent in page["agents"]]
    assert (keys, second["next"]) == (["0", "1", "2", "3", "4"], "")


async def test_a_first_look_up_with_no_registry_says_so_at_once(callboard_world: World) -> None:
    client = Client(callboard_world.bus)
    with pytest.raises(RegistryAwayError, match="nobody leads the registry"):
        await client.find("search")
    await client.close()


async def test_a_warm_cache_goes_on_without_the_registry(callboard_world: World) -> None:
    await desk_of(callboard_world)
    await agent_of(callboard_world, "a", "search")
    client = Client(await callboard_world.connect())
    await client.find("search")
    await eventually(lambda: client.lookups.cache is not None and client.lookups.cache.is_warm, within_s=5.0)
    (running,) = callboard_world.workers
    await running.stop()
    assert [agent.record.key for agent in (await client.find("search")).agents] == ["a"]
    handle = await client.pick("search")
    assert isinstance(handle, AgentHandle)
    assert await handle.ask("x") == "a heard 3 bytes"
    await client.close()
