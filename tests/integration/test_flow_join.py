"""Joins that last: a branch and the joiner are killed, and the run ends, partial, with what there is."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

from msgspec import Struct

from callboard.agents import runs
from callboard.agents.branch import Branch
from callboard.agents.flow import flow
from callboard.agents.message import AgentResult, Task
from callboard.agents.run import Run
from callboard.agents.run_record import RunResult
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.ref import ActorRef
from tests.support.eventually import eventually
from tests.support.world import World


class Job(Struct):
    text: str
    deadline_s: float = 3.0
    quorum: int | None = None


class Steady(Actor, name="steady"):
    """Works when it is told that it may."""

    calls: ClassVar[Counter[str]] = Counter()
    go: ClassVar[asyncio.Event]

    @on
    async def work(self, m: Task) -> AgentResult:
        Steady.calls[self.key] += 1
        await Steady.go.wait()
        return AgentResult(status="done", text=f"{self.key} {m.text}")


class Silent(Actor, name="silent"):
    """Never answers; its host is killed."""

    ended: ClassVar[list[str]] = []

    @on
    async def work(self, _: Task) -> AgentResult:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            Silent.ended.append(self.key)
            raise
        return AgentResult(status="done")


@flow
async def gathering(run: Run, job: Job) -> dict[str, Any]:
    """Two that work and one that is lost."""
    branches = [Branch("steady/a", name="a"), Branch("steady/b", name="b"), Branch("silent/c", name="c")]
    found = await run.parallel(branches, job.text, deadline_s=job.deadline_s, quorum=job.quorum)
    return {"done": list(found.results), "missing": found.missing}


def reset() -> None:
    Steady.calls.clear()
    Steady.go = asyncio.Event()
    Silent.ended.clear()


async def ask(world: World, address: str, job: object, *, timeout_s: float = 25.0) -> RunResult:
    return await ActorRef(world.bus, address).ask(job, timeout_s=timeout_s, idempotency_key="it", returns=RunResult)


async def test_branch_and_joiner_killed_and_the_run_ends_partial(callboard_world: World) -> None:
    reset()
    world = callboard_world
    _ = await world.start(Steady)
    lost = await world.start(Silent)
    joiner = await world.start(gathering)
    asked = asyncio.create_task(ask(world, "run-gathering/1", Job("dig", deadline_s=8.0)))
    await eventually(lambda: set(Steady.calls) == {"a", "b"}, within_s=10, what="the branches begin")
    await lost.kill()
    await joiner.kill()
    _ = await world.start(gathering)
    Steady.go.set()
    found = await asked
    assert found.status == "partial"
    assert found.output == {"done": ["a", "b"], "missing": ["c"]}
    assert found.missing == ["c"]
    assert Steady.calls == {"a": 1, "b": 1}, "an agent that was asked was asked anew"
    view = await runs.show(world.bus, "gathering/1")
    assert [(part.name, part.status) for part in view.agents] == [("a", "done"), ("b", "done"), ("c", "lost")]


async def test_a_quorum_out_of_reach_fails_the_run(callboard_world: World) -> None:
    reset()
    Steady.go.set()
    world = callboard_world
    _ = await world.start(Steady, Silent, gathering)
    found = await ask(world, "run-gathering/2", Job("dig", deadline_s=1.0, quorum=3))
    assert found.status == "failed"
    assert found.code == "flow"
    assert "a quorum of 3 is out of reach" in found.error
    await eventually(lambda: Silent.ended == ["c"], within_s=10, what="the lost branch's turn ends")


async def test_who_is_lost_is_ended(callboard_world: World) -> None:
    reset()
    Steady.go.set()
    world = callboard_world
    _ = await world.start(Steady, Silent, gathering)
    found = await ask(world, "run-gathering/3", Job("dig", deadline_s=1.0))
    assert found.status == "partial"
    await eventually(lambda: Silent.ended == ["c"], within_s=10, what="the lost branch's turn ends")


@flow
async def rushing(run: Run, job: Job) -> str:
    """The first one counts."""
    found = await run.parallel(["silent/x", "steady/y", "silent/z"], job.text, join="first")
    return str(found.value.text)


async def test_the_first_success_ends_the_others(callboard_world: World) -> None:
    reset()
    Steady.go.set()
    world = callboard_world
    _ = await world.start(Steady, Silent, rushing)
    found = await ask(world, "run-rushing/1", Job("dig"))
    assert (found.status, found.output) == ("done", "y dig")
    await eventually(lambda: sorted(Silent.ended) == ["x", "z"], within_s=10, what="the others end")


class Counted(Actor, name="counted"):
    """Counts how many work at a time."""

    now: ClassVar[int] = 0
    most: ClassVar[int] = 0

    @on
    async def work(self, m: Task) -> AgentResult:
        Counted.now += 1
        Counted.most = max(Counted.most, Counted.now)
        for _ in range(20):
            await asyncio.sleep(0)
        Counted.now -= 1
        return AgentResult(status="done", text="even" if int(self.key) % 3 else "odd")


@flow
async def voting(run: Run, job: Job) -> list[Any]:
    """Ten agents, three at a time."""
    names = [f"counted/{n}" for n in range(10)]
    found = await run.parallel(names, job.text, join="vote", cap=3)
    return [found.value.text, sorted(found.votes.values())]


async def test_ten_agents_three_at_a_time(callboard_world: World) -> None:
    Counted.now = Counted.most = 0
    _ = await callboard_world.start(Counted, voting)
    found = await ask(callboard_world, "run-voting/1", Job("dig"))
    assert (found.status, found.output) == ("done", ["even", [4, 6]])
    assert 0 < Counted.most <= 3


@flow
async def reducing(run: Run, job: Job) -> int:
    """A function makes one of many."""
    names = [f"counted/{n}" for n in range(4)]
    found = await run.parallel(names, job.text, join="reduce", into=len)
    assert isinstance(found.value, int)
    return found.value


async def test_reduce(callboard_world: World) -> None:
    Counted.now = Counted.most = 0
    _ = await callboard_world.start(Counted, reducing)
    found = await ask(callboard_world, "run-reducing/1", Job("dig"))
    assert (found.status, found.output) == ("done", 4)
