"""The bench beside the peers measures us whole, and shows a peer that forgets what it forgot."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.peers import measure, result
from bench.peers.measure import Plan, Round
from bench.peers.peer import Peer, Variant
from bench.peers.result import Row

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@contextlib.asynccontextmanager
async def nothing() -> AsyncIterator[dict[str, Any]]:
    yield {}


class Forgetful(Peer):
    """Its queue is a file; see ``tests/support/forgetful_peer.py`` for what it forgets."""

    name = "forgetful"
    packages = ("msgspec",)
    variants = (Variant(key="file", durability="a file", recovery="none", strength=0),)
    worker = "1 process"
    result = "nothing"
    has_venv = False

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        del variant, folder
        return nothing()

    @property
    def module(self) -> str:
        return "tests.support.forgetful_peer"


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


async def test_a_peer_that_forgets_is_shown_with_what_it_forgot() -> None:
    plan = Plan(tasks=70, singles=3, slow=2, slow_s=0.6, again_within_s=2, within_s=3, rounds=1)
    peer, found = Forgetful(), Round()
    await measure.one(peer, peer.variants[0], sys.executable, plan, found, with_kill=True)
    assert found.lost == 7
    assert found.repeated == len([n for n in range(1, 70) if n % 7 == 0 and n % 10 != 9])
    assert found.crash is not None
    assert (found.crash.hit, found.crash.lost, found.crash.again_s) == (1, 1, [])
    assert result.recovery_s(found) == math.inf
    row = Row(
        name="forgetful:file", peer="forgetful", durability="", recovery="", strength=0, worker="", stores="",
        rounds=[found],
    )  # fmt: skip
    assert result.lost(row) == 8
