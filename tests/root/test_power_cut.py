"""Power cuts, rows 16 to 18: what was acknowledged is on the disk, and with the server's default sync it is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import structs

from callboard.runtime import subjects
from callboard.runtime.actor import repair
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import BusError, CallboardError
from tests.chaos import cluster_faults, cluster_ledger
from tests.chaos.checker import check
from tests.chaos.handlers import Job
from tests.chaos.stage import Stage, staged
from tests.root import scene
from tests.root.book import Book, Line
from tests.root.disk import Kind, LoopDisk, mounted
from tests.support.cluster import Servers
from tests.support.eventually import eventually

pytestmark = [pytest.mark.root, pytest.mark.chaos, pytest.mark.timeout(180)]
BEFORE = 100
ACKED = 1000
ALIVE_WITHIN_S = 30.0


async def test_one_server_keeps_what_it_acknowledged(folder: Path, kind: Kind, book: Book) -> None:
    brokers = scene.on_loopback(folder, count=1)
    with mounted(scene.disks(folder, kind=kind)) as (disk,):
        fault = scene.power_cut({brokers.first: disk}, which="all")
        async with staged(folder, brokers=brokers, logs_claims=True) as stage:
            plan = structs.replace(scene.QUICK, faults=(fault,))
            rows = await cluster_ledger.run_on(stage, plan, folder)
            book.add_rows(16, rows, where=kind)
            assert cluster_ledger.problems(rows) == []
            assert disk.cuts == 1
