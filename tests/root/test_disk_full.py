"""A full disk, row 25: with limits below it the submitter is told at once; without, nothing acknowledged is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from msgspec import structs

from callboard.runtime.bus.base import StreamConfig
from callboard.runtime.client import Client
from callboard.runtime.errors import BackpressureError, CallboardError
from tests.chaos.handlers import NAME
from tests.chaos.stage import Stage, jetstream, staged, store_of
from tests.root import scene
from tests.root.book import Book, Line
from tests.root.disk import TinyDisk
from tests.support.cluster import Servers
from tests.support.eventually import eventually

pytestmark = [pytest.mark.root, pytest.mark.chaos, pytest.mark.timeout(scene.limit_s(120))]
BODY = {"pad": "x" * 50_000}
MIB = 1 << 20
AT_MOST = 2000


def limited(stream: StreamConfig) -> StreamConfig:
    """Let all streams together stay below the disk."""
    return structs.replace(stream, max_bytes=2 * MIB) if stream.max_bytes > 0 else stream


def unlimited(stream: StreamConfig) -> StreamConfig:
    return structs.replace(stream, max_bytes=-1)


def servers(folder: Path, *, max_file_bytes: int) -> Servers:
    def more(number: int) -> str:
        return jetstream(store_of(folder, number), max_file_bytes=max_file_bytes)

    return Servers(folder, count=1, more=more)


async def fill(stage: Stage, acked: set[str]) -> tuple[CallboardError, float]:
    """Submit until it is refused; return the refusal and how long it took."""
    client = Client(stage.bus)
    for n in range(len(acked), AT_MOST):
        asked_s = time.monotonic()
        try:
            handle = await client.submit(NAME, BODY, id=f"{NAME}/{n}", timeout_s=3.0)
        except CallboardError as error:
            return error, time.monotonic() - asked_s
        acked.add(handle.id)
    message = "the disk takes more than its size"
    raise AssertionError(message)


async def test_limits_below_the_disk_refuse_at_once(folder: Path, tiny_disk: TinyDisk, book: Book) -> None:
    acked: set[str] = set()
    async with staged(folder, brokers=servers(folder, max_file_bytes=20 * MIB), tweak=limited) as stage:
        error, took_s = await fill(stage, acked)
        assert isinstance(error, BackpressureError), error
        await stage.server.restart()
        lost = acked - await scene.census(stage)
        note = f"{error.code} after {took_s * 1000:.0f} ms"
        book.add(line("disk full, limits below it", acked=len(acked), lost=len(lost), note=note))
        assert not lost


async def test_without_limits_nothing_acknowledged_is_lost(folder: Path, tiny_disk: TinyDisk, book: Book) -> None:
    acked: set[str] = set()
    async with staged(folder, brokers=servers(folder, max_file_bytes=4 << 30), tweak=unlimited) as stage:
        error, took_s = await fill(stage, acked)
        tiny_disk.grow(96)
        await stage.server.restart()
        lost = acked - await scene.census(stage)
        note = f"{error.code} after {took_s:.1f} s, well again after more room and a restart"
        book.add(line("disk full, no limits", acked=len(acked), lost=len(lost), note=note))
        assert not lost
        client = Client(stage.bus)

        async def takes_more() -> bool:
            try:
                return bool(await client.submit(NAME, BODY, id=f"{NAME}/{AT_MOST}", timeout_s=3.0))
            except CallboardError:
                return False

        await eventually(takes_more, within_s=30.0, what="room again", every_s=0.2)


def line(fault: str, *, acked: int, lost: int, note: str) -> Line:
    return Line(number=25, fault=fault, where="tmpfs", what="tasks", acked=acked, lost=lost, note=note)
