"""A flipped bit, row 27: one server alone loses records and the doctor says so; three mend each other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from callboard.runtime import subjects
from callboard.runtime.errors import BusError
from tests.chaos import cluster_faults
from tests.chaos.checker import Verdict
from tests.chaos.handlers import Job
from tests.chaos.stage import Stage, staged, store_of
from tests.root import disk, scene
from tests.root.book import Book, Line
from tests.support.eventually import eventually

pytestmark = [pytest.mark.root, pytest.mark.chaos, pytest.mark.timeout(scene.limit_s(180))]
TASKS = 400
WITHIN_S = 60.0


async def test_the_doctor_reports_what_a_flipped_bit_took_from_one_server(folder: Path, book: Book) -> None:
    async with staged(folder, concurrency=32) as stage:
        await record(stage)
        stage.server.kill()
        flip(folder, 0)
        await stage.server.start()
        verdict = await judged(stage)
        assert verdict.lost, "one server alone kept what a flipped bit should take: this has no teeth"
        _, said = await asyncio.to_thread(scene.callboard, stage.servers.url, "doctor", "--deep")
        found = said.get("findings")
        assert isinstance(found, list), said
        damage = [
            finding["text"] for finding in found if finding["check"] == "damage" and finding["level"] == "problem"
        ]
        assert any(subjects.LEDGER in text for text in damage), found
    note = f"control: one server alone loses; the doctor: {damage[0]}"
    book.add(line("bit flipped, one server", where="ledger", lost=len(verdict.lost), note=note))


async def test_a_follower_is_mended_by_the_others(folder: Path, book: Book) -> None:
    brokers = scene.on_loopback(folder, count=3)
    async with staged(folder, brokers=brokers, concurrency=32) as stage:
        await cluster_faults.healthy(stage.bus)
        await cluster_faults.gather(stage.bus, brokers)
        await record(stage)
        number = (brokers.all.index(await brokers.victim(stage.bus)) + 1) % 3
        brokers.all[number].kill()
        flip(folder, number)
        await brokers.all[number].start()
        await cluster_faults.healthy(stage.bus)
        # what it answers itself is what it has
        await lead(stage, number)
        verdict = await judged(stage)
        assert verdict.problems == []
    book.add(line("bit flipped, follower of three", where="ledger", lost=len(verdict.lost), note="asked as the leader"))


async def record(stage: Stage) -> None:
    """Have a worker finish all tasks."""
    await stage.fleet.start()
    await stage.load.submit_all([Job(n=n) for n in range(TASKS)])
    await stage.settled(within_s=WITHIN_S)
    assert (await stage.verdict()).problems == []


async def judged(stage: Stage) -> Verdict:
    """Return what the checker says, as soon as the servers answer again."""
    found: list[Verdict] = []

    async def answered() -> bool:
        try:
            found.append(await stage.verdict())
        except BusError:
            return False
        return True

    await eventually(answered, within_s=WITHIN_S, what="an answer", every_s=0.5)
    return found[0]


def flip(folder: Path, number: int) -> None:
    """Flip a bit in the middle of a server's ledger."""
    blocks = disk.blocks(store_of(folder, number), subjects.LEDGER)
    disk.flip_bit(max(blocks, key=lambda path: path.stat().st_size))


async def lead(stage: Stage, number: int) -> None:
    """Have one server lead the ledger."""
    body = json.dumps({"placement": {"preferred": f"cb{number}"}}).encode()

    async def leads() -> bool:
        try:
            info = await stage.bus.stream_info(subjects.LEDGER)
            if info is not None and info.leader == f"cb{number}":
                return True
            await stage.bus.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{subjects.LEDGER}", body, timeout_s=2.0)
        except BusError:
            # between two leaders nobody answers
            return False
        return False

    await eventually(leads, within_s=WITHIN_S, what=f"server {number} as the ledger's leader", every_s=0.5)


def line(fault: str, *, where: str, lost: int, note: str) -> Line:
    return Line(number=27, fault=fault, where=where, what="tasks", acked=TASKS, lost=lost, note=note)
