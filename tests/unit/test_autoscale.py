"""How many processes there should be, decided from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.autoscale import Decision, Demand, Need, Rules, decide
from callboard.runtime.backlog import Ages, Backlog

RULES = Rules(min=0, max=8, cool_down_s=30, grow_after_s=0.5)


def _decide(
    load: int, *, processes: int, now_s: float = 0.0, past: Sequence[Need] = (), oldest_s: float = 5.0, slots: int = 8,
    elsewhere: int = 0, rules: Rules = RULES,
) -> Decision:  # fmt: skip
    demand = Demand(name="nap", load=load, slots=slots, elsewhere=elsewhere, oldest_s=oldest_s)
    return decide([demand], processes=processes, past=past, rules=rules, now_s=now_s)


@pytest.mark.parametrize(
    ("load", "processes", "wanted"), [(0, 0, 0), (1, 0, 1), (8, 1, 1), (9, 1, 2), (64, 0, 8), (1000, 2, 8)]
)
def test_processes_follow_the_work_up_to_the_most(load: int, processes: int, wanted: int) -> None:
    assert _decide(load, processes=processes).processes == wanted


def test_the_first_process_comes_at_once_and_others_when_somebody_has_waited() -> None:
    assert _decide(9, processes=0, oldest_s=0.0).processes == 2
    assert _decide(9, processes=1, oldest_s=0.1).processes == 1
    assert _decide(9, processes=1, oldest_s=0.5).processes == 2


def test_the_age_of_what_waits_is_known_without_reading_it() -> None:
    """A queue that moves is no queue in which somebody waits, however often some are seen in it."""
    ages = Ages()

    def seen(now_s: float, pending: int, deliveries: int) -> float:
        return ages.of(Backlog(capability="nap", pending=pending, deliveries=deliveries), now_s)

    assert seen(0.0, 0, 5) == 0.0
    assert seen(1.0, 3, 5) == 0.0
    assert seen(2.0, 3, 8) == 0.0, "those three are out, and others have come"
    assert seen(3.0, 4, 10) == 1.0, "one of the three that were seen a second ago waits still"
    assert seen(9.0, 4, 10) == 7.0
    assert seen(10.0, 1, 14) == 0.0
    assert seen(11.0, 1, 14) == 1.0
    assert seen(12.0, 1, 0) == 0.0, "a consumer that was made anew has handed out nothing"
    assert seen(13.0, 0, 1) == 0.0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=60))
def test_the_age_is_never_more_than_the_true_one(steps: list[tuple[int, int, bool]]) -> None:
    ages, queue, deliveries = Ages(), list[float](), 0
    for now, (come, go, again) in enumerate(steps):
        queue += [now] * come
        out = min(go, len(queue))
        del queue[:out]
        # what is handed out again counts as well
        deliveries += out + again
        age_s = ages.of(Backlog(capability="nap", pending=len(queue), deliveries=deliveries), now)
        assert 0.0 <= age_s <= (now - queue[0] if queue else 0.0)


def test_slots_of_others_count() -> None:
    assert _decide(16, processes=0, elsewhere=16).processes == 0
    assert _decide(17, processes=0, elsewhere=16).processes == 1


def test_the_greatest_of_several_kinds_decides() -> None:
    few, many = Demand(name="a", load=3, slots=1), Demand(name="b", load=30, slots=6)
    found = decide([few, many], processes=1, past=(), rules=RULES, now_s=0)
    assert (found.processes, found.why) == (5, "b: 30 for 6 slots a process")


def test_bounds_that_changed_are_followed_at_once() -> None:
    assert _decide(0, processes=6, rules=Rules(min=0, max=4)).processes == 4
    assert _decide(0, processes=0, rules=Rules(min=2, max=4)).processes == 2
    assert decide([], processes=1, past=(), rules=RULES, now_s=0).processes == 1


def _run(loads: Sequence[int], *, processes: int, every_s: float = 1.0) -> list[int]:
    """Follow a course of loads, one look a second."""
    past: tuple[Need, ...] = ()
    course = []
    for number, load in enumerate(loads):
        found = _decide(load, processes=processes, past=past, now_s=number * every_s)
        processes, past = found.processes, found.past
        course.append(processes)
    return course


def test_a_process_goes_when_nothing_of_the_cool_down_needed_it() -> None:
    course = _run([64] + [0] * 40, processes=0)
    assert course[:31] == [8] * 31
    assert course[-1] == 0
    # a short need in between keeps as many as it needed
    course = _run([64] + [0] * 20 + [16] + [0] * 25, processes=0)
    assert course[-1] == 3
    assert min(course) == 3


def test_a_load_at_the_edge_does_not_flap() -> None:
    # 8 fit one process exactly, and 9 do not: the second one stays
    course = _run([9, 8] * 60, processes=1)
    assert set(course) == {2}
    # with some room it goes
    assert _run([9] + [7] * 40, processes=1)[-1] == 1


def test_the_past_does_not_grow_without_end() -> None:
    past: tuple[Need, ...] = ()
    for number in range(1000):
        past = _decide(1, processes=1, past=past, now_s=number).past
    assert len(past) == 31
