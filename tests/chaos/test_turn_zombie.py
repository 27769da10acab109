"""A host that was stopped for longer than a death takes finds its actors with others, and must leave them there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from callboard.runtime.actor.ref import ActorRef
from tests.chaos.fleet import WorkerProcess
from tests.chaos.stage import Stage, staged
from tests.chaos.troupe import LONG, SINK, Long, task_of
from tests.chaos.turns import heard, judge
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]
KEYS = 40
WITHIN_S = 60.0


async def post(stage: Stage, sent: dict[str, list[int]], *, steps: int, step_s: float) -> list[int]:
    """Send each actor one more mail; return the numbers."""
    first = sum(len(numbers) for numbers in sent.values())
    for offset, (key, numbers) in enumerate(sent.items()):
        mail = Long(n=first + offset, order=len(numbers), steps=steps, step_s=step_s)
        _ = await ActorRef(stage.bus, f"{LONG}/{key}").tell(mail)
        numbers.append(mail.n)
    return list(range(first, first + len(sent)))


async def begun(stage: Stage, numbers: list[int], *, kind: str = "start") -> None:
    wanted = {task_of(n) for n in numbers}
    await eventually(
        lambda: wanted <= {event.task for event in stage.fleet.events() if event.kind == kind},
        within_s=WITHIN_S,
        what=f"{kind} of {len(wanted)} turns",
        every_s=0.05,
    )


async def all_heard(stage: Stage, sent: dict[str, list[int]]) -> None:
    async def is_done() -> bool:
        outputs = await heard(stage.bus, SINK)
        return all(len(outputs.get(key, [])) >= len(numbers) for key, numbers in sent.items())

    await eventually(is_done, within_s=WITHIN_S, what="all outputs", every_s=0.2)


def idle_host_of(stage: Stage) -> WorkerProcess:
    """Return a worker that has run something."""
    ran = {event.pid for event in stage.fleet.events() if event.kind == "start"}
    return next(worker for worker in stage.fleet.alive if worker.pid in ran)


async def test_mail_that_came_while_a_host_was_stopped_is_not_begun_by_it_too(folder: Path) -> None:
    async with staged(folder, has_actors=True) as stage:
        await asyncio.gather(*(stage.fleet.start() for _ in range(2)))
        sent: dict[str, list[int]] = {f"k{number}": [] for number in range(KEYS)}
        await begun(stage, await post(stage, sent, steps=1, step_s=0.05), kind="end")
        await all_heard(stage, sent)
        stopped = idle_host_of(stage)
        stage.fleet.freeze(stopped)
        # it lies in the stopped one's socket as well
        numbers = await post(stage, sent, steps=5, step_s=1.0)
        await begun(stage, numbers)
        stage.fleet.thaw(stopped)
        await all_heard(stage, sent)
        verdict = await judge(stage.bus, stage.fleet, sent)
        assert verdict.problems == [], str(verdict)
