"""Who owns which partition: evenly, alike for all observers, moving little."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.actor.placement import assign, owner_of, rank

HOSTS = st.sets(st.text("abcdefghij-0123456789", min_size=1, max_size=12), min_size=1, max_size=12)
PARTITIONS = st.sampled_from([1, 3, 16, 64])


@given(HOSTS, PARTITIONS)
def test_every_partition_has_one_owner_and_no_two_hosts_differ_by_more_than_one(hosts: set[str], count: int) -> None:
    owners = assign("agent", count, hosts)
    assert sorted(owners) == list(range(count))
    loads = Counter(dict.fromkeys(hosts, 0))
    loads.update(owners.values())
    assert set(loads) == hosts
    assert max(loads.values()) <= math.ceil(count / len(hosts))
    assert min(loads.values()) >= count // len(hosts)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1))
def test_order_and_repeats_of_the_hosts_do_not_matter(hosts: list[str]) -> None:
    assert assign("agent", 16, hosts) == assign("agent", 16, sorted(set(hosts), reverse=True))
    assert rank("agent", 3, hosts) == rank("agent", 3, set(hosts))


def test_sixteen_over_two_and_three_are_even() -> None:
    assert sorted(Counter(assign("agent", 16, ["a", "b"]).values()).values()) == [8, 8]
    assert sorted(Counter(assign("agent", 16, ["a", "b", "c"]).values()).values()) == [5, 5, 6]


def test_no_hosts_own_nothing() -> None:
    assert owner_of("agent", 0, []) is None
    assert rank("agent", 0, []) == []
    assert assign("agent", 16, []) == {}


def test_the_answer_is_the_same_in_every_version_and_process() -> None:
    # a change of these splits a fleet in the middle of an update: each half would see other owners
    assert rank("agent", 0, ["a", "b", "c", "d"]) == ["b", "a", "d", "c"]
    assert "".join(assign("agent", 16, ["a", "b", "c", "d"]).values()) == "babcbbaddddaccac"


@given(HOSTS, st.integers(0, 63))
def test_the_owner_by_rendezvous_moves_only_to_a_new_host_or_from_a_lost_one(hosts: set[str], partition: int) -> None:
    ranked = rank("agent", partition, hosts)
    assert owner_of("agent", partition, hosts) == ranked[0]
    assert owner_of("agent", partition, hosts | {"new"}) in (ranked[0], "new")
    for gone in ranked[1:]:
        assert owner_of("agent", partition, hosts - {gone}) == ranked[0]


@pytest.mark.parametrize(("count", "bound"), [(16, 1.6), (64, 1.4)])
def test_on_average_little_more_than_a_host_s_share_moves(count: int, bound: float) -> None:
    def moved(before: dict[int, str], after: dict[int, str]) -> int:
        return sum(before[p] != after[p] for p in range(count))

    moves, share = 0, 0.0
    for hosts in range(1, 8):
        for case in range(20):
            names = [f"host-{case}-{number}" for number in range(hosts + 1)]
            moves += moved(assign("agent", count, names[:-1]), assign("agent", count, names))
            share += count / (hosts + 1)
    assert 1.0 <= moves / share <= bound


def test_a_naive_assignment_moves_far_more() -> None:
    def naive(hosts: list[str]) -> list[str]:
        return [hosts[partition % len(hosts)] for partition in range(16)]

    names = [f"host-{number}" for number in range(6)]
    moves = sum(a != b for a, b in zip(naive(names[:-1]), naive(names), strict=True))
    assert moves / (16 / 6) > 3
