"""Power cuts, rows 16 to 18: what was acknowledged is on the disk, and with the server's default sync it is not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from callboard.runtime import subjects
from callboard.runtime.actor import archive
from callboard.runtime.actor.repair import Comparison
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.topology import declared
from tests.chaos import cluster_faults, cluster_ledger
from tests.chaos.fleet import ROOT
from tests.chaos.handlers import Job
from tests.chaos.stage import SETTINGS, Stage, apply, jetstream, staged
from tests.root import scene
from tests.root.book import Book, Line
from tests.root.disk import Kind, LoopDisk, mounted
from tests.support.eventually import eventually
from tests.support.server import NatsServer

pytestmark = [
    pytest.mark.root,
    pytest.mark.chaos,
    pytest.mark.timeout(scene.limit_s(180)),
    # the client library leaves behind the dial that it had begun to a server that stands still
    pytest.mark.filterwarnings("ignore:.*StreamWriter.__del__:pytest.PytestUnraisableExceptionWarning"),
]
BEFORE = 100
ACKED = 1000
WIDTH = 64
STREAMS = sum(config.storage == "file" for config in declared(SETTINGS).streams)
# Messages at the stream's end that are not copied: owners' notes about themselves.
CURSORS = 50


async def test_one_server_keeps_what_it_acknowledged(folder: Path, kind: Kind, book: Book) -> None:
    brokers = scene.on_loopback(folder, count=1)
    with mounted(scene.disks(folder, kind=kind)) as (disk,):
        fault = scene.power_cut({brokers.first: disk}, which="all")
        async with scene.ledger_stage(folder, brokers) as stage:
            if kind == "ext4":
                # what stands for long has reached the disk; on the other kind the cut comes soon after provisioning
                disk.settle()
            plan = structs.replace(scene.PLAN, faults=(fault,))
            rows = await cluster_ledger.run_on(stage, plan, folder)
            book.add_rows(16, rows, where=kind)
            assert cluster_ledger.problems(rows) == []
            await mend_audit(stage, book, where=kind)


async def mend_audit(stage: Stage, book: Book, *, where: str) -> None:
    """The copy of the actors' messages is written without waiting for the disk: what the cut took is copied late.

    A cut soon after provisioning takes the whole stream of copies; `callboard provision` makes it again.
    """
    is_gone = await stage.bus.stream_info(subjects.AUDIT) is None
    if is_gone:
        await apply(stage.bus, None, replicas=1)
        await eventually(lambda: has_caught_up(stage), within_s=30.0, what="the audit copy", every_s=0.2)
    before = await compared(stage, "--check", allowed={0, 1})
    mended = await compared(stage)
    after = await compared(stage, "--check")
    assert (mended.lost, mended.repaired) == ([], mended.missed), mended
    assert after.missed == 0, after
    taken = "the stream, provisioned again" if is_gone else f"{before.missed} copies, {mended.repaired} copied late"
    note = f"the cut took {taken}"
    fault = "power cut, audit repair"
    book.add(
        Line(number=16, fault=fault, where=where, what="audit", acked=after.compared, lost=len(after.lost), note=note)
    )


async def has_caught_up(stage: Stage) -> bool:
    extent = await archive.extent(stage.bus)
    last = await stage.bus.stream_info(subjects.ACTORS)
    return last is not None and not extent.problem and extent.upto >= last.last_seq - CURSORS


async def compared(stage: Stage, *words: str, allowed: AbstractSet[int] = frozenset({0})) -> Comparison:
    """Return what ``callboard audit repair`` says."""
    status, said = await asyncio.to_thread(scene.callboard, stage.servers.url, "audit", "repair", *words)
    assert status in allowed, said
    return msgspec.convert(said, Comparison)


async def test_control_the_default_sync_loses_what_one_server_acknowledged(
    folder: Path, ext4: None, book: Book
) -> None:
    brokers = scene.on_loopback(folder, count=1, sync=None)
    with mounted(scene.disks(folder)) as (disk,):
        async with staged(folder, brokers=brokers) as stage:
            await submit(stage, range(ACKED))
            scene.lose_power(brokers.first, disk)
            disk.restore()
            await brokers.first.start()
            lost = len(stage.load.acked.keys() - await scene.census(stage))
    book.add(control(16, "power cut, one server", "default", acked=ACKED, lost=lost))
    assert lost, "the default sync lost nothing: this cut has no teeth"


@pytest.mark.parametrize("mode", ["flush", "keep"])
async def test_streams_outlive_a_power_cut_whatever_the_profile(
    folder: Path, ext4: None, book: Book, mode: str
) -> None:
    """With the fast profile messages may go; the streams stay, because their declarations were flushed."""
    data = folder / "store" / "data"
    (disk,) = scene.disks(folder)
    with disk:
        await asyncio.to_thread(provision_and_lose_power, data, mode, disk)
        disk.restore()
        missing = await missing_streams(folder, data)
    note = "declarations flushed" if mode == "flush" else "control: must lose; declarations not flushed"
    fault = "power cut after provisioning"
    book.add(
        Line(number=16, fault=fault, where="ext4 fast", what="streams", acked=STREAMS, lost=len(missing), note=note)
    )
    assert bool(missing) == (mode == "keep"), missing


def provision_and_lose_power(data: Path, mode: str, disk: LoopDisk) -> None:
    """Have an embedded server provisioned, and cut the power at once."""
    command = [sys.executable, "-m", "tests.root.provision_main", str(data), mode]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server = int(owner.stdout.readline())
        try:
            os.kill(owner.pid, signal.SIGSTOP)
            os.kill(server, signal.SIGSTOP)
            disk.cut()
        finally:
            os.kill(server, signal.SIGKILL)
            owner.kill()


async def missing_streams(folder: Path, store: Path) -> set[str]:
    """Start a plain server on a store; return the streams that it should know and does not."""
    broker = NatsServer(folder / "after", jetstream=False, more=jetstream(store))
    await broker.start()
    try:
        bus = await connect(broker.url, name="after")
        try:
            wanted = [config.name for config in declared(SETTINGS).streams if config.storage == "file"]
            return {name for name in wanted if await bus.stream_info(name) is None}
        finally:
            await bus.close()
    finally:
        broker.kill()


async def test_three_servers_keep_what_they_acknowledged(folder: Path, ext4: None, book: Book) -> None:
    brokers = scene.on_loopback(folder, count=3)
    with mounted(scene.disks(folder, count=3)) as disks:
        under = dict(zip(brokers.all, disks, strict=True))
        kinds = [scene.power_cut(under, which=which) for which in ("leader", "all")]
        rows = await scene.keep_ledger(folder, brokers, *kinds)
    book.add_rows(17, rows, where="ext4")
    assert cluster_ledger.problems(rows) == []


async def test_two_of_three_keep_what_they_acknowledged_alone(folder: Path, ext4: None, book: Book) -> None:
    acked, lost = await acked_by_two(folder, sync="always")
    fault = "power cut and pause, third was down"
    book.add(Line(number=18, fault=fault, where="ext4 always", what="tasks", acked=acked, lost=lost))
    assert (acked, lost) == (BEFORE + ACKED, 0)


async def test_control_the_default_sync_loses_what_two_of_three_acknowledged(
    folder: Path, ext4: None, book: Book
) -> None:
    acked, lost = await acked_by_two(folder, sync=None)
    book.add(control(18, "power cut and pause, third was down", "ext4 default", acked=acked, lost=lost))
    assert lost, "the default sync lost nothing: this cut has no teeth"


async def acked_by_two(folder: Path, *, sync: str | None) -> tuple[int, int]:
    """Have two of three acknowledge alone, take one's power, pause the other; return how many were acknowledged, lost.

    The third, which has missed them, and the one that lost power are the majority that goes on.
    """
    brokers = scene.on_loopback(folder, count=3, sync=sync)
    with mounted(scene.disks(folder, count=3)) as disks:
        async with staged(folder, brokers=brokers) as stage:
            await cluster_faults.healthy(stage.bus)
            await cluster_faults.gather(stage.bus, brokers)
            await submit(stage, range(BEFORE))
            leader = brokers.all.index(await brokers.victim(stage.bus))
            away, other = (leader + 1) % 3, (leader + 2) % 3
            brokers.all[away].kill()
            await submit(stage, range(BEFORE, BEFORE + ACKED))
            brokers.all[other].pause()
            scene.lose_power(brokers.all[leader], disks[leader])
            disks[leader].restore()
            await asyncio.gather(brokers.all[leader].start(), brokers.all[away].start())
            await scene.census(stage)
            brokers.all[other].resume()
            lost = stage.load.acked.keys() - await scene.census(stage)
            return len(stage.load.acked), len(lost)


async def submit(stage: Stage, numbers: range) -> None:
    """Submit tasks that nobody works on, each under its own id, until all are acknowledged."""
    jobs = [Job(n=n) for n in numbers]
    await stage.load.submit_all(jobs, named_share=1.0, width=WIDTH)


def control(number: int, fault: str, where: str, *, acked: int, lost: int) -> Line:
    """Return the line of a run that has to lose."""
    note = "control: must lose" if lost else "control: must lose, and lost nothing"
    return Line(number=number, fault=fault, where=where, what="tasks", acked=acked, lost=lost, note=note)
