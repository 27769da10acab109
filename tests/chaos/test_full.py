"""A full queue refuses and loses nothing; a full ledger makes finished work wait, not run again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import structs

from callboard.runtime import subjects
from callboard.runtime.bus.base import StreamConfig
from tests.chaos.handlers import Job
from tests.chaos.stage import Stage, staged
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]
LIMIT = 50
JOBS = 500
LIVELY_S = 60.0


def small_queue(stream: StreamConfig) -> StreamConfig:
    return structs.replace(stream, max_msgs=LIMIT) if stream.name == subjects.WORK else stream


def small_ledger(stream: StreamConfig) -> StreamConfig:
    return structs.replace(stream, max_bytes=6000) if stream.name == subjects.LEDGER else stream


async def test_a_full_queue_refuses_and_loses_nothing_while_the_server_is_killed(folder: Path) -> None:
    async with staged(folder, tweak=small_queue, concurrency=4) as stage:
        for _ in range(2):
            await stage.fleet.start()
        load = asyncio.create_task(stage.load.submit_all([Job(n=n, sleep_s=0.05) for n in range(JOBS)]))
        await eventually(lambda: stage.fleet.count("end") >= JOBS // 4, within_s=LIVELY_S)
        refused_before = stage.load.refusals
        await stage.server.restart()
        await asyncio.wait_for(load, LIVELY_S)
        await stage.settled(within_s=LIVELY_S)
        verdict = await stage.verdict()
        print(f"{stage.load.refusals} refusals, {verdict.reruns} re-runs")  # noqa: T201 - the account of the test
        assert verdict.problems == []
        assert len(stage.load.acked) == JOBS
        assert refused_before > 0


async def grow(stage: Stage, stream: str, max_bytes: int) -> None:
    info = await stage.bus.stream_info(stream)
    assert info is not None
    await stage.bus.update_stream(structs.replace(info.config, max_bytes=max_bytes))


@pytest.mark.slow
async def test_finished_work_waits_while_the_ledger_is_full(folder: Path) -> None:
    async with staged(folder, tweak=small_ledger, concurrency=4) as stage:
        await stage.fleet.start()
        await stage.load.submit_all([Job(n=n, sleep_s=0.02) for n in range(60)])
        # longer than a lease, so that what is finished would run again if it were let go of
        await ledger_is_stuck(stage)
        stuck_at = len((await stage.evidence()).effects)
        assert stuck_at < 60
        await grow(stage, subjects.LEDGER, 1 << 20)
        await stage.settled(within_s=LIVELY_S)
        verdict = await stage.verdict()
        assert verdict.problems == []
        assert verdict.reruns == 0
        assert len((await stage.evidence()).effects) == 60


async def ledger_is_stuck(stage: Stage) -> None:
    """Wait until nothing has moved for longer than ``ack_wait``."""
    seen, since_s = -1, 0.0
    loop = asyncio.get_running_loop()

    def look() -> bool:
        nonlocal seen, since_s
        count = stage.fleet.count("end")
        if count != seen:
            seen, since_s = count, loop.time()
        return loop.time() - since_s > 6.0

    await eventually(look, within_s=LIVELY_S, what="a standstill", every_s=0.2)


@pytest.mark.slow
async def test_a_full_store_repeats_nothing_and_loses_nothing(folder: Path) -> None:
    """The server's whole store is full: neither tasks nor records are taken until there is room again."""
    async with staged(folder, tweak=unreserved, max_file_bytes=900_000, concurrency=4) as stage:
        await stage.fleet.start()
        await stage.load.submit_all([Job(n=n, sleep_s=3.0) for n in range(4)])
        await eventually(lambda: stage.fleet.count("start") == 4, within_s=LIVELY_S)
        filler = await fill(stage)
        await ledger_is_stuck(stage)
        assert stage.fleet.count("end") == 4
        assert (await stage.evidence()).effects == {}
        await stage.bus.delete_stream(filler)
        await stage.settled(within_s=LIVELY_S)
        verdict = await stage.verdict()
        assert (verdict.problems, verdict.reruns) == ([], 0)


def unreserved(stream: StreamConfig) -> StreamConfig:
    """Let no stream reserve room, so that the store as a whole is what fills up."""
    return structs.replace(stream, max_bytes=-1)


async def fill(stage: Stage) -> str:
    from callboard.runtime.bus.base import Write
    from callboard.runtime.errors import BusError

    name = "FILLER"
    await stage.bus.create_stream(StreamConfig(name=name, subjects=("filler",), discard="new"))
    size = 100_000
    while size:
        try:
            await stage.bus.store(Write("filler", b"x" * size))
        except BusError:
            size //= 2
    return name
