"""A server that is killed forgets its last deliveries and makes them again, as if for the first time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.handlers import Job
from tests.chaos.stage import QUICK, Stage, staged
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(90)]
JOBS = 40
ROUNDS = 4
LIVELY_S = 60.0


async def kill_the_server_at_the_first_start(stage: Stage) -> None:
    """Hand out a batch, and kill the server before it has written down that it did."""
    before = stage.fleet.count("start")
    await stage.load.submit_at_once([Job(n=n, sleep_s=3.0) for n in range(JOBS)])
    await eventually(lambda: stage.fleet.count("start") > before, within_s=LIVELY_S)
    await stage.server.restart()
    await stage.settled(within_s=LIVELY_S)


async def test_what_a_killed_server_hands_out_again_is_not_run_beside_the_first_run(folder: Path) -> None:
    async with staged(folder, concurrency=2 * JOBS, **QUICK) as stage:
        for _ in range(2):
            await stage.fleet.start()
        await kill_the_server_at_the_first_start(stage)
        verdict = await stage.verdict()
        assert (verdict.problems, verdict.starts) == ([], JOBS)


async def test_a_worker_that_begins_with_the_server_runs_nothing_beside_the_first_run(folder: Path) -> None:
    async with staged(folder, concurrency=2 * JOBS, **QUICK) as stage:
        await stage.fleet.start()
        for _ in range(2):
            before = stage.fleet.count("start")
            await stage.load.submit_at_once([Job(n=n, sleep_s=3.0) for n in range(JOBS)])
            await eventually(lambda: stage.fleet.count("start") > before, within_s=LIVELY_S)  # noqa: B023 - awaited here
            await asyncio.gather(stage.server.restart(), stage.fleet.start())
            await stage.settled(within_s=LIVELY_S)
        verdict = await stage.verdict()
        assert (verdict.problems, verdict.starts) == ([], 2 * JOBS)


async def test_control_without_doubt_it_is_run_twice(folder: Path) -> None:
    async with staged(folder, concurrency=2 * JOBS, breaks=("no_doubt",), **QUICK) as stage:
        for _ in range(2):
            await stage.fleet.start()
        # whether the server forgets depends on when exactly it dies
        for _ in range(ROUNDS):
            await kill_the_server_at_the_first_start(stage)
            if (await stage.verdict()).overlaps:
                return
        pytest.fail("the server was never caught before it wrote down its deliveries")
