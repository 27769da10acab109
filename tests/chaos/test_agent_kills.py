"""A worker killed in the middle of an agent's run: nothing is paid or done twice, and nothing is done without need."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.chaos import agent_kills
from tests.chaos.agent_kills import LETTER, POINTS, Point, Row, run, table

GOOD = Row(
    point=Point(kind="note", number=4, when="after"),
    calls=5,
    paid_twice=0,
    keys=4,
    notes=5,
    sent=1,
    asked=False,
    runs=2,
    status="done",
    took_s=1.0,
)


async def test_a_kill_in_each_kind_of_step_costs_nothing_twice(tmp_path: Path) -> None:
    points = [
        Point(kind="model", number=3, when="during"),
        Point(kind="note", number=2, when="before"),
        Point(kind="note", number=4, when="after"),
        Point(kind="send", number=LETTER, when="after"),
    ]
    rows = await run(points, tmp_path / "run")
    assert not [problem for row in rows for problem in row.problems], table(rows)


@pytest.mark.slow
async def test_a_kill_at_every_step_costs_nothing_twice(tmp_path: Path) -> None:
    rows = await run(POINTS, tmp_path / "run")
    assert not [problem for row in rows for problem in row.problems], table(rows)


def test_every_step_is_killed_in() -> None:
    assert len(agent_kills.STEPS) == 10
    assert {(point.kind, point.number) for point in POINTS} == set(agent_kills.STEPS)


def test_the_judge_says_nothing_of_a_good_row() -> None:
    assert GOOD.problems == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (replace(GOOD, paid_twice=1), "paid twice"),
        (replace(GOOD, calls=6), "6 calls of the model"),
        (replace(GOOD, keys=5), "5 keys"),
        (replace(GOOD, notes=6), "6 notes"),
        (replace(GOOD, sent=2), "2 letters"),
        (replace(GOOD, sent=0), "0 letters"),
        (replace(GOOD, asked=True), "without need"),
        (replace(GOOD, runs=1), "not killed"),
        (replace(GOOD, status="failed"), "did not end"),
        (replace(GOOD, point=Point(kind="send", number=LETTER, when="after"), notes=4), "nobody was asked"),
    ],
)
def test_the_judge_sees_each_broken_promise(row: Row, said: str) -> None:
    assert any(said in problem for problem in row.problems)
