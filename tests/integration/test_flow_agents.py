"""Flows of real agents: their words are watched, their price is the run's, its budget is theirs, and so is its end."""

from __future__ import annotations

from decimal import Decimal

import pytest
from msgspec import Struct

from callboard.agents import runs
from callboard.agents.agent import Agent
from callboard.agents.flow import flow
from callboard.agents.llm.scope import SetBudget
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.llm.tokens import Chunk
from callboard.agents.run import Run
from callboard.agents.watching import watch
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
