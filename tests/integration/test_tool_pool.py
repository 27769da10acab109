"""Tools on worker pools: a call is a task, checked again at the pool's door, and one that is unsafe is run once."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest
from msgspec import Struct

from callboard.agents.errors import ApprovalDeniedError
from callboard.agents.llm.base import ToolCall
from callboard.agents.tools.approver import ToolAnswer, ToolQuestion
from callboard.agents.tools.base import ToolResult
from callboard.agents.tools.batch import invoke_all
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool
from callboard.agents.tools.permission import Permissions
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.capability import Capability
from callboard.runtime.errors import TaskFailedError
from tests.support.eventually import eventually
from tests.support.world import World

ran: Counter[str] = Counter()
keys: list[str] = []
gate: asyncio.Event


@pytest.fixture(autouse=True)
def fresh() -> None:
    global gate  # noqa: PLW0603 - one a test
    ran.clear()
    keys.clear()
    gate = asyncio.Event()


@tool(pool="tool")
async def read(name: str, context: ToolContext) -> str:
    """Read, from a pool."""
    ran[name] += 1
    keys.append(context.key)
    if name == "slow" and ran[name] == 1:
        await gate.wait()
    if name == "bad":
        text = "no luck"
        raise ValueError(text)
    return f"{name} for {context.address}, folder {context.folder}"


@tool(pool="tool", action="write")
async def change(name: str) -> str:
    """Change, from a pool."""
    ran[name] += 1
    if name == "slow":
        await gate.wait()
    return f"changed {name}"


TOOLS = (read, change)
SERVED: list[Capability[..., object]] = [each.capability for each in TOOLS if each.capability is not None]


class Go(Struct):
    calls: list[tuple[str, str]]


async def refuse(turn: TurnApi | Actor, question: ToolQuestion, /) -> ToolAnswer:
    ran["asked"] += 1
    text = f"asked about {question.tool}: {question.kind}"
    raise ApprovalDeniedError(text)


class Caller(Actor):
    @on
    async def go(self, m: Go) -> list[ToolResult]:
        calls = [ToolCall(id=f"c{n}", name=name, arguments=text) for n, (name, text) in enumerate(m.calls)]
        return await invoke_all(self, calls, tools=TOOLS, permissions=Permissions(), approve=refuse)


async def ask(world: World, *calls: tuple[str, str]) -> list[ToolResult]:
    found = await world.client.actor("caller/a").ask(Go(list(calls)), timeout_s=40)
    return msgspec.convert(found, list[ToolResult])


async def test_a_pool_runs_the_tools_it_serves(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Caller)
    await world.start(*SERVED)
    found = await ask(
        world,
        ("read", '{"name": "a"}'),
        ("change", '{"name": "b"}'),
        ("read", '{"name": "bad"}'),
        ("read", '{"nome": "a"}'),
    )
    assert [result.error for result in found] == ["", "", "tool_failed", "tool_argument"]
    assert [result.call_id for result in found] == ["c0", "c1", "c2", "c3"]
    # a folder is the operator's to name, and never comes with a task
    assert found[0].text == "a for caller/a, folder None"
    assert ran == {"a": 1, "b": 1, "bad": 1}
    assert set(await world.records("tool-read")) == set(keys)


async def test_a_worker_killed_in_mid_tool_is_replaced_under_the_same_key(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Caller)
    first = await world.start(*SERVED)
    waiting = asyncio.create_task(ask(world, ("read", '{"name": "slow"}')))
    await eventually(lambda: ran["slow"] == 1)
    await first.kill()
    await world.start(*SERVED)
    assert (await waiting)[0].error == ""
    assert (ran["slow"], len(set(keys))) == (2, 1)


async def test_an_unsafe_one_is_reported_and_not_run_again(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Caller)
    first = await world.start(*SERVED)
    waiting = asyncio.create_task(ask(world, ("change", '{"name": "slow"}')))
    await eventually(lambda: ran["slow"] == 1)
    await first.kill()
    await world.start(*SERVED)
    (found,) = await waiting
    assert (found.error, found.text) == ("approval_denied", "asked about change: outcome")
    assert (ran["slow"], ran["asked"]) == (1, 1)


async def test_a_task_from_anywhere_is_checked_at_the_door(callboard_world: World) -> None:
    world = callboard_world
    await world.start(*SERVED)
    found = await world.client.call("tool-read", {"arguments": {"name": "x"}})
    assert found["text"] == "x for , folder None"
    payload: object
    for payload in ({"arguments": {"name": 5}}, {"arguments": {}}, {"arguments": {"name": "x", "folder": "/etc"}}, [1]):
        with pytest.raises(TaskFailedError) as caught:
            await world.client.call("tool-read", payload)
        assert caught.value.cause_code in ("tool_argument", "decode")
