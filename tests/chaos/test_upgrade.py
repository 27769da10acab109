"""Two versions in one fleet: a rolling upgrade, and the way back, lose nothing, run nothing twice, keep the order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos import upgrade

pytestmark = pytest.mark.chaos


def judge(plan: upgrade.Plan, folder: Path) -> upgrade.Report:
    try:
        report = asyncio.run(upgrade.run(plan, folder))
    except upgrade.HistoryMissingError as error:
        pytest.skip(f"the older version cannot run here: {error}")
    print(report)  # noqa: T201 - the figures belong into the test's output
    assert report.problems == [], str(report)
    return report


@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_back", [False, True], ids=["upgrade", "downgrade"])
def test_workers_are_replaced_by_another_version_under_open_turns(folder: Path, is_back: bool) -> None:
    judge(upgrade.Plan(turns=24, workers=2, steps=24, step_s=0.5, is_back=is_back), folder)


@pytest.mark.timeout(240)
def test_turns_that_the_grace_time_cuts_off_go_on_in_the_other_version(folder: Path) -> None:
    report = judge(upgrade.Plan(turns=12, workers=2, steps=10, step_s=1.0, grace_s=2.0), folder)
    # their recorded steps were not repeated, which the verdict has looked for
    assert report.verdict.reruns > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_open_turns_survive_a_rolling_upgrade(folder: Path) -> None:
    judge(upgrade.Plan(), folder)
