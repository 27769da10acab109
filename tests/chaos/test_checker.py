"""The checker itself: it must see each kind of broken promise, and nothing where all is well."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.checker import Death, Evidence, Fault, account, check, overlaps, runs_of, spins
from tests.chaos.journal import Event, Kind


def event(kind: Kind, task: str, pid: int, at_s: float) -> Event:
    return Event(kind=kind, pid=pid, at_s=at_s, task=task, attempt=1)


def evidence(
    *,
    acked: str = "",
    effects: dict[str, int] | None = None,
    events: Sequence[Event] = (),
    deaths: Sequence[Death] = (),
    dead: str = "",
    pending: str = "",
    offered: str = "",
    unnamed_unknown: int = 0,
) -> Evidence:
    return Evidence(
        acked=frozenset(acked),
        offered=frozenset(acked + offered),
        effects=effects or {},
        statuses={},
        dead=frozenset(dead),
        pending=frozenset(pending),
        events=events,
        deaths=deaths,
        unnamed_unknown=unnamed_unknown,
    )


def test_all_is_well_when_each_task_has_one_record_or_waits_or_is_buried() -> None:
    assert check(evidence(acked="abc", effects={"a": 1}, pending="b", dead="c")).problems == []


def test_an_acknowledged_task_without_a_trace_is_lost() -> None:
    assert check(evidence(acked="ab", effects={"a": 1})).lost == {"b"}


def test_two_records_of_a_task_are_seen() -> None:
    assert check(evidence(acked="a", effects={"a": 2})).doubled == {"a": 2}


def test_a_record_nobody_asked_for_is_seen() -> None:
    assert check(evidence(acked="a", effects={"a": 1, "x": 1})).phantom == {"x"}


def test_a_record_of_a_submission_with_an_unknown_outcome_is_no_phantom() -> None:
    assert check(evidence(acked="a", effects={"a": 1, "x": 1}, unnamed_unknown=1)).phantom == frozenset()


def test_a_start_while_another_worker_runs_the_task_is_seen() -> None:
    runs = runs_of([event("start", "a", 1, 0.0), event("start", "a", 2, 1.0), event("end", "a", 1, 2.0)], ())
    assert [(early.pid, late.pid) for early, late in overlaps(runs)] == [(1, 2)]


def test_a_start_after_the_first_run_ended_is_a_rerun_and_no_overlap() -> None:
    events = [event("start", "a", 1, 0.0), event("end", "a", 1, 0.5), event("start", "a", 2, 1.0)]
    verdict = check(evidence(acked="a", effects={"a": 1}, events=events))
    assert (verdict.overlaps, verdict.reruns, verdict.starts) == ([], 1, 2)


def test_a_worker_counts_as_dead_from_the_signal_on_even_if_it_goes_on_later() -> None:
    events = [event("start", "a", 1, 0.0), event("start", "a", 2, 2.0), event("end", "a", 1, 9.0)]
    assert overlaps(runs_of(events, [Death(pid=1, at_s=1.0, until_s=8.0)])) == []


def test_what_a_zombie_begins_after_it_went_on_counts() -> None:
    events = [event("start", "a", 2, 2.0), event("start", "a", 1, 8.5), event("end", "a", 2, 9.0)]
    assert len(overlaps(runs_of(events, [Death(pid=1, at_s=1.0, until_s=8.0)]))) == 1


def test_a_start_between_a_death_and_a_later_one_of_the_same_worker_overlaps_no_dead_run() -> None:
    events = [event("start", "a", 1, 0.0), event("start", "a", 1, 5.0), event("start", "a", 2, 6.0)]
    runs = runs_of(events, [Death(pid=1, at_s=1.0, until_s=4.0)])
    assert [(early.start_s, late.start_s) for early, late in overlaps(runs)] == [(5.0, 6.0)]


def test_a_dead_letter_of_a_task_whose_run_returned_is_seen() -> None:
    events = [event("start", "a", 1, 0.0), event("end", "a", 1, 1.0)]
    assert check(evidence(acked="a", dead="a", events=events)).buried_alive == {"a"}


def test_a_fault_is_charged_with_what_it_hit_and_what_followed() -> None:
    events = [event("start", "a", 1, 0.0), event("start", "b", 2, 0.0), event("start", "a", 2, 5.0)]
    deaths = [Death(pid=1, at_s=1.0)]
    faults = [Fault(name="killed", at_s=1.0, pids=frozenset({1})), Fault(name="later", at_s=9.0)]
    first, second = account(faults, runs_of(events, deaths))
    assert (first.starts, first.in_flight, first.reruns, first.first_rerun_s) == (2, 1, 1, 4.0)
    assert (second.starts, second.in_flight, second.reruns) == (3, 2, 0)


def test_a_task_handed_out_again_at_once_spins() -> None:
    events = [event("claim", "a", 1, at_s) for at_s in (0.0, 0.01, 0.02, 2.0)]
    assert spins(events, gap_s=0.3) == {"a": 2}
