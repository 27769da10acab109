"""Flows of real agents: their words are watched, their price is the run's, its budget is theirs, and so is its end."""

from __future__ import annotations

from decimal import Decimal

import pytest
from msgspec import Struct

from callboard.agents import runs
from callboard.agents.agent import Agent
from callboard.agents.errors import AgentFailedError
from callboard.agents.flow import flow
from callboard.agents.llm.scope import SetBudget
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.llm.tokens import Chunk
from callboard.agents.message import Task
from callboard.agents.run import Run
from callboard.agents.watching import watch
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import ActorStoppedError, AskFailedError
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.world import World


class Job(Struct):
    text: str


WORDS = "a short but honest answer"
MODEL = Scripted(
    [
        Say(when="hold", text="late", delay_s=600.0, always=True),
        Say(text=WORDS, always=True),
    ],
    usd_per_token=Decimal("0.001"),
)


class Thinker(Agent, name="thinker", model=MODEL):
    """Answer."""


@flow
async def thinking(run: Run, job: Job) -> list[str]:
    """Two thinkers at a time."""
    found = await run.parallel(["thinker/", "thinker/"], job.text)
    return [each.text for each in found.results.values()]


async def test_the_price_of_its_agents_is_the_runs_and_their_words_are_watched(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Thinker, thinking)
    name = await runs.start(world.client, thinking, Job("go"), id="1")
    chunks = [news async for news in watch(world.bus, name) if isinstance(news, Chunk)]
    texts: dict[str, str] = {}
    for chunk in chunks:
        texts[chunk.step] = texts.get(chunk.step, "") + chunk.text
    assert list(texts.values()) == [WORDS, WORDS]
    view = await runs.show(world.bus, name)
    assert (view.status, view.output) == ("done", [WORDS, WORDS])
    assert [part.agent for part in view.agents] == ["thinker/1/thinker", "thinker/1/thinker-2"]
    assert view.usage.tokens > 0
    assert view.cost_usd == Decimal("0.001") * view.usage.tokens


async def test_a_budget_of_the_run_holds_for_its_agents(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Thinker, thinking)
    _ = await world.client.actor("budget/run/thinking/2").ask(SetBudget(tokens=0), timeout_s=10)
    name = await runs.start(world.client, thinking, Job("go"), id="2")
    view = await runs.wait(world.bus, name, timeout_s=20)
    assert view is not None
    assert (view.status, view.code) == ("failed", "flow")
    assert "budget" in view.error


async def test_a_cancelled_run_ends_the_calls_of_its_models(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Thinker, thinking)
    before = len(MODEL.prompts)
    name = await runs.start(world.client, thinking, Job("hold"), id="3")
    await eventually(lambda: len(MODEL.prompts) == before + 2, within_s=15, what="both models are asked")
    await runs.cancel(world.client, name, reason="enough")
    view = await runs.wait(world.bus, name, timeout_s=20)
    assert view is not None
    assert view.status == "cancelled"

    async def stopped() -> bool:
        _ = await world.client.actor("thinker/3/thinker").ask({"text": "again"}, type="Task", timeout_s=5)
        return True

    await eventually(stopped, within_s=15, what="the agent is free again")


class Sick(Actor, name="sick", capabilities=["nurse"], retry=RetryPolicy(attempts=1), poison_limit=1):
    @on
    async def nurse(self, m: Task) -> str:
        raise ValueError(m.text)


class Sound(Actor, name="sound", capabilities=["nurse"]):
    @on
    async def nurse(self, m: Task) -> str:
        return f"{m.text}, well"


@flow
async def nursing(run: Run, job: Job) -> list[str]:
    """One that has failed is told of at once; by the capability another one works."""
    try:
        told = (await run.agent("sick/a", job.text)).text
    except AgentFailedError as error:
        told = str(error)
    return [told, (await run.agent("nurse", job.text)).text]


async def test_a_failed_agent_holds_no_run_up_and_another_one_does_its_work(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Sick)
    _ = await world.start(Sound, nursing)
    sick = world.client.actor("sick/a")
    with pytest.raises(AskFailedError):
        await sick.ask(Task("ill"), timeout_s=20)
    with pytest.raises(ActorStoppedError, match="`callboard agents restart sick/a`"):
        await sick.ask(Task("ill"), timeout_s=20)
    assert await world.client.actor("sound/b").ask(Task("ann"), timeout_s=20) == "ann, well"
    name = await runs.start(world.client, nursing, Job("bob"), id="1")
    view = await runs.wait(world.bus, name, timeout_s=30)
    assert view is not None
    assert view.status == "done", view.error
    told, done = view.output
    assert "actor_stopped: sick/a is failed" in told
    assert done == "bob, well"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


class Newcomer(Agent, name="newcomer", model=MODEL, capabilities=["greet"]):
    """Answer."""


@flow
async def greeting(run: Run, job: Job) -> str:
    """Nobody has asked a newcomer before."""
    return (await run.agent("greet", job.text)).text


async def test_an_agent_that_nobody_has_asked_before_works_for_the_run(callboard_world: World) -> None:
    world = callboard_world
    _ = await world.start(Newcomer, greeting)
    name = await runs.start(world.client, greeting, Job("go"), id="3")
    view = await runs.wait(world.bus, name, timeout_s=20)
    assert view is not None
    assert (view.status, view.output) == ("done", WORDS)
    assert [part.agent.partition("/")[0] for part in view.agents] == ["newcomer"]
    assert view.cost_usd == Decimal("0.001") * view.usage.tokens
