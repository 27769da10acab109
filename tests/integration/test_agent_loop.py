"""An agent's task from end to end: models, tools, ends, stops, takeovers and the conversation."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from callboard import on, tool
from callboard.agents.agent import Agent
from callboard.agents.llm.base import ToolCall, Usage
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.message import AgentResult, Task
from callboard.agents.tools.permission import Permissions
from callboard.runtime import subjects
from callboard.runtime.actor import inspection
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.shutdown import named
from callboard.runtime.errors import AskFailedError
from tests.support.actors import events_of, letters, parked, state_of
from tests.support.eventually import eventually
from tests.support.world import QUICK, World


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


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(id="", name=name, arguments=msgspec.json.encode(arguments).decode())


async def ask(world: World, address: str, text: str) -> AgentResult:
    found: AgentResult = await world.client.actor(address).ask(Task(text), returns=AgentResult, timeout_s=30)
    return found


async def approvals(world: World) -> list[str]:
    counts = await world.bus.subject_counts(subjects.ACTORS, "cb.state.approval.*")
    return [subjects.unescape(subject.rpartition(".")[2]) for subject in counts]


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


async def test_each_of_the_ends_is_told(callboard_world: World) -> None:
    once = [call("area", width_m=1, height_m=1)]

    class Endless(
        Agent, name="endless", model=Scripted([Say(tool_calls=tuple(once), always=True)]), tools=[area], max_turns=3
    ):
        """You never end."""

    class Refusing(Agent, name="refusing", model=Scripted([Say(text="I would rather not", finish="refused")])):
        """You refuse."""

    class Filtered(Agent, name="filtered", model=Scripted([Say(error="model_refused")])):
        """You are filtered."""

    class Unknown(Agent, name="unknown", model=Scripted([Say(error="model_auth")])):
        """You have no key."""

    await callboard_world.start(Endless, Refusing, Filtered, Unknown)
    found = await ask(callboard_world, "endless/a", "go")
    assert (found.status, found.turns) == ("max_turns", 3)
    assert "max_turns" in found.reason
    assert (await ask(callboard_world, "refusing/a", "go")).status == "refused"
    assert (await ask(callboard_world, "filtered/a", "go")).status == "refused"
    with pytest.raises(AskFailedError) as caught:
        await ask(callboard_world, "unknown/a", "go")
    assert caught.value.cause_code == "model_auth"
    # nothing is lost: a person sets the key and puts it back
    (letter,) = await letters(callboard_world, "unknown/a")
    assert letter.failure.code == "model_auth"


async def test_a_cancelled_task_keeps_what_there_is(callboard_world: World) -> None:
    model = Scripted(
        [
            Say(text="let me measure", tool_calls=(call("area", width_m=1, height_m=1),)),
            Say(text="never", delay_s=600),
        ]
    )

    class Slow(Agent, name="slow", model=model, tools=[area], memory=20):
        """You are slow."""

    await callboard_world.start(Slow)
    asking = asyncio.create_task(ask(callboard_world, "slow/a", "go"))
    await eventually(lambda: model.calls == 2)
    await inspection.order(callboard_world.bus, parse("slow/a"), "cancel", reason="enough")
    found = await asking
    assert (found.status, found.reason, found.text, found.turns) == ("stopped", "enough", "let me measure", 1)
    said = (await state_of(callboard_world, "slow/a"))["messages"]
    assert [each["role"] for each in said] == ["user", "assistant", "tool"]


async def test_a_drained_task_goes_on_elsewhere_and_pays_for_nothing_twice(callboard_world: World) -> None:
    gate = asyncio.Event()
    ran: list[str] = []

    @tool(name="wait")
    async def wait(what: str) -> str:
        """Wait for it."""
        ran.append(what)
        if what == "second":
            await gate.wait()
        return what

    model = Scripted(
        [
            Say(tool_calls=(call("wait", what="first"),)),
            Say(tool_calls=(call("wait", what="second"),)),
            Say(text="done"),
        ]
    )

    class Waiter(Agent, name="waiter", model=model, tools=[wait]):
        """You wait."""

    options = msgspec.structs.replace(QUICK, shutdown=named("immediate"))
    first = await callboard_world.start(Waiter, options=options)
    asking = asyncio.create_task(ask(callboard_world, "waiter/a", "go"))
    await eventually(lambda: ran == ["first", "second"])
    await callboard_world.start(Waiter, options=options)
    stopping = asyncio.create_task(first.stop())
    await eventually(lambda: ran == ["first", "second", "second"], within_s=15)
    gate.set()
    await stopping
    found = await asking
    assert (found.status, found.text, found.turns, model.calls) == ("done", "done", 3, 3)


async def test_the_conversation_goes_on_with_memory_and_not_without(callboard_world: World) -> None:
    remembering = Scripted([Say(text="hello Ann"), Say(text="you are Ann")])
    forgetting = Scripted([Say(text="hello Ann"), Say(text="who are you?")])

    class Friend(Agent, name="friend", model=remembering, memory=10):
        """You remember."""

    class Stranger(Agent, name="stranger", model=forgetting):
        """You forget."""

    await callboard_world.start(Friend, Stranger)
    for name in ("friend", "stranger"):
        await ask(callboard_world, f"{name}/ann", "I am Ann")
        await ask(callboard_world, f"{name}/ann", "Who am I?")
    assert [m.text for m in remembering.prompts[1].messages[1:]] == ["I am Ann", "hello Ann", "Who am I?"]
    assert [m.text for m in forgetting.prompts[1].messages[1:]] == ["Who am I?"]


async def test_subclasses_prepare_finish_think_and_have_handlers_of_their_own(callboard_world: World) -> None:
    class Poll(Struct):
        text: str

    model = Scripted([Say(text="42"), Say(text="prepared"), Say(text='{"litres": 2}')])

    class Own(Agent, name="own", model=model):
        """You do it your own way."""

        async def prepare(self, task: Task) -> Task:
            number = await self.step("look", lambda: 7)
            return Task(task.text, context={"number": number})

        async def finish(self, task: Task, result: AgentResult) -> AgentResult:
            return msgspec.structs.replace(result, text=f"{result.text} with {task.context['number']}")

        @on
        async def poll(self, m: Poll) -> str:
            return str(await self.think(m.text))

        @on
        async def measure(self, m: Estimate) -> float:
            ended = await self.run_loop("how much?", output=Estimate)
            found: Estimate = ended.output
            return found.litres

    await callboard_world.start(Own)
    own = callboard_world.client.actor("own/a")
    assert await own.ask(Poll("what?")) == "42"
    assert (await ask(callboard_world, "own/a", "go")).text == "prepared with 7"
    assert "7" in model.prompts[1].messages[-1].text
    assert await own.ask(Estimate(litres=0)) == 2


async def test_an_answer_of_the_wrong_form_is_repaired_and_in_the_end_an_error(callboard_world: World) -> None:
    repaired = Scripted([Say(text="two litres"), Say(text='{"litres": "two"}'), Say(text='{"litres": 2}')])
    hopeless = Scripted([Say(text="two litres", always=True)])

    class Repaired(Agent, name="repaired", model=repaired, output=Estimate):
        """You learn."""

    class Hopeless(Agent, name="hopeless", model=hopeless, output=Estimate):
        """You do not."""

    await callboard_world.start(Repaired, Hopeless)
    found = await ask(callboard_world, "repaired/a", "go")
    assert (found.status, found.output, found.turns) == ("done", {"litres": 2.0, "why": ""}, 3)
    with pytest.raises(AskFailedError) as caught:
        await ask(callboard_world, "hopeless/a", "go")
    assert (caught.value.cause_code, hopeless.calls) == ("model_output", 3)


async def test_a_tool_that_a_model_invents_or_may_not_call_is_told_and_not_run(callboard_world: World) -> None:
    ran: list[str] = []

    @tool(action="communicate")
    def send(text: str) -> str:
        """Send a text to somebody."""
        ran.append(text)
        return "sent"

    model = Scripted(
        [
            Say(tool_calls=(call("send", text="secret"), call("launch"), call("area", width_m="wide", height_m=1))),
            Say(tool_calls=(call("area", width_m=2, height_m=2),)),
            Say(text="four"),
        ]
    )

    class Fenced(Agent, name="fenced", model=model, tools=[area, send], level="restricted"):
        """You have fences."""

    await callboard_world.start(Fenced)
    assert (await ask(callboard_world, "fenced/a", "go")).text == "four"
    assert ran == []
    assert [spec.name for spec in model.prompts[0].tools] == ["area"]
    told = [m.text for m in model.prompts[1].messages if m.role == "tool"]
    assert len(told) == 3
    assert "not permitted" in told[0]
    denied = [data for name, data in await events_of(callboard_world, "fenced/a") if name == "tool.denied"]
    assert {each["tool"] for each in denied} == {"send", "launch"}
    # what tools return is data, fenced in
    assert model.prompts[2].messages[-1].text.startswith("<data-")


async def test_a_call_that_needs_a_person_parks_and_goes_on_with_the_grant(callboard_world: World) -> None:
    ran: list[str] = []

    @tool(action="spend", needs_approval=True)
    def pay(amount: int) -> str:
        """Pay somebody."""
        ran.append(str(amount))
        return "paid"

    model = Scripted([Say(tool_calls=(call("pay", amount=5),)), Say(text="it is paid")])

    class Payer(Agent, name="payer", model=model, tools=[pay], permissions=Permissions(level="elevated")):
        """You pay."""

    await callboard_world.start(Payer)
    asking = asyncio.create_task(ask(callboard_world, "payer/a", "pay"))
    await parked(callboard_world, "payer/a")
    assert ran == []

    async def is_asked() -> bool:
        return bool(await approvals(callboard_world))

    await eventually(is_asked)
    (entry,) = await approvals(callboard_world)
    asked = await state_of(callboard_world, f"approval/{entry}")
    await callboard_world.client.actor(f"approval/{entry}").ask({"by": "ann", "hash": asked["hash"]}, type="Grant")
    found = await asking
    assert (found.status, found.text, ran, model.calls) == ("done", "it is paid", ["5"], 2)


async def test_a_budget_ends_the_loop_before_the_call_and_keeps_what_there_is(callboard_world: World) -> None:
    once = Say(
        text="measuring", tool_calls=(call("area", width_m=1, height_m=1),), always=True, usage=Usage(input_tokens=600)
    )
    model, other = Scripted([once]), Scripted([once])

    class Thrifty(Agent, name="thrifty", model=model, tools=[area], budget={"tokens": 2500}):
        """You are thrifty."""

    class Daily(Agent, name="daily", model=other, tools=[area], max_turns=2):
        """You have a daily budget."""

    await callboard_world.start(Thrifty, Daily)
    found = await ask(callboard_world, "thrifty/a", "go")
    assert (found.status, found.text) == ("budget", "measuring")
    assert "run/thrifty/a/" in found.reason
    assert model.calls == found.turns > 0
    budget = callboard_world.client.actor("budget/agent-day/daily")
    await budget.ask({"tokens": 0}, type="SetBudget")
    found = await ask(callboard_world, "daily/a", "go")
    assert (found.status, found.turns, other.calls) == ("budget", 0, 0)


async def test_the_next_model_of_a_list_answers_when_one_fails(callboard_world: World) -> None:
    broken, whole = Scripted([Say(error="model_auth")], name="broken/a"), Scripted([Say(text="hello")], name="whole/b")

    class Backed(Agent, name="backed", model=[broken, whole]):
        """You have a second model."""

    await callboard_world.start(Backed)
    found = await ask(callboard_world, "backed/a", "go")
    assert (found.status, found.text, found.model, broken.calls, whole.calls) == ("done", "hello", "whole/b", 1, 1)


async def test_without_any_model_the_extractive_one_answers_and_the_result_says_so(
    callboard_world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # neither the settings of who runs the tests, nor those of the folder
    monkeypatch.delenv("CALLBOARD_AGENTS__MODEL", raising=False)
    monkeypatch.chdir(tmp_path)

    class Plain(Agent, name="plain"):
        """You summarise."""

    class Poor(Agent, name="poor", budget={"tokens": 1}):
        """You summarise."""

    await callboard_world.start(Plain, Poor)
    found = await ask(callboard_world, "plain/a", "The sea is wide. The sea is blue.")
    assert (found.status, found.model) == ("done", "extractive")
    assert "no model is configured" in found.note
    assert "sea" in found.text
    refused = await ask(callboard_world, "poor/a", "The sea is wide.")
    assert (refused.status, refused.turns, refused.note) == ("budget", 0, "")
