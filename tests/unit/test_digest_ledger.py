"""The account closes when it should, and names what is wrong when it should not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from callboard.agents.digest.ledger import Held, Kill, Record, account, read_record

START = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


def at(after_s: float) -> datetime:
    return START + timedelta(seconds=after_s)


def record(task: str, *, worker: str = "w1", begin: float = 0.0, crashes: int = 0, status: str = "completed") -> Record:
    return Record(
        task=task, capability="digest", status=status, worker=worker, claimed_at=at(begin), finished_at=at(begin + 1),
        attempts=1, crashes=crashes,
    )  # fmt: skip


def test_every_task_on_record_once_makes_the_account_whole() -> None:
    ledger = account(["a", "b"], [record("a"), record("b")])
    assert ledger.is_whole
    assert (ledger.submitted, ledger.recorded, ledger.statuses) == (2, 2, {"completed": 2})


def test_a_lost_task_is_named() -> None:
    ledger = account(["a", "b"], [record("a")])
    assert not ledger.is_whole
    assert ledger.lost == ["b"]


def test_a_task_recorded_twice_is_named_and_counted_once() -> None:
    ledger = account(["a"], [record("a"), record("a", worker="w2", begin=2)])
    assert not ledger.is_whole
    assert ledger.doubled == ["a"]
    assert (ledger.recorded, len(ledger.entries)) == (1, 1)


def test_a_record_that_nobody_submitted_is_named() -> None:
    ledger = account(["a"], [record("a"), record("ghost")])
    assert not ledger.is_whole
    assert ledger.phantom == ["ghost"]


def test_a_failed_task_is_on_record_and_named() -> None:
    ledger = account(["a", "b"], [record("a", status="failed"), record("b")])
    assert ledger.is_whole
    assert [entry.task for entry in ledger.failed] == ["a"]


def test_a_worker_that_came_for_the_killed_one_is_told_apart() -> None:
    kill = Kill(worker="w2", at=at(1), replaced_by=["w3"])
    ledger = account(["a"], [record("a")], kill=kill, workers=["w1", "w2", "w3"])
    assert [worker.fate for worker in ledger.workers] == ["finished", "killed", "replacement"]


def test_what_the_killed_worker_held_is_followed_to_whoever_finished_it() -> None:
    kill = Kill(worker="w2", at=at(5), held=[Held(task="b", claimed_at=at(4.5)), Held(task="d")])
    records = [
        record("a", worker="w2", begin=1),
        record("b", worker="w1", begin=6.25),
        record("c", worker="w3", begin=7, crashes=1),
        record("e", worker="w3", begin=8),
    ]
    ledger = account("abcde", records, kill=kill, labels={"b": "docs/b.md"})
    assert [(entry.label, entry.worker, entry.taken_over_s) for entry in ledger.taken_over] == [
        ("docs/b.md", "w1", 1.25),
        ("c", "w3", 2.0),
    ]
    assert ledger.unclaimed == ["d"]
    assert ledger.lost == ["d"]


def test_a_worker_that_was_killed_before_it_finished_anything_is_listed() -> None:
    ledger = account(["a"], [record("a")], kill=Kill(worker="w2", at=at(0.1)), workers=["w1", "w2", "w3"])
    assert [(worker.name, worker.tasks, worker.fate) for worker in ledger.workers] == [
        ("Worker 1", 1, "finished"),
        ("Worker 2", 0, "killed"),
        ("Worker 3", 0, "finished"),
    ]


def test_a_record_is_read_as_the_wire_contract_has_it() -> None:
    data = (
        b'{"v":1,"task":"digest/7","capability":"digest","status":"completed","result":{"hits":3},"submitted":{"seq":17,'
        b'"at":"2026-11-21T09:30:00.123456Z","lane":"normal","payload":{"text":"x"}},"attempts":2,"worker":"host-1-a",'
        b'"claimed_at":"2026-11-21T09:30:01Z","finished_at":"2026-11-21T09:30:02.5Z"}'
    )
    found = read_record(data)
    assert (found.task, found.attempts, found.crashes, found.submitted.seq) == ("digest/7", 2, 0, 17)
    assert found.finished_at is not None
    assert found.claimed_at is not None
    assert (found.finished_at - found.claimed_at).total_seconds() == pytest.approx(1.5)
