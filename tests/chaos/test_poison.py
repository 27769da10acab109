"""Tasks that harm their worker, and messages that no client of ours would send."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest

from callboard.runtime import subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import BusError, PayloadTooLargeError
from tests.chaos.handlers import Job
from tests.chaos.stage import Stage, staged
from tests.support.eventually import eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]
LIVELY_S = 60.0
NEIGHBOURS = 24
CRASH_LIMIT = 2


async def keep_alive(stage: Stage, *, workers: int) -> None:
    """Replace workers that died, as a supervisor does, until the queue is empty."""

    async def settled_or_replaced() -> bool:
        while len(stage.fleet.alive) < workers:
            await stage.fleet.start(is_awaited=False)
        return await stage.depth() == 0

    await eventually(settled_or_replaced, within_s=60.0, what="an empty queue", every_s=0.2)


@pytest.mark.parametrize("how", ["exit", pytest.param("segfault", marks=pytest.mark.slow)])
async def test_a_task_that_kills_its_worker_is_buried_and_its_neighbours_are_not(folder: Path, how: str) -> None:
    async with staged(folder, concurrency=4, crash_limit=CRASH_LIMIT) as stage:
        await stage.fleet.start()
        poison = await stage.load.submit(Job(n=0, how=how))  # type: ignore[arg-type]
        await stage.load.submit_all([Job(n=n, sleep_s=0.3) for n in range(1, NEIGHBOURS + 1)])
        await keep_alive(stage, workers=1)
        evidence = await stage.evidence()
        assert evidence.dead == {poison}
        assert (await stage.dead())[poison].cause.code == "crash_limit"
        assert evidence.statuses.pop(poison) == "failed"  # type: ignore[attr-defined]
        assert set(evidence.statuses.values()) == {"completed"}
        assert len(evidence.statuses) == NEIGHBOURS
        assert (await stage.verdict()).problems == []


@pytest.mark.parametrize(
    ("how", "code"),
    [("recurse", "handler"), ("unencodable", "encode"), ("sys_exit", "handler_exit"), ("memory", "handler")],
)
async def test_a_handler_that_misbehaves_leaves_a_dead_letter_and_a_living_worker(
    folder: Path, how: str, code: str
) -> None:
    async with staged(folder, concurrency=4, retry_gap_s=0.05) as stage:
        worker = await stage.fleet.start()
        poison = await stage.load.submit(Job(n=0, how=how))  # type: ignore[arg-type]
        await stage.load.submit_all([Job(n=n, sleep_s=0.05) for n in range(1, 9)])
        await stage.settled(within_s=LIVELY_S)
        letters = await stage.dead()
        assert {task: letter.cause.code for task, letter in letters.items()} == {poison: code}
        assert worker.is_alive
        # "buried alive" does not count here: the handler returned what cannot be encoded
        verdict = await stage.verdict()
        assert (verdict.lost, verdict.doubled, verdict.overlaps) == (frozenset(), {}, [])


MALFORMED: dict[str, tuple[bytes, dict[str, str] | None]] = {
    "no JSON": (b"{", None),
    "nothing": (b"", None),
    "another type": (b'{"n": "seven"}', None),
    "deep JSON": (b"[" * 100_000, None),
    "bytes": (b"\xff\xfe\x00", None),
    "an unknown content type": (b'{"n": 1}', {header.CONTENT_TYPE: "text/klingon"}),
    "no deadline": (b'{"n": 1}', {header.DEADLINE: "soon"}),
    "a deadline without an offset": (b'{"n": 1}', {header.DEADLINE: "2026-01-01T00:00:00"}),
    "a claim check of nothing": (
        b"",
        {header.CLAIM_CHECK: f"nowhere {hashlib.sha256(b'x').hexdigest()} 1"},
    ),
    "a broken claim check": (b"", {header.CLAIM_CHECK: "what?"}),
}
# Odd, and yet the task can be run.
HARMLESS: dict[str, tuple[bytes, dict[str, str]]] = {
    "no attempt": (b'{"n": 1}', {header.ATTEMPT: "many"}),
    "a negative attempt": (b'{"n": 1}', {header.ATTEMPT: "-3"}),
    "a huge attempt": (b'{"n": 1}', {header.ATTEMPT: "9" * 40}),
    "a strange id": (b'{"n": 1}', {header.MSG_ID: "a b.*>/\u00e9%"}),
    "a strange reply": (b'{"n": 1}', {header.REPLY_TO: "not a..subject"}),
    "a passed deadline": (b'{"n": 1}', {header.DEADLINE: "2020-01-01T00:00:00Z"}),
}


async def test_malformed_submissions_are_buried_with_their_cause_and_harm_nobody(folder: Path) -> None:
    async with staged(folder, concurrency=4, retry_gap_s=0.05) as stage:
        worker = await stage.fleet.start()
        bad = {}
        for name, (body, headers) in MALFORMED.items():
            ack = await stage.bus.store(Write(subjects.task("chaos"), body, headers))
            bad[f"~{ack.seq}"] = name
        good = [await stage.bus.store(Write(subjects.task("chaos"), *both)) for both in HARMLESS.values()]
        with pytest.raises(PayloadTooLargeError):
            await stage.bus.store(Write(subjects.task("chaos"), b"x" * ((1 << 20) + 1)))
        await stage.settled(within_s=LIVELY_S)
        evidence = await stage.evidence()
        assert {bad.get(task, task) for task in evidence.dead} == set(MALFORMED)
        assert len(evidence.effects) == len(bad) + len(good)
        assert worker.is_alive
        print({bad[t]: letter.cause.code for t, letter in (await stage.dead()).items()})  # noqa: T201 - the account


async def test_an_id_too_long_for_a_subject_is_not_left_in_the_queue(folder: Path) -> None:
    async with staged(folder) as stage:
        worker = await stage.fleet.start()
        for size in (256, 257, 5000):
            await stage.bus.store(Write(subjects.task("chaos"), b'{"n": 1}', {header.MSG_ID: "i" * size}))
        await stage.settled(within_s=LIVELY_S)
        assert worker.is_alive


async def test_one_submission_a_hundred_times_at_once_runs_once(folder: Path) -> None:
    async with staged(folder) as stage:
        for _ in range(2):
            await stage.fleet.start()
        await asyncio.gather(*(stage.load.submit(Job(n=0, sleep_s=0.2), task_id="chaos/once") for _ in range(100)))
        await stage.settled(within_s=LIVELY_S)
        verdict = await stage.verdict()
        assert (verdict.problems, verdict.starts) == ([], 1)


async def test_a_retry_that_falls_due_while_the_server_is_down_runs_when_it_is_back(folder: Path) -> None:
    async with staged(folder, schedule_over_s=1.0, retry_gap_s=2.0) as stage:
        await stage.fleet.start()
        await stage.load.submit(Job(n=0, how="raise", failures=1))
        await eventually(lambda: is_scheduled(stage), within_s=LIVELY_S, what="the schedule")
        stage.server.kill()
        await asyncio.sleep(3.0)
        await stage.server.start()
        await stage.settled(within_s=LIVELY_S)
        evidence = await stage.evidence()
        assert set(evidence.statuses.values()) == {"completed"}
        verdict = await stage.verdict()
        assert (verdict.problems, verdict.starts, verdict.retries) == ([], 2, 1)


async def is_scheduled(stage: Stage) -> bool:
    try:
        info = await stage.bus.stream_info(subjects.LATER)
    except BusError:
        return False
    return info is not None and info.messages == 1


async def test_sigterm_under_load_drains_without_a_rerun(folder: Path) -> None:
    async with staged(folder, concurrency=8) as stage:
        first = await stage.fleet.start()
        await stage.fleet.start()
        await stage.load.submit_all([Job(n=n, sleep_s=0.3) for n in range(120)])
        await eventually(lambda: stage.fleet.count("end") >= 16, within_s=LIVELY_S)
        first.process.terminate()
        await stage.settled(within_s=LIVELY_S)
        await eventually(lambda: not first.is_alive, within_s=LIVELY_S)
        verdict = await stage.verdict()
        assert first.process.returncode == 0
        assert (verdict.problems, verdict.reruns) == ([], 0)


async def test_a_task_past_its_deadline_is_ended_and_one_that_hangs_too(folder: Path) -> None:
    async with staged(folder) as stage:
        await stage.fleet.start()
        from datetime import timedelta

        from callboard.runtime.client import Client

        client = Client(stage.bus)
        handle = await client.submit("chaos", Job(n=0, how="hang"), deadline=timedelta(seconds=2))
        finished = await client.wait_record(handle, timeout_s=LIVELY_S)
        assert finished.status == "expired"
