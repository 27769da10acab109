"""May a delivery be run? Every row of the decision, from a user's point of view."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from msgspec import UNSET, structs

from callboard.runtime.record import AttemptKind, AttemptRecord
from callboard.runtime.screen import Bury, Drop, Reschedule, Run, Skip, Verdict, Wait, needs_questions, screen

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def note(
    n: int, kind: AttemptKind, *, attempt: int = 1, due_s: float | None = None, scheduled: bool = False
) -> AttemptRecord:
    return AttemptRecord(
        v=1,
        task="t",
        capability="c",
        n=n,
        kind=kind,
        attempt=attempt,
        worker="w",
        at=NOW,
        retry_at=NOW + timedelta(seconds=due_s) if due_s is not None else UNSET,
        scheduled=scheduled or UNSET,
    )


def ask(
    *history: AttemptRecord, delivered: int = 2, attempt: int = 1, recorded: bool = False, held: bool = False
) -> Verdict:
    return screen(
        delivered=delivered,
        header_attempt=attempt,
        is_recorded=recorded,
        is_held=held,
        history=history,
        crash_limit=3,
        now=NOW,
    )


def test_only_a_first_delivery_that_the_broker_named_needs_no_question() -> None:
    assert not needs_questions(delivered=1, attempt=1, has_client_id=False)
    assert needs_questions(delivered=2, attempt=1, has_client_id=False)
    assert needs_questions(delivered=1, attempt=2, has_client_id=False)
    assert needs_questions(delivered=1, attempt=1, has_client_id=True)


def test_a_recorded_task_is_never_run_again_even_if_somebody_claims_to_hold_it() -> None:
    assert ask(recorded=True, held=True) == Skip()


def test_a_task_that_runs_elsewhere_is_left_alone() -> None:
    assert ask(held=True) == Drop()


def test_first_delivery_under_a_new_client_id_is_its_first_run() -> None:
    assert ask(delivered=1) == Run(attempt=1, crashes=0, next_n=1, is_restart=False, is_suspect=False)


def test_redelivery_without_a_trace_means_that_the_worker_died() -> None:
    assert ask() == Run(attempt=1, crashes=1, next_n=1, is_restart=True, is_suspect=False)


def test_second_crash_makes_it_a_suspect_and_the_third_buries_it() -> None:
    assert ask(note(1, "started")) == Run(attempt=1, crashes=2, next_n=2, is_restart=True, is_suspect=True)
    assert ask(note(1, "started"), note(2, "started")) == Bury(attempt=1, crashes=3, next_n=3)


def test_many_redeliveries_of_living_work_are_no_crashes() -> None:
    verdict = ask(delivered=40)
    assert isinstance(verdict, Run)
    assert verdict.crashes == 1


def test_a_failed_run_counts_as_attempt_and_not_as_crash() -> None:
    assert ask(note(1, "failed", due_s=-1)) == Run(attempt=2, crashes=0, next_n=2, is_restart=True, is_suspect=False)


def test_a_retry_that_is_not_due_waits_for_the_rest_of_its_gap() -> None:
    assert ask(note(1, "failed", due_s=3)) == Wait(3.0)


def test_a_retry_noted_by_a_clock_that_is_an_hour_ahead_does_not_wait_for_that_hour() -> None:
    ahead = structs.replace(
        note(1, "failed"), at=NOW + timedelta(hours=1), retry_at=NOW + timedelta(hours=1, seconds=2)
    )
    assert ask(ahead) == Run(attempt=2, crashes=0, next_n=2, is_restart=True, is_suspect=False)


def test_a_run_handed_back_by_a_drain_is_neither_attempt_nor_crash() -> None:
    assert ask(note(1, "returned")) == Run(attempt=1, crashes=0, next_n=2, is_restart=True, is_suspect=False)


def test_crash_during_the_second_attempt_keeps_the_attempt_number() -> None:
    verdict = ask(note(1, "failed", due_s=-9), note(2, "started", attempt=2))
    assert verdict == Run(attempt=2, crashes=1, next_n=3, is_restart=True, is_suspect=False)


def test_old_copy_of_a_task_whose_retry_is_scheduled_makes_way() -> None:
    last = note(1, "failed", due_s=60, scheduled=True)
    assert ask(last) == Reschedule(last)


def test_the_scheduled_retry_itself_runs_even_a_little_early() -> None:
    last = note(1, "failed", due_s=0.12, scheduled=True)
    assert ask(last, delivered=1, attempt=2) == Run(attempt=2, crashes=0, next_n=2, is_restart=True, is_suspect=False)
