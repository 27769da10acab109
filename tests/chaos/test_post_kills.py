"""The post's carrier killed in mid-batch: every entry becomes mail once, in the order in which it was handed in."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.chaos.post_kills import Report, Tally, run

GOOD = Report(sent={"a": 5}, tallies={"a": Tally(5)}, kills=1, cut=1, left=0, away_s=[1.0])


async def test_kills_of_the_carrier_lose_and_double_nothing(tmp_path: Path) -> None:
    report = await run(2, tmp_path, entries=300)
    # whether a kill struck in the middle is luck, and the long run's to show
    assert replace(report, cut=1).problems == [], str(report)


@pytest.mark.slow
async def test_twenty_kills_of_the_carrier_lose_and_double_nothing(tmp_path: Path) -> None:
    report = await run(20, tmp_path)
    assert report.problems == [], str(report)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (replace(GOOD, tallies={"a": Tally(4)}), "4 of 5"),
        (replace(GOOD, tallies={"a": Tally(5, [3])}), "then [3]"),
        (replace(GOOD, left=1), "left in the post"),
        (replace(GOOD, cut=0), "in the middle"),
    ],
)
def test_the_judge_sees_each_broken_promise(report: Report, said: str) -> None:
    assert GOOD.problems == []
    assert any(said in problem for problem in report.problems)
