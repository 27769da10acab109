"""Flows with real hosts: agents in a row, side by side, as it turns out; and what is recorded of all that."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from callboard.agents.branch import Branch
from callboard.agents.flow import flow
from callboard.agents.message import AgentResult, Task
from callboard.agents.run import Run
from callboard.agents.run_record import RunResult
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.ref import ActorRef
from tests.support.world import World


class Scribe(Actor, name="scribe"):
    """Answers with its key and what it was told before."""

    @on
    async def work(self, m: Task) -> AgentResult:
        before = ",".join(m.context.get("results", {}))
        return AgentResult(status="done", text=f"{self.key}: {m.text} ({before})")


class Job(Struct):
    text: str


@flow
async def rows(run: Run, job: Job) -> list[str]:
    """One after the other."""
    found = await run.sequence(["scribe/a", "scribe/b", Branch("scribe/c", name="last")], job.text)
    return [each.text for each in found.results.values()]


@flow
async def sides(run: Run, job: Job) -> dict[str, Any]:
    """Side by side."""
    found = await run.parallel([f"scribe/{n}" for n in range(4)], job.text, cap=2)
    return {name: each.text for name, each in found.results.items()}


async def ask(world: World, address: str, job: object, *, timeout_s: float = 20.0) -> RunResult:
    return await ActorRef(world.bus, address).ask(job, timeout_s=timeout_s, returns=RunResult)


async def test_in_a_row_each_agent_gets_the_task_and_what_came_before(callboard_world: World) -> None:
    await callboard_world.start(Scribe, rows)
    found = await ask(callboard_world, "run-rows/1", Job("dig"))
    assert found.status == "done"
    assert found.output == ["a: dig ()", "b: dig (scribe)", "c: dig (scribe,scribe-2)"]


async def test_side_by_side(callboard_world: World) -> None:
    await callboard_world.start(Scribe, sides)
    found = await ask(callboard_world, "run-sides/1", Job("dig"))
    assert found.output == {
        "scribe": "0: dig ()",
        "scribe-2": "1: dig ()",
        "scribe-3": "2: dig ()",
        "scribe-4": "3: dig ()",
    }
