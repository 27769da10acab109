"""Tools in turns: checked, run side by side, recorded once, and a person asked where nobody knows the outcome."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from callboard.agents.errors import ApprovalDeniedError
from callboard.agents.llm.base import ToolCall
from callboard.agents.tools.approver import ToolAnswer, ToolQuestion
from callboard.agents.tools.base import Tool, ToolResult
from callboard.agents.tools.batch import invoke_all
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool
from callboard.agents.tools.permission import Permissions
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.errors import RetryableError
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import events_of, parked, steps_of
from tests.support.eventually import eventually
from tests.support.world import World

FAST = RetryPolicy(attempts=4, gaps_s=(0.02,))

ran: Counter[str] = Counter()
most: Counter[str] = Counter()
gate: asyncio.Event


@pytest.fixture(autouse=True)
def fresh() -> None:
    global gate  # noqa: PLW0603 - one a test
    ran.clear()
    most.clear()
    gate = asyncio.Event()


@tool
async def look(name: str) -> str:
    """Look something up.

    Args:
        name: What to look up.
    """
    ran[name] += 1
    most["now"] += 1
    most["most"] = max(most["most"], most["now"])
    await asyncio.sleep(0.01)
    most["now"] -= 1
    return name.upper()


@tool
def add(a: int, b: int = 1) -> dict[str, int]:
    """Add two numbers."""
    return {"sum": a + b}


@tool
async def broken() -> None:
    """Fail."""
    text = "no luck"
    raise ValueError(text)


@tool(timeout_s=0.05)
async def slow() -> str:
    """Take long."""
    await gate.wait()
    return "late"


@tool
async def long_text() -> str:
    """Return much."""
    return "x" * 500


@tool(action="spend", category="money")
async def pay(amount: int) -> str:
    """Pay."""
    ran["pay"] += 1
    return f"paid {amount}"


@tool(action="write")
async def send(text: str, context: ToolContext) -> str:
    """Send a letter, once."""
    ran[f"send {text}"] += 1
    ran[context.key] += 1
    await gate.wait()
    return f"sent {text}"


TOOLS: tuple[Tool, ...] = (look, add, broken, slow, long_text, pay, send)


class Go(Struct):
    calls: list[tuple[str, str]]
    fails: int = 0
    cap: int = 4


class Said(Struct):
    choice: str
    text: str = ""


asked: list[ToolQuestion] = []


async def ask_person(turn: TurnApi | Actor, question: ToolQuestion, /) -> ToolAnswer:
    asked.append(question)
    said: Said = await turn.wait_for(Said)
    if said.choice == "deny":
        raise ApprovalDeniedError(said.text, approval="a1")
    return msgspec.convert({"choice": said.choice, "text": said.text}, ToolAnswer)


class Agent(Actor, retry=FAST, restart_budget=100):
    @on
    async def go(self, m: Go) -> list[ToolResult]:
        calls = [ToolCall(id=f"c{n}", name=name, arguments=text) for n, (name, text) in enumerate(m.calls)]
        found = await invoke_all(
            self,
            calls,
            tools=TOOLS,
            permissions=Permissions(),
            approve=ask_person,
            cap=m.cap,
            max_chars=100,
        )
        if self.attempt <= m.fails:
            raise RetryableError
        return found


async def ask(world: World, *calls: tuple[str, str], fails: int = 0, cap: int = 4) -> list[ToolResult]:
    found: Any = await world.client.actor("agent/a").ask(Go(list(calls), fails=fails, cap=cap), timeout_s=40)
    return msgspec.convert(found, list[ToolResult])


async def test_each_call_has_its_own_end(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Agent)
    found = await ask(
        world,
        ("look", '{"name": "a"}'),
        ("add", '{"a": 1}'),
        ("broken", ""),
        ("slow", "{}"),
        ("long_text", "{}"),
        ("add", '{"a": "one"}'),
        ("add", "{}"),
        ("add", '{"a": 1, "c": 2}'),
        ("add", '{"a": 1'),
        ("pay", '{"amount": 5}'),
        ("invented", "{}"),
    )
    errors = [result.error for result in found]
    wrong = ["tool_argument"] * 4
    assert errors == ["", "", "tool_failed", "tool_timeout", "", *wrong, "tool_denied", "tool_unknown"]
    assert [found[0].text, found[1].text, found[2].text] == ["A", '{"sum":2}', "ValueError: no luck"]
    assert found[4].text.startswith("x" * 100 + "\n[cut")
    assert "there are: look, add, broken, slow, long_text, send" in found[-1].text
    assert ran["pay"] == 0
    seen = [data["rule"] for name, data in await events_of(world, "agent/a") if name == "tool.denied"]
    assert sorted(seen) == ["level", "unknown"]


async def test_calls_run_side_by_side_up_to_the_cap(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Agent)
    found = await ask(world, *[("look", f'{{"name": "n{n}"}}') for n in range(9)], cap=3)
    assert [result.text for result in found] == [f"N{n}" for n in range(9)]
    assert most["most"] == 3


async def test_a_call_that_was_recorded_is_not_made_again(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Agent)
    found = await ask(world, ("look", '{"name": "a"}'), ("look", '{"name": "a"}'), ("pay", '{"amount": 1}'), fails=2)
    assert [result.text for result in found[:2]] == ["A", "A"]
    assert ran == {"a": 2}
    assert sorted(await steps_of(world, "agent/a")) == ["tool look", "tool look", "tool pay"]
    # what was refused is told once, by the run that ended
    assert len(await events_of(world, "agent/a")) == 1


@pytest.mark.parametrize(
    ("said", "runs", "end"),
    [
        (["done", "it was sent"], 1, ("it was sent", "")),
        (["give_up", "ask ops"], 1, ("nobody knows", "tool_outcome_unknown")),
        (["again", ""], 2, ("sent x", "")),
        (["deny", "no"], 1, ("no", "approval_denied")),
    ],
)
async def test_a_person_settles_what_a_killed_host_left_unknown(
    callboard_world: World, said: list[str], runs: int, end: tuple[str, str]
) -> None:
    world = callboard_world
    asked.clear()
    first = await world.start(Agent)
    waiting = asyncio.create_task(ask(world, ("send", '{"text": "x"}'), ("look", '{"name": "b"}')))
    await eventually(lambda: ran["send x"] == 1 and ran["b"] == 1)
    await world.start(Agent)
    await first.kill()
    await parked(world, "agent/a")
    assert ran["send x"] == 1
    gate.set()
    await world.client.actor("agent/a").tell(Said(*said))
    found = await waiting
    assert ran["send x"] == runs
    assert (found[0].text[: len(end[0])], found[0].error) == end
    assert found[1].text == "B"
    assert asked[0] == asked[-1]
    assert (asked[0].kind, asked[0].choices) == ("outcome", ("done", "again", "give_up"))
