"""Take one protection away, and the checker must see it; a checker that passes on a broken system is worse than none.

Each test stages the fault that the missing protection is there for. The same scene with the protection in place is held
by the tests beside this file, or runs first in the same test.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs

from callboard.runtime import subjects
from callboard.runtime.bus.base import StreamConfig
from tests.chaos.checker import spins
from tests.chaos.gate import Gate
from tests.chaos.handlers import RETRY_GAP_S, Job
from tests.chaos.stage import QUICK, Stage, staged
from tests.chaos.test_zombie import WORK_S, freeze_in_mid_work, runs
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]
LIVELY_S = 60.0
OUTAGE_S = 3.0


def rewritable_ledger(stream: StreamConfig) -> StreamConfig:
    """Drop the write-once rule: a second record of a task is stored beside the first."""
    if stream.name != subjects.LEDGER:
        return stream
    return structs.replace(stream, max_msgs_per_subject=-1, discard_new_per_subject=False)


def short_window(stream: StreamConfig) -> StreamConfig:
    return structs.replace(stream, duplicate_window_s=1.0) if stream.name == subjects.WORK else stream


async def test_control_ack_before_the_effect_loses_tasks(folder: Path) -> None:
    async with staged(folder, breaks=("ack_before_effect",), **QUICK) as stage:
        doomed = await stage.fleet.start()
        await stage.load.submit_all([Job(n=n, sleep_s=5.0) for n in range(8)])
        await eventually(lambda: stage.fleet.count("start") == 8, within_s=LIVELY_S)
        stage.fleet.kill(doomed)
        await stage.fleet.start()
        await stage.settled(within_s=LIVELY_S)
        assert len((await stage.verdict()).lost) == 8


@pytest.mark.slow
async def test_control_without_write_once_a_zombie_doubles_a_record(folder: Path) -> None:
    async with staged(folder, tweak=rewritable_ledger, **QUICK) as stage:
        _, task = await freeze_in_mid_work(stage, Job(n=0, sleep_s=WORK_S))
        await runs(stage, task, count=2, kind="end")
        await stage.settled(within_s=LIVELY_S)
        await eventually(lambda: doubled(stage), within_s=LIVELY_S, what="a double record")


async def doubled(stage: Stage) -> dict[str, int]:
    return (await stage.verdict()).doubled


async def test_control_a_keeper_on_a_blocked_loop_lets_a_second_run_begin(folder: Path) -> None:
    async with staged(folder, is_keeper_apart=False, **QUICK) as stage:
        await stage.fleet.start()
        await stage.load.submit(Job(n=0, how="block", sleep_s=8.0))
        await eventually(lambda: stage.fleet.count("start") == 1, within_s=LIVELY_S)
        await stage.fleet.start(quarantine_s=0.0)
        await eventually(lambda: stage.fleet.count("start") == 2, within_s=LIVELY_S)
        assert (await stage.verdict()).overlaps


async def outlast_an_outage(stage: Stage) -> None:
    """Run a long job, take the server away for longer than a lease lasts, and wait for the job's end."""
    for _ in range(2):
        await stage.fleet.start()
    await stage.load.submit_all([Job(n=n, sleep_s=10.0) for n in range(4)])
    await eventually(lambda: stage.fleet.count("start") == 4, within_s=LIVELY_S)
    stage.server.kill()
    await asyncio.sleep(OUTAGE_S)
    await stage.server.start()
    await stage.settled(within_s=LIVELY_S)


@pytest.mark.slow
async def test_long_work_outlasts_an_outage(folder: Path) -> None:
    async with staged(folder, **QUICK) as stage:
        await outlast_an_outage(stage)
        verdict = await stage.verdict()
        assert (verdict.problems, verdict.starts) == ([], 4)


@pytest.mark.slow
async def test_control_without_the_holds_question_living_work_is_run_twice(folder: Path) -> None:
    async with staged(folder, breaks=("no_holds",), **QUICK) as stage:
        await outlast_an_outage(stage)
        assert (await stage.verdict()).overlaps


async def cut_off_in_mid_work(stage: Stage, gate: Gate, *, until_starts: int) -> None:
    """Cut off the worker that runs a job, together with the server; its own way back takes longer."""
    await gate.open()
    await stage.fleet.start(url=gate.url)
    await stage.load.submit(Job(n=0, sleep_s=10.0))
    await eventually(lambda: stage.fleet.count("start") == 1, within_s=LIVELY_S)
    await stage.fleet.start()
    await gate.shut()
    stage.server.kill()
    await asyncio.sleep(OUTAGE_S)
    await stage.server.start()
    # the neighbour is back, and may be given the task; the holder is not back yet
    await asyncio.sleep(1.0)
    await gate.open()
    await eventually(lambda: stage.fleet.count("end") >= until_starts, within_s=LIVELY_S)
    await stage.settled(within_s=LIVELY_S)


@pytest.mark.slow
async def test_a_holder_that_is_back_later_than_its_neighbour_is_waited_for(folder: Path) -> None:
    async with staged(folder, **QUICK) as stage:
        gate = Gate(stage.server.port)
        try:
            await cut_off_in_mid_work(stage, gate, until_starts=1)
        finally:
            await gate.shut()
        verdict = await stage.verdict()
        assert (verdict.problems, verdict.starts) == ([], 1)


@pytest.mark.slow
async def test_control_without_quarantine_the_neighbour_runs_it_too(folder: Path) -> None:
    async with staged(folder, **(QUICK | {"quarantine_s": 0.0})) as stage:
        gate = Gate(stage.server.port)
        try:
            await cut_off_in_mid_work(stage, gate, until_starts=2)
        finally:
            await gate.shut()
        assert (await stage.verdict()).overlaps


@pytest.mark.parametrize("breaks", [(), ("bare_nak",)])
async def test_a_retry_keeps_its_delay_and_control_a_bare_nak_spins(folder: Path, breaks: tuple[str, ...]) -> None:
    async with staged(folder, breaks=breaks, logs_claims=True) as stage:
        await stage.fleet.start()
        await stage.load.submit(Job(n=0, how="raise", failures=2))
        await stage.settled(within_s=LIVELY_S)
        spun = spins(stage.fleet.events(), gap_s=RETRY_GAP_S / 2)
        assert bool(spun) == bool(breaks), f"{spun} with {breaks}"


@pytest.mark.parametrize("breaks", [(), ("no_pull_after_reconnect",)])
async def test_work_flows_after_a_restart_and_control_a_deaf_worker_gets_nothing(
    folder: Path, breaks: tuple[str, ...]
) -> None:
    async with staged(folder, breaks=breaks) as stage:
        await stage.fleet.start()
        await stage.load.submit(Job(n=0))
        await stage.settled(within_s=LIVELY_S)
        await stage.server.restart()
        await stage.load.submit(Job(n=1))
        if not breaks:
            await stage.settled(within_s=10)
            return
        with pytest.raises(AssertionError, match="empty queue"):
            await stage.settled(within_s=6)
        assert (await stage.evidence()).pending


@pytest.mark.parametrize("breaks", [(), ("no_questions",)])
async def test_a_late_repeat_is_found_and_control_the_message_id_alone_doubles(
    folder: Path, breaks: tuple[str, ...]
) -> None:
    def tweak(stream: StreamConfig) -> StreamConfig:
        return short_window(rewritable_ledger(stream))

    async with staged(folder, tweak=tweak, breaks=breaks) as stage:
        await stage.fleet.start()
        first = await stage.load.submit(Job(n=0), task_id="chaos/same")
        await stage.settled(within_s=LIVELY_S)

        async def stored_again() -> bool:
            info = await stage.bus.stream_info(subjects.WORK)
            before = info.last_seq if info is not None else 0
            await stage.load.submit(Job(n=0), task_id=first)
            info = await stage.bus.stream_info(subjects.WORK)
            return info is not None and info.last_seq > before

        await eventually(stored_again, within_s=LIVELY_S, what="the window's end", every_s=0.2)
        await stage.settled(within_s=LIVELY_S)
        verdict = await stage.verdict()
        assert bool(verdict.doubled) == bool(breaks)
        assert verdict.starts == (2 if breaks else 1)


@pytest.mark.slow
async def test_control_a_lapsed_lease_that_still_answers_buries_a_running_task(folder: Path) -> None:
    async with staged(folder, breaks=("lapsed_leases_still_answer",), **QUICK) as stage:
        _, task = await freeze_in_mid_work(stage, Job(n=0, how="fragile", is_final=True, sleep_s=WORK_S))
        await runs(stage, task, count=1, kind="end")
        await stage.settled(within_s=LIVELY_S)
        assert (await stage.verdict()).buried_alive == {task}
