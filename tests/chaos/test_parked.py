"""What waits for people outlives every process, uses nothing meanwhile, and goes on exactly once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos import parked
from tests.chaos.parked import Report

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(300)
def test_fifty_approvals_outlive_every_process(folder: Path) -> None:
    report = asyncio.run(parked.run(folder, count=50))
    print(report)  # noqa: T201 - the figures belong into the test's output
    assert report.problems == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parked": 1}, "1 of 2 parked"),
        ({"in_use": (0, 1)}, "slots in use"),
        ({"counts": {"call": 3, "resumed": 2, "paid": 2}}, "'call': 3"),
        ({"counts": {"call": 2, "resumed": 1, "paid": 1}}, "'paid': 1"),
        ({"doubled": ["paid 1"]}, "more than once: paid 1"),
    ],
)
def test_a_run_that_broke_a_promise_is_noticed(changes: dict[str, object], words: str) -> None:
    good = {"parked": 2, "in_use": (0, 0), "counts": {"call": 2, "resumed": 2, "paid": 2}}
    assert Report(approvals=2, **good).problems == []  # type: ignore[arg-type] # a table
    (problem,) = Report(approvals=2, **{**good, **changes}).problems  # type: ignore[arg-type] # as above
    assert words in problem
