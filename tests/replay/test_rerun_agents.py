"""Agents and flows that run again: prompts, tools, parts of a run; the provider is not called."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from types import new_class
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard import on
from callboard.agents import approval, approvals
from callboard.agents.agent import Agent
from callboard.agents.flow import flow
from callboard.agents.llm.base import Prompt, ToolCall, user
from callboard.agents.llm.call import call_model
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.message import AgentResult, Task
from callboard.agents.rerun import Reruns, lines, rerun_all
from callboard.agents.run import Run
from callboard.agents.tools.decorator import tool
from callboard.agents.tools.invoker import invoke
from callboard.agents.tools.permission import Permissions
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.errors import ModuleLoadError
from tests.support.actors import parked
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


class Measure(Struct):
    times: int = 1


def measurer(model: Scripted, factor: float) -> type[Actor]:
    class Measurer(Actor, name="measurer"):
        @on
        async def measure(self, m: Measure) -> str:
            answer = await call_model(self, model, Prompt(messages=(user("Measure."),)))
            (asked,) = answer.tool_calls
            arguments = msgspec.json.decode(asked.arguments)
            arguments["width_m"] *= factor
            changed = replace(asked, arguments=msgspec.json.encode(arguments).decode())
            return (await invoke(self, area, changed, permissions=Permissions())).text

    return Measurer


async def test_another_call_of_a_tool_shows_its_arguments_then_and_now(callboard_world: World) -> None:
    model = Scripted([Say(tool_calls=(call(width_m=3, height_m=4),))])
    running = await callboard_world.start(measurer(model, 1))
    assert await callboard_world.client.actor("measurer/a").ask(Measure(), idempotency_key="1") == "12.0"
    await running.stop()
    Tools.clear()
    assert (await again(callboard_world, of(measurer(model, 1)), "measurer/a")).is_equal
    first = (await again(callboard_world, of(measurer(model, 2)), "measurer/a")).turns[0].first
    assert first is not None
    assert (first.name, first.then, first.now) == (
        "tool area",
        {"tool": "area", "arguments": {"width_m": 3, "height_m": 4}},
        {"tool": "area", "arguments": {"width_m": 6, "height_m": 4}},
    )
    assert [line for line in lines(first) if line[0] in "-+"] == ['-    "width_m": 3,', '+    "width_m": 6,']
    assert Tools == []


async def test_a_call_that_failed_fails_again_as_it_did(callboard_world: World) -> None:
    """A failure is no value of a step: it is found in the record that the call left."""
    model = Scripted([Say(error="model_refused")])
    assert (await painted(callboard_world, painter("You paint.", model))).status == "refused"
    found = await again(callboard_world, of(painter("You paint.", model)), "painter/ann")
    assert (found.is_equal, found.turns[0].steps, model.calls) == (True, 1, 1), found


async def test_a_call_that_was_tried_again_is_equal(callboard_world: World) -> None:
    model = Scripted([Say(text="half of it", cut_after=1), Say(text="whole")])
    assert (await painted(callboard_world, painter("You paint.", model))).text == "whole"
    found = await again(callboard_world, of(painter("You paint.", model)), "painter/ann")
    assert (found.is_equal, model.calls) == (True, 2), found


async def test_an_agent_with_a_budget_and_a_memory_is_equal(callboard_world: World) -> None:
    model = Scripted([Say(text="one"), Say(text="two")], usd_per_token=Decimal("0.001"))

    def saver(word: str) -> type[Agent]:
        class Saver(Agent, name="saver", model=model, budget={"usd": 5, "usd_per_day": 50}, memory=10):
            __doc__ = f"You save {word}."

        return Saver

    running = await callboard_world.start(saver("money"))
    for number in range(2):
        ask = callboard_world.client.actor("saver/a").ask
        _ = await ask(Task(f"Task {number}"), returns=AgentResult, timeout_s=30, idempotency_key=f"{number}")
    await running.stop()
    found = await again(callboard_world, of(saver("money")), "saver/a")
    assert (found.is_equal, model.calls) == (True, 2), found
    changed = await again(callboard_world, of(saver("time")), "saver/a")
    assert changed.turns[0].first is not None
    assert changed.turns[0].first.name == "model"


class Pay(Struct):
    usd: int


def payer(more: int) -> type[Actor]:
    class Payer(Actor, name="payer"):
        companions = approval.COMPANIONS

        @on
        async def pay(self, m: Pay) -> str:
            grant = await approval.approve(current_turn(), {"usd": m.usd + more}, to="ann", timeout="1h")
            paid = await self.step("pay", self._pay, m.usd, key="pay")
            return f"{paid} by {grant.by}"

        def _pay(self, usd: int) -> int:
            Tools.append(usd)
            return usd

    return Payer


async def test_a_turn_that_waited_for_a_person_goes_on_by_what_the_person_said(callboard_world: World) -> None:
    running = await callboard_world.start(payer(0))
    asking = asyncio.create_task(callboard_world.client.actor("payer/a").ask(Pay(7), timeout_s=30, idempotency_key="1"))
    _ = await parked(callboard_world, "payer/a")
    waiting = await again(callboard_world, of(payer(0)), "payer/a")
    assert (waiting.is_equal, Tools) == (True, []), waiting
    (pending,) = await approvals.ls(callboard_world.bus)
    _ = await approvals.grant(callboard_world.bus, pending.id, by="ann", hash=pending.entry.hash)
    assert await asking == "7 by ann"
    await running.stop()
    Tools.clear()
    found = await again(callboard_world, of(payer(0)), "payer/a")
    assert (found.is_equal, Tools) == (True, []), found
    below = await again(callboard_world, of(payer(0), *approval.COMPANIONS), "payer/a", deep=True)
    assert (below.is_equal, below.left_out) == (True, []), below
    other = await again(callboard_world, of(payer(1)), "payer/a")
    assert (other.is_equal, Tools) == (False, []), other


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
