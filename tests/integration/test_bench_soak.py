"""The soak runs, accounts for every task and turn, and sees a worker that keeps something of each task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAK_BYTES = 40_000


def soak(folder: Path, *more: str) -> tuple[subprocess.CompletedProcess[str], dict[str, float]]:
    """Run it for some ten seconds; return how it ended and the slopes in bytes a task."""
    path = folder / "soak.json"
    command = [sys.executable, "-m", "bench.soak", "--tasks", "3000", "--turns", "150", "--rate", "300"]
    command += ["--keep", "20", "--warm-up", "2", "--json", str(path), "--dir", str(folder), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert path.exists(), done.stderr
    return done, {line["what"]: line["slope"]["per_one"] for line in json.loads(path.read_text("utf-8"))["lines"]}


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_short_soak_accounts_for_everything(tmp_path: Path) -> None:
    done, slopes = soak(tmp_path)
    assert "fed 3000 tasks and 150 turns; done 3000 and 150" in done.stdout, done.stderr
    assert slopes["w1 memory"] < LEAK_BYTES / 8
    assert slopes["w1 open files"] == 0
    assert {"server memory", "w2 asyncio tasks", "CB_LEDGER"} <= slopes.keys()


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_worker_that_keeps_something_of_each_task_is_found_out(tmp_path: Path) -> None:
    done, slopes = soak(tmp_path, "--leak", str(LEAK_BYTES))
    assert done.returncode == 1
    assert "GROWS" in done.stdout
    # each worker has half of the tasks
    assert slopes["w1 memory"] > LEAK_BYTES / 8
