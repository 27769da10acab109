"""The choice among agents: fair by capacity, never somebody unwell, the same for the same question."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from callboard.runtime.registry.message import Status
from callboard.runtime.registry.select import HEALTHY, Candidate, choose

STATUSES: list[Status] = ["idle", "busy", "paused", "failed", "draining", "suspect", "offline"]

candidates = st.lists(
    st.builds(
        Candidate,
        address=st.integers(0, 50).map(lambda n: f"a/{n:02}"),
        status=st.sampled_from(STATUSES),
        busy=st.integers(0, 20),
        weight=st.integers(1, 8),
        latency_s=st.none() | st.floats(0.001, 10.0),
    ),
    max_size=12,
    unique_by=lambda found: found.address,
).map(lambda found: sorted(found, key=lambda one: one.address))


def _share(weights: list[int], picks: int) -> list[float]:
    agents = [Candidate(f"a/{n}", weight=weight) for n, weight in enumerate(weights)]
    for turn in range(picks):
        chosen = choose(agents, turn=turn).address
        agents = [replace(one, busy=one.busy + (one.address == chosen)) for one in agents]
    return [one.busy / picks for one in agents]


def test_capacities_1_1_2_4_share_within_10_percent() -> None:
    wanted = [1 / 8, 1 / 8, 2 / 8, 4 / 8]
    shares = _share([1, 1, 2, 4], 800)
    assert all(abs(share - fair) <= 0.1 * fair for share, fair in zip(shares, wanted, strict=True)), shares


def test_the_check_of_shares_can_fail() -> None:
    """Negative control: by turn alone the shares are equal, which the check above would refuse."""
    agents = [Candidate(f"a/{n}", weight=1) for n in range(4)]
    counts = Counter(choose(agents, turn=turn).address for turn in range(800))
    assert [counts[f"a/{n}"] / 800 for n in range(4)] == [0.25] * 4


@given(candidates, st.integers(0, 1000))
def test_the_chosen_one_is_well_and_nobody_well_has_less_load(found: list[Candidate], turn: int) -> None:
    choice = choose(found, turn=turn)
    well = [one for one in found if one.status in HEALTHY]
    assert (choice.address is None) == (not well)
    assert choice.why.able == len(found)
    assert choice.why.healthy == len(well)
    assert sum(choice.why.refused.values()) == len(found) - len(well)
    if choice.address is not None:
        (chosen,) = [one for one in well if one.address == choice.address]
        assert chosen.load == min(one.load for one in well) == choice.why.load
        assert choice.why.runner_up != chosen.address


@given(candidates, st.integers(0, 1000))
def test_the_same_question_has_the_same_answer(found: list[Candidate], turn: int) -> None:
    assert choose(found, turn=turn) == choose(list(found), turn=turn)


@given(candidates, st.integers(0, 1000))
def test_without_the_chosen_one_the_runner_up_is_chosen(found: list[Candidate], turn: int) -> None:
    choice = choose(found, turn=turn)
    rest = [one for one in found if one.address != choice.address]
    if choice.why.runner_up:
        second = next(one for one in rest if one.address == choice.why.runner_up)
        assert second.load == min(one.load for one in rest if one.status in HEALTHY)


def test_ties_go_to_the_faster_one_then_by_turn() -> None:
    slow, fast, same = Candidate("a/1", latency_s=1.0), Candidate("a/2", latency_s=0.1), Candidate("a/3", latency_s=0.1)
    assert [choose([slow, fast, same], turn=turn).address for turn in range(3)] == ["a/2", "a/2", "a/3"]
    assert choose([slow, Candidate("a/9")], turn=0).address == "a/9"


def test_noise_in_latency_decides_nothing() -> None:
    agents = [Candidate("a/1", latency_s=0.101), Candidate("a/2", latency_s=0.102)]
    assert {choose(agents, turn=turn).address for turn in range(2)} == {"a/1", "a/2"}


def test_the_choice_is_explained() -> None:
    agents = [Candidate("a/1", busy=3), Candidate("a/2", busy=1, weight=2), Candidate("a/3", "paused")]
    why = choose(agents, turn=0, refused={"labels.zone": 4}).why
    assert why.text == ("a/2 has the least load, 0.5, of 2 that take work; left out: 4 labels.zone, 1 paused")
    assert (why.runner_up, why.runner_up_load) == ("a/1", 3.0)


def test_that_nobody_takes_work_is_explained() -> None:
    why = choose([Candidate("a/1", "paused"), Candidate("a/2", "offline")], turn=0).why
    assert why.text == "nobody takes work: 1 offline, 1 paused"
