"""Wrong clocks, row 28: workers an hour ahead and an hour behind take over from the others, and nothing runs twice."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos import cluster_ledger
from tests.chaos.cluster_faults import Kind, Scene
from tests.root import scene
from tests.root.book import Book
from tests.root.conftest import demand

pytestmark = [pytest.mark.root, pytest.mark.chaos, pytest.mark.timeout(scene.limit_s(180))]
HOUR_S = 3600


@pytest.fixture(autouse=True)
def faketime() -> None:
    demand("clock", probe)


def probe() -> str | None:
    """Ask the time of a command whose clock is an hour ahead."""
    if shutil.which("faketime") is None:
        return "faketime is not installed"
    said = subprocess.run(
        ["date", "+%s"], env=skewed(HOUR_S) | {"PATH": "/usr/bin:/bin"}, check=False, capture_output=True, text=True
    )
    if said.returncode or abs(float(said.stdout) - time.time() - HOUR_S) > HOUR_S / 2:
        return f"faketime: the clock does not move: {said.stderr.strip() or said.stdout.strip()}"
    return None


def skewed(offset_s: int) -> dict[str, str]:
    """Return the environment of a process whose wall clock is wrong; durations are measured as before.

    Without the command's own process in between, so that a signal reaches the worker.
    """
    told = subprocess.run(
        ["faketime", "-f", "+0s", "env"], check=True, capture_output=True, text=True, timeout=10
    ).stdout.splitlines()
    library = next(line for line in told if line.startswith("LD_PRELOAD=")).removeprefix("LD_PRELOAD=")
    return {"LD_PRELOAD": library, "FAKETIME": f"{offset_s:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


async def replaced(scene_: Scene) -> float:
    """Kill all workers and let those with wrong clocks go on."""
    before = [(fleet, worker) for fleet in (scene_.tasks, scene_.turns) for worker in fleet.alive]
    await asyncio.gather(
        *(
            fleet.start(more_environment=skewed(offset_s))
            for fleet in (scene_.tasks, scene_.turns)
            for offset_s in (HOUR_S, -HOUR_S)
        )
    )
    at_s = time.monotonic()
    for fleet, worker in before:
        fleet.kill(worker)
    return at_s


async def test_leases_and_fences_do_not_ask_the_wall_clock(folder: Path, book: Book) -> None:
    kind = Kind(name="clocks ± 1 h take over", act=replaced, redelivers=True)
    rows = await scene.keep_ledger(folder, scene.on_loopback(folder, count=1), kind)
    book.add_rows(28, rows, where="faketime")
    assert cluster_ledger.problems(rows) == []
