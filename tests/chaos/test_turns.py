"""Turns that last longer than any lease, under everything that may die: none is run beside itself, lost or doubled."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.chaos import takeover, turn_ledger
from tests.chaos.journal import Event, Kind
from tests.chaos.nemesis import Faults
from tests.chaos.turns import READ_S, Recorded, repeated_steps

pytestmark = pytest.mark.chaos
SEED = int(os.environ.get("CHAOS_SEED", "7"))


def judge(report: turn_ledger.Report | takeover.Report) -> None:
    print(report)  # noqa: T201 - the table and the seed belong into the test's output
    assert report.problems == [], str(report)


@pytest.mark.timeout(240)
def test_a_small_ledger_of_turns_survives_every_kind_of_fault(folder: Path) -> None:
    judge(asyncio.run(turn_ledger.run(turn_ledger.small(SEED), folder)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_turns_survive_every_kind_of_fault(folder: Path) -> None:
    judge(asyncio.run(turn_ledger.run(turn_ledger.Plan(seed=SEED), folder)))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_turns_survive_the_leader_of_three_servers(folder: Path) -> None:
    judge(asyncio.run(turn_ledger.run(turn_ledger.clustered(SEED), folder)))


@pytest.mark.timeout(180)
def test_hosts_killed_in_mid_turn_are_replaced_and_repeat_nothing(folder: Path) -> None:
    judge(asyncio.run(takeover.run(takeover.Plan(kills=3), folder)))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_forty_hosts_killed_in_mid_turn_are_replaced_and_repeat_nothing(folder: Path) -> None:
    judge(asyncio.run(takeover.run(takeover.Plan(kills=40), folder)))


def event(kind: Kind, pid: int, at_s: float) -> Event:
    return Event(kind=kind, pid=pid, at_s=at_s, task="turn-0", n=0, step=0)


RAN = [event("step", 1, 0.0), event("stepped", 1, 1.0)]


@pytest.mark.parametrize(
    ("events", "record", "is_repeated"),
    [
        (RAN, Recorded(1, 1.01), False),
        # begun again before the first run of it was recorded: it had to be
        ([*RAN, event("step", 2, 1.0)], Recorded(1, 5.0), False),
        # whoever looked just before the record stood
        ([*RAN, event("step", 2, 1.02)], Recorded(1, 1.01), False),
        ([*RAN, event("step", 2, 1.02 + READ_S)], Recorded(1, 1.01), True),
        # recorded by a process that never brought it to its end
        (RAN, Recorded(2, 1.01), True),
    ],
    ids=range(5),
)
def test_a_step_begun_after_its_record_stood_is_seen(events: list[Event], record: Recorded, is_repeated: bool) -> None:
    assert bool(repeated_steps(events, {(0, 0): record})) is is_repeated


def test_a_run_that_tested_nothing_is_no_success(folder: Path) -> None:
    plan = turn_ledger.Plan(turns=2, keys=1, workers=1, steps=1, step_s=0.05, faults=Faults())
    assert asyncio.run(turn_ledger.run(plan, folder)).problems == [
        "no turn was begun a second time: this has tested nothing"
    ]
