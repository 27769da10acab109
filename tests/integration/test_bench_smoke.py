"""The benches run and say what they measured; how fast it was is nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_quick_run_writes_the_rows_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = [sys.executable, "-m", "bench", "--quick", "--rows", "a", "--json", str(path), "--dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text("utf-8"))
    assert {"cores", "kernel", "python", "nats-server", "fsync_p50_ms"} <= set(found["facts"])
    assert [(row["key"], row["mode"], row["concurrency"]) for row in found["rows"]] == [
        ("a", "default", "64"),
        ("a", "always", "64"),
    ]
    for row in found["rows"]:
        assert len(row["ours"]["figures"]) == len(row["base"]["figures"]) == 1
        assert row["ratio"] > 0
    assert "tasks/s" in done.stdout


def test_an_unknown_row_is_refused() -> None:
    command = [sys.executable, "-m", "bench", "--rows", "xyz"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "rows are letters of" in done.stderr
