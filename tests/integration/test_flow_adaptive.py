"""Who is next is decided by what came before: by a rule, by predicates, by a function, by an agent."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Struct

from callboard.agents.branch import Branch, Choose, Trail
from callboard.agents.flow import flow
from callboard.agents.message import AgentResult, Task
from callboard.agents.run import Run
from callboard.agents.run_record import RunResult
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.ref import ActorRef
from tests.support.world import World


class Job(Struct):
    how: str
    limit: int = 10


class Doer(Actor, name="doer"):
    """Answers with how much was done before."""

    @on
    async def work(self, m: Task) -> AgentResult:
        if self.key == "boss":
            done = list(m.context["results"])
            return AgentResult(status="done", output={"next": "doer/write" if len(done) < 2 else "end"})
        if self.key == "mad":
            return AgentResult(status="done", text="doer/nobody")
        return AgentResult(status="done", text=f"{self.key} after {len(m.context['results'])}")


async def choose(trail: Trail) -> str | None:
    return None if len(trail.steps) == 2 else f"doer/{'plan' if trail.last is None else 'write'}"


WAYS: dict[str, Choose] = {
    "rule": {"": "doer/plan", "doer/plan": "doer/write", "doer/write": None},
    "predicate": [
        (lambda trail: trail.last is None, "doer/plan"),
        (lambda trail: "plan" in (trail.last.text if trail.last else ""), "doer/write"),
        (lambda trail: bool(trail.steps), None),
    ],
    "function": choose,
    "agent": Branch("doer/boss"),
    "mad": Branch("doer/mad"),
    "circle": {"": "doer/plan", "doer/plan": "doer/write", "doer/write": "doer/plan"},
    "nobody": {},
}


@flow
async def adaptive(run: Run, job: Job) -> list[str]:
    """One way or another."""
    among = ["doer/plan", "doer/write"]
    found = await run.adaptive("make it", WAYS[job.how], limit=job.limit, among=among)
    return [each.text for each in found.results.values()]


async def ask(world: World, job: Job) -> RunResult:
    return await ActorRef(world.bus, f"run-adaptive/{job.how}").ask(job, timeout_s=20, returns=RunResult)


@pytest.mark.parametrize(
    ("how", "output"),
    [
        ("rule", ["plan after 0", "write after 1"]),
        ("predicate", ["plan after 0", "write after 1"]),
        ("function", ["plan after 0", "write after 1"]),
        ("agent", ["write after 0", "write after 1"]),
        ("nobody", []),
    ],
)
async def test_who_is_next(callboard_world: World, how: str, output: list[Any]) -> None:
    await callboard_world.start(Doer, adaptive)
    found = await ask(callboard_world, Job(how))
    assert (found.status, found.output) == ("done", output), found.error


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (Job("circle", 4), "4 agents were asked and 'doer' would be next"),
        (Job("mad"), "was chosen: take one of doer/plan, doer/write, or end"),
        (Job("rule", 0), "limit is 0: take 1 or more agents"),
    ],
)
async def test_a_choice_that_leads_nowhere_fails_in_words(callboard_world: World, job: Job, text: str) -> None:
    await callboard_world.start(Doer, adaptive)
    found = await ask(callboard_world, job)
    assert found.status == "failed"
    assert text in found.error
