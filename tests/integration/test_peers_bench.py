"""The bench beside the peers runs, on ourselves alone, who need nothing that is not here."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_quick_run_measures_us_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "peers.html"
    words = ["--quick", "--peers", "callboard:default", "--out", str(out)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.peers", *words)
    assert await process.wait() == 0
    row = msgspec.json.decode(out.with_suffix(".json").read_bytes())["rows"][0]
    assert row["reason"] == ""
    assert (row["lost"], row["doubled"]) == (0, 0)
    assert row["figures"]["rate"]["median"] > 0
    assert row["rounds"][0]["crash"]["hit"] > 0
    assert "callboard:default" in out.read_text("utf-8")
