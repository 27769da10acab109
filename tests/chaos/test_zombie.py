"""A worker that was stopped for longer than its leases last is a zombie when it goes on: it must do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.fleet import WorkerProcess
from tests.chaos.handlers import Job
from tests.chaos.journal import Kind
from tests.chaos.stage import QUICK, Stage, staged
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]
# Long enough that the second run is under way when the zombie wakes, and when a third worker might be asked.
WORK_S = 4.0


async def freeze_in_mid_work(stage: Stage, job: Job) -> tuple[WorkerProcess, str]:
    """Submit a job to one worker, freeze it in mid-work, wait until another runs it, and let the zombie go on."""
    first = await stage.fleet.start()
    task = await stage.load.submit(job)
    await runs(stage, task, count=1)
    for _ in range(2):
        await stage.fleet.start(is_awaited=False)
    for worker in stage.fleet.workers[1:]:
        await stage.fleet.ready(worker)
    stage.fleet.freeze(first)
    await runs(stage, task, count=2)
    stage.fleet.thaw(first)
    return first, task


async def runs(stage: Stage, task: str, *, count: int, kind: Kind = "start", within_s: float = 15.0) -> None:
    await eventually(
        lambda: sum(event.task == task and event.kind == kind for event in stage.fleet.events()) >= count,
        within_s=within_s,
        what=f"{kind} number {count} of {task}",
    )


@pytest.mark.slow
async def test_a_zombie_that_finishes_leaves_one_record(folder: Path) -> None:
    async with staged(folder, **QUICK) as stage:
        _, task = await freeze_in_mid_work(stage, Job(n=0, sleep_s=WORK_S))
        await stage.settled(within_s=30)
        await runs(stage, task, count=2, kind="end")
        verdict = await stage.verdict()
        assert verdict.problems == []
        assert verdict.starts == 2


@pytest.mark.slow
async def test_a_zombie_whose_run_fails_does_not_start_a_third_one(folder: Path) -> None:
    async with staged(folder, **QUICK) as stage:
        _, task = await freeze_in_mid_work(stage, Job(n=0, how="fragile", sleep_s=WORK_S))
        await runs(stage, task, count=1, kind="fail")
        await stage.settled(within_s=30)
        verdict = await stage.verdict()
        assert verdict.problems == []
        assert verdict.starts == 2


async def test_a_zombie_that_gives_up_does_not_bury_a_task_another_worker_runs(folder: Path) -> None:
    async with staged(folder, **QUICK) as stage:
        _, task = await freeze_in_mid_work(stage, Job(n=0, how="fragile", is_final=True, sleep_s=WORK_S))
        await runs(stage, task, count=1, kind="fail")
        await stage.settled(within_s=30)
        evidence = await stage.evidence()
        assert evidence.statuses == {task: "completed"}
        assert evidence.dead == frozenset()
