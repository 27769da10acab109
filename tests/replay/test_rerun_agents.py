"""Agents and flows that run again: prompts, tools, parts of a run; the provider is not called."""

from __future__ import annotations

from types import new_class
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from callboard.agents.agent import Agent
from callboard.agents.flow import flow
from callboard.agents.llm.base import ToolCall
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.message import AgentResult, Task
from callboard.agents.rerun import Reruns, lines, rerun_all
from callboard.agents.run import Run
from callboard.agents.tools.decorator import tool
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.errors import ModuleLoadError
from tests.support.world import World

Tools: list[float] = []


@tool
def area(width_m: float, height_m: float) -> float:
    """Area of a rectangle in square metres.

    Args:
        width_m: Width in metres.
        height_m: Height in metres.
    """
    Tools.append(width_m)
    return width_m * height_m


def call(**arguments: object) -> ToolCall:
    return ToolCall(id="1", name="area", arguments=msgspec.json.encode(arguments).decode())


def said() -> Scripted:
    return Scripted([Say(tool_calls=(call(width_m=3, height_m=4),)), Say(text="12 square metres")])


def painter(instructions: str, model: Scripted, *tools: Any) -> type[Agent]:  # noqa: ANN401 - tools of any kind
    return new_class(
        "Painter",
        (Agent,),
        {"name": "painter", "model": model, "tools": list(tools)},
        lambda space: space.update(__doc__=instructions),
    )


def of(*actors: type[Actor]) -> dict[str, type[Actor]]:
    return {actor.actor_name: actor for actor in actors}


class Job(Struct):
    text: str


def house(second: str) -> type[Actor]:
    @flow(name="house")
    async def made(run: Run, job: Job) -> list[str]:
        """Ask twice, side by side."""
        found = await run.parallel(["painter/a", "painter/b"], job.text)
        last = await run.agent("painter/c", second)
        return [*(each.text for each in found.results.values()), last.text]

    return made


async def painted(world: World, actor: type[Agent]) -> AgentResult:
    running = await world.start(actor)
    ask = world.client.actor("painter/ann").ask
    found: AgentResult = await ask(Task("A wall of 3 by 4"), returns=AgentResult, timeout_s=30, idempotency_key="1")
    await running.stop()
    Tools.clear()
    return found


async def again(world: World, actors: dict[str, type[Actor]], target: str, **options: Any) -> Reruns:  # noqa: ANN401
    return await rerun_all(world.bus, actors, target, **options)


async def test_an_agent_runs_again_equal_and_neither_model_nor_tool_is_called(callboard_world: World) -> None:
    model = said()
    result = await painted(callboard_world, painter("You estimate paint.", model, area))
    assert result.text == "12 square metres"
    assert model.calls == 2
    found = await again(callboard_world, of(painter("You estimate paint.", model, area)), "painter/ann")
    (only,) = found.turns
    assert (only.is_equal, only.steps, only.tried) == (True, 3, []), only
    assert (model.calls, Tools) == (2, [])


async def test_a_changed_prompt_names_the_first_call_and_shows_the_line(callboard_world: World) -> None:
    model = said()
    _ = await painted(callboard_world, painter("You estimate paint.", model, area))
    found = await again(callboard_world, of(painter("You estimate plaster.", model, area)), "painter/ann")
    first = found.turns[0].first
    assert first is not None
    assert (first.kind, first.name) == ("step", "model")
    shown = lines(first)
    assert "-You estimate paint." in shown
    assert "+You estimate plaster." in shown
    assert (model.calls, Tools) == (2, [])


async def test_arguments_of_a_tool_are_shown_as_the_model_wrote_them(callboard_world: World) -> None:
    """A tool that is there no longer is told to the model; the recorded call is gone."""
    model = said()
    _ = await painted(callboard_world, painter("You estimate paint.", model, area))
    found = await again(callboard_world, of(painter("You estimate paint.", model)), "painter/ann")
    assert found.turns[0].first is not None
    assert found.turns[0].first.name == "model"
    (gone,) = [each for each in found.turns[0].differences if each.kind == "gone" and each.name == "tool area"] or [
        None
    ]
    assert gone is None or gone.then == {"tool": "area", "arguments": {"width_m": 3, "height_m": 4}}


async def test_a_run_and_the_agents_below_it(callboard_world: World) -> None:
    model = Scripted([Say(text="done", always=True)])
    running = await callboard_world.start(painter("You paint.", model), house("again"))
    _ = await ActorRef(callboard_world.bus, "run-house/1").ask(Job("dig"), timeout_s=30, idempotency_key="1")
    await running.stop()
    calls = model.calls
    actors = of(painter("You paint.", model), house("again"))
    flat = await again(callboard_world, actors, "house/1")
    assert flat.is_equal, flat
    assert len(flat.turns) == 1
    deep = await again(callboard_world, actors, "run-house/1", deep=True)
    assert deep.is_equal, deep
    assert sorted(each.turn.rpartition("/")[0] for each in deep.turns) == [
        "painter/a",
        "painter/b",
        "painter/c",
        "run-house/1",
    ]
    assert deep.left_out == []
    changed = await again(callboard_world, of(painter("You plaster.", model), house("again")), "house/1", deep=True)
    assert [(each.turn.partition("/")[0], each.is_equal) for each in changed.turns] == [
        ("run-house", True),
        *[("painter", False)] * 3,
    ]
    other = await again(callboard_world, of(house("once more")), "house/1")
    first = other.turns[0].first
    assert first is not None
    assert (first.name, first.then, first.now) == (
        "agent begun",
        {"part": "painter-3", "input": "again"},
        {"part": "painter-3", "input": "once more"},
    )
    assert model.calls == calls


async def test_the_code_of_a_type_must_be_there(callboard_world: World) -> None:
    _ = await painted(callboard_world, painter("You paint.", said(), area))
    with pytest.raises(ModuleLoadError, match="the code of 'painter' is not here: name its file with --module"):
        _ = await again(callboard_world, of(house("x")), "painter/ann")
