"""Many tasks under killed workers, killed servers, an outage and a frozen worker: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.chaos.ledger import Plan, Report, run

pytestmark = pytest.mark.chaos
SEED = int(os.environ.get("CHAOS_SEED", "7"))


def judge(report: Report) -> None:
    print(report)  # noqa: T201 - the table and the seed belong into the test's output
    assert report.problems == [], str(report)


@pytest.mark.timeout(180)
def test_a_small_ledger_survives_every_kind_of_fault(folder: Path) -> None:
    plan = Plan(
        tasks=500,
        seed=SEED,
        workers=3,
        concurrency=5,
        worker_kills=1,
        server_kills=1,
        outages=1,
        freezes=1,
        long_share=0.01,
    )
    judge(asyncio.run(run(plan, folder)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_large_ledger_survives_every_kind_of_fault(folder: Path) -> None:
    judge(asyncio.run(run(Plan(seed=SEED), folder)))
