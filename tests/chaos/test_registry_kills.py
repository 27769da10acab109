"""The registry's leader killed under callers that never stop: their caches answer, and the next leader comes."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.chaos.registry_kills import GOAL_S, Row, run, table

GOOD = Row(number=1, away_s=1.1, finds=100, picks=30, asks=30)


async def test_two_kills_of_the_leader_stop_nobody_who_has_looked_up_before(tmp_path: Path) -> None:
    rows = await run(2, tmp_path)
    # the seconds are the command's business: a machine with much to do is no broken promise
    assert not [problem for row in rows for problem in replace(row, away_s=0.0).problems], table(rows)
    assert all(row.away_s < float("inf") for row in rows), table(rows)


@pytest.mark.slow
async def test_twenty_kills_of_the_leader_stop_nobody_who_has_looked_up_before(tmp_path: Path) -> None:
    rows = await run(20, tmp_path)
    assert not [problem for row in rows for problem in replace(row, away_s=0.0).problems], table(rows)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (replace(GOOD, away_s=GOAL_S + 0.1), "no leader answered"),
        (replace(GOOD, away_s=float("inf")), "no leader answered"),
        (replace(GOOD, failed=["find: nobody leads"]), "nobody leads"),
        (replace(GOOD, picks=0), "nobody looked up"),
    ],
)
def test_the_judge_sees_each_broken_promise(row: Row, said: str) -> None:
    assert GOOD.problems == []
    assert any(said in problem for problem in row.problems)
