"""Every mail is handled once and in order, effects and answers included, whatever the nemesis does to the hosts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.actor_mutants import HOMES, MUTANTS
from tests.simulation.actor_scenario import Found
from tests.simulation.mutants import broken
from tests.simulation.scenarios import catching_seed, check_seeds, run_seed

CHUNK = 20
# Where to begin looking for what few seeds find; all are tried all the same.
RARE = {"blind_attempts": 90}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, 200, CHUNK))
def test_actors_survive(first: int) -> None:
    check_seeds("actors", range(first, first + CHUNK))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(200, 1000, 100))
def test_actors_survive_more(first: int) -> None:
    check_seeds("actors", range(first, first + 100))


def test_the_nemesis_makes_partitions_change_hands_and_turns_run_again() -> None:
    """Faults that nobody felt have tested nothing."""
    found = [outcome for seed in range(6) if isinstance(outcome := run_seed("actors", seed).value, Found)]
    assert sum(outcome.takeovers for outcome in found) > 0
    assert sum(outcome.turns for outcome in found) > sum(outcome.messages for outcome in found) / 2
    assert {kind for outcome in found for kind in outcome.strikes} >= {"crash", "pause", "cut", "restart"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_actor_runtime_is_caught(name: str, record_property: Callable[[str, object], None]) -> None:
    """Negative control."""
    first = RARE.get(name, 0)
    with broken(MUTANTS[name], HOMES):
        seed = catching_seed("actors", (*range(first, 1000), *range(first)))
    assert seed is not None
    record_property("seed", seed)
