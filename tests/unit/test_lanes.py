"""Which lane gets the next credit."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.lanes import PULL_LANES, Lanes


def busy(**backlog: int) -> Lanes:
    lanes = Lanes()
    for lane, count in backlog.items():
        lanes.backlog[lane] = count  # type: ignore[index]  # names of lanes
    return lanes


def test_an_idle_pool_parks_a_request_on_every_lane_so_that_the_next_task_comes_at_once() -> None:
    grants = Lanes().allot(4)
    assert set(grants) == set(PULL_LANES)
    assert grants["normal"] == 4
    assert grants["high"] == grants["low"] == grants["due"] == 1


def test_no_free_slot_means_no_credit() -> None:
    assert busy(high=9).allot(0) == {}


def test_one_busy_lane_gets_every_free_slot() -> None:
    assert busy(low=100).allot(64)["low"] == 64


def test_weights_hold_over_time_and_low_never_starves() -> None:
    lanes = busy(high=10_000, normal=10_000, low=10_000)
    got: Counter[str] = Counter()
    for _ in range(1200):
        for lane, count in lanes.allot(1).items():
            got[lane] += count
            if lane != "due":
                lanes.delivered(lane, pending=10_000)
    assert got["high"] == 800
    assert got["normal"] == 300
    assert got["low"] == 100


def test_a_single_slot_alternates_and_does_not_wait_for_empty_lanes() -> None:
    lanes = busy(normal=5)
    assert lanes.allot(1)["normal"] == 1


@given(
    free=st.integers(0, 300),
    backlog=st.fixed_dictionaries({lane: st.integers(0, 500) for lane in PULL_LANES}),
)
def test_credit_on_lanes_with_work_never_exceeds_the_free_slots(free: int, backlog: dict[str, int]) -> None:
    lanes = busy(**backlog)
    lanes.allot(free)
    assert lanes.committed() <= free
    for lane in PULL_LANES:
        if backlog[lane]:
            assert lanes.credit[lane] <= backlog[lane]


def test_a_backlog_that_does_not_come_is_forgotten_and_frees_the_slots() -> None:
    lanes = Lanes()
    lanes.backlog["low"] = 50
    lanes.allot(2)
    assert lanes.committed() == 2
    lanes.backlog["high"] = 5
    lanes.credit["high"] = 0
    credit = dict(lanes.credit)
    for tenth in range(4):
        lanes.correct(credit, tenth / 10)
    assert lanes.committed() == 0
    assert lanes.allot(2)["high"] == 2


def test_a_lane_that_delivers_keeps_its_backlog() -> None:
    lanes = Lanes()
    lanes.backlog["low"] = 50
    lanes.allot(2)
    for tenth in range(10):
        lanes.delivered("low", pending=40)
        lanes.correct({"low": 2}, tenth / 10)
    assert lanes.committed() == 2
