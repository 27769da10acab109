"""Three servers under load: one fault, every fault, and the controls of what is counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.cluster_faults import KINDS, Kind, nothing
from tests.chaos.cluster_ledger import HEAD, Plan, Row, flow_s, problems, recovery_s, run, sync_mode
from tests.support.cluster import Servers

pytestmark = pytest.mark.chaos


def judge(plan: Plan, folder: Path) -> list[Row]:
    print(HEAD)  # noqa: T201 - the table belongs into the test's output
    return asyncio.run(run(plan, folder))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_tasks_and_turns_survive_a_leader_that_dies_with_workers(folder: Path) -> None:
    plan = Plan(faults=(KINDS["leader and workers killed"],), lanes=2, keys=3, long_s=4.0)
    rows = judge(plan, folder)
    assert problems(rows) == []
    assert {row.sync for row in rows} == {"always"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_tasks_and_turns_survive_every_fault_of_a_cluster(folder: Path) -> None:
    assert problems(judge(Plan(), folder)) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_control_without_holds_an_outage_runs_living_work_twice(folder: Path) -> None:
    plan = Plan(faults=(KINDS["all away 6 s"],), breaks=("no_holds",))
    assert any("overlapping starts" in problem for problem in problems(judge(plan, folder)))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_control_a_fault_that_harms_nobody_has_tested_nothing(folder: Path) -> None:
    harmless = Kind(name="nothing", act=nothing, redelivers=True)
    assert problems(judge(Plan(faults=(harmless,), lanes=1, keys=1), folder)) == ["nothing, tasks: tested nothing"]


def row(**changes: object) -> Row:
    facts: dict[str, object] = {
        "fault": KINDS["all killed"], "what": "tasks", "sync": "always", "rate": 1.0, "acked": 9, "lost": 0,
        "doubled": 0, "redelivered": 1, "reruns": 0, "flow_s": 1.5, "recovery_s": 2.0,
    }  # fmt: skip
    return Row(**(facts | changes))  # type: ignore[arg-type] # fields of a row


def test_a_row_without_redelivery_or_without_work_after_the_fault_tested_nothing() -> None:
    assert problems([row()]) == []
    assert problems([row(redelivered=0)]) == ["all killed, tasks: tested nothing"]
    assert problems([row(recovery_s=None)]) == ["all killed, tasks: tested nothing"]
    assert problems([row(problems=("lost: 1",))]) == ["all killed, tasks: lost: 1"]
    assert str(row(redelivered=0)).endswith("tested nothing")


def test_recovery_counts_only_work_that_was_offered_after_the_fault() -> None:
    began_s = {"before": 9.0, "first": 11.0, "second": 10.5, "lost": 10.1}
    assert recovery_s(began_s, {"before": 10.2, "first": 13.0, "second": 14.0}, at_s=10.0) == 3.0
    assert recovery_s(began_s, {"before": 10.2}, at_s=10.0) is None


def test_effects_flow_again_where_their_longest_absence_ends() -> None:
    assert flow_s([9.0, 10.1, 16.0, 16.1, 17.5, 30.0], at_s=10.0, until_s=18.0) == 6.0
    assert flow_s([10.1, 10.6, 11.0], at_s=10.0, until_s=11.5) == 0.0
    assert flow_s([], at_s=10.0, until_s=18.0) == 8.0


def test_servers_that_do_not_sync_each_write_are_told(tmp_path: Path) -> None:
    synced = Servers(tmp_path / "a", count=3, more=lambda _: "jetstream { sync_interval: always }")
    assert sync_mode(synced) == "always"
    mixed = Servers(tmp_path / "b", count=3, more=lambda n: "" if n else "jetstream { sync_interval: always }")
    assert sync_mode(mixed) == "default"
