"""A worker dies at a chosen line: the task runs again in seconds, is recorded once, and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from callboard.runtime import crash
from tests.chaos.checker import by_task, runs_of
from tests.chaos.handlers import Job
from tests.chaos.stage import QUICK, Stage, staged
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]
JOBS = 40
LIVELY_S = 60.0
# The last two are met by turns of actors only.
POINTS = [point for point in get_args(crash.Point) if point not in {"before-commit", "after-commit"}]
# Before the record, after it, and while stopping; the others run with `make test-all`.
OFTEN = {"after-effect", "after-result-puback", "in-drain"}


def at_the_right_moment(point: str) -> str:
    """Let some work pass first, so that the point is met in mid-stream."""
    return point if point in {"in-drain", "mid-batch"} else f"{point}:5"


async def dead(stage: Stage) -> None:
    worker = stage.fleet.workers[0]
    await eventually(lambda: not worker.is_alive, within_s=LIVELY_S, what="the crash")
    assert worker.process.returncode == crash.STATUS


@pytest.mark.parametrize(
    "point", [point if point in OFTEN else pytest.param(point, marks=pytest.mark.slow) for point in POINTS]
)
async def test_a_crash_loses_and_doubles_nothing(folder: Path, point: str) -> None:
    async with staged(folder, concurrency=8, **QUICK) as stage:
        doomed = await stage.fleet.start(crash_at=at_the_right_moment(point))
        await stage.load.submit_all([Job(n=n, sleep_s=0.3 if point == "in-drain" else 0.02) for n in range(JOBS)])
        if point == "in-drain":
            await eventually(lambda: stage.fleet.count("start") >= 8, within_s=LIVELY_S)
            os.kill(doomed.pid, 15)
        await dead(stage)
        await stage.fleet.start()
        await stage.settled(within_s=LIVELY_S)
        evidence = await stage.evidence()
        verdict = await stage.verdict()
        print(f"{point}: {verdict.starts} starts, {verdict.reruns} re-runs")  # noqa: T201 - the account of the test
        assert verdict.problems == []
        assert set(evidence.statuses.values()) == {"completed"}
        assert len(evidence.effects) == JOBS
        # killed before anything ran, or when all that ran may have been recorded, it proves by coming to an end at all
        assert verdict.reruns or point in {"claimed", "mid-batch"}


async def test_a_task_of_a_killed_worker_runs_again_in_seconds(folder: Path) -> None:
    async with staged(folder) as stage:
        first = await stage.fleet.start()
        task = await stage.load.submit(Job(n=0, sleep_s=60.0))
        await eventually(lambda: stage.fleet.count("start") == 1, within_s=LIVELY_S)
        await stage.fleet.start()
        killed_s = stage.fleet.kill(first)
        await eventually(lambda: stage.fleet.count("start") == 2, within_s=LIVELY_S)
        runs = by_task(runs_of(stage.fleet.events(), stage.fleet.deaths))[task]
        print(f"taken over {runs[1].start_s - killed_s:.2f} s after the kill")  # noqa: T201 - the measure


@pytest.mark.parametrize("blocked_s", [6.0, pytest.param(20.0, marks=pytest.mark.slow)])
async def test_a_handler_that_blocks_the_loop_runs_once(folder: Path, blocked_s: float) -> None:
    async with staged(folder) as stage:
        await stage.fleet.start()
        await stage.load.submit(Job(n=0, how="block", sleep_s=blocked_s))
        await eventually(lambda: stage.fleet.count("start") == 1, within_s=LIVELY_S)
        await stage.fleet.start()
        await stage.settled(within_s=blocked_s + LIVELY_S)
        verdict = await stage.verdict()
        assert (verdict.problems, verdict.starts) == ([], 1)
