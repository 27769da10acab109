"""An agent's task from end to end: models, tools, ends, stops, takeovers and the conversation."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from callboard import tool
from callboard.agents.agent import Agent
from callboard.agents.llm.base import ToolCall
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.message import AgentResult, Task
from tests.support.world import World


class Estimate(Struct):
    litres: float
    why: str = ""


@tool
def area(width_m: float, height_m: float) -> float:
    """Area of a rectangle in square metres.

    Args:
        width_m: Width in metres.
        height_m: Height in metres.
    """
    return width_m * height_m


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(id="", name=name, arguments=msgspec.json.encode(arguments).decode())


async def ask(world: World, address: str, text: str, **more: Any) -> AgentResult:
    return await world.client.actor(address).ask(Task(text, **more), returns=AgentResult)


async def test_a_task_is_done_with_a_tool_and_typed_output(callboard_world: World) -> None:
    model = Scripted(
        [Say(tool_calls=(call("area", width_m=3, height_m=4),)), Say(text='{"litres": 1.5, "why": "12 m2"}')]
    )

    class Estimator(Agent, name="estimator", model=model, tools=[area], output=Estimate):
        """You estimate paint for rooms."""

    await callboard_world.start(Estimator)
    found = await ask(callboard_world, "estimator/ann", "A wall of 3 by 4")
    assert (found.status, found.output, found.turns) == ("done", {"litres": 1.5, "why": "12 m2"}, 2)
    assert found.usage.input_tokens > 0
