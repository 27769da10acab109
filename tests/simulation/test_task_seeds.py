"""Nothing is lost, doubled or invented, and living work is never run twice, whatever the nemesis does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.breakage import BREAKAGES
from tests.simulation.mutants import TASK_HOMES, broken
from tests.simulation.scenarios import catching_seed, check_seeds, run_seed

CHUNK = 25


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, 200, CHUNK))
def test_tasks_survive(first: int) -> None:
    check_seeds("tasks", range(first, first + CHUNK))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(200, 1000, 100))
def test_tasks_survive_more(first: int) -> None:
    check_seeds("tasks", range(first, first + 100))


def test_the_nemesis_makes_work_run_again() -> None:
    """A fault without a single run to repeat has tested nothing."""
    from tests.simulation.task_scenario import Found

    found = [run_seed("tasks", seed).value for seed in range(6)]
    assert sum(f.verdict.reruns for f in found if isinstance(f, Found)) > 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    ["ack_before_effect", "no_holds", "no_questions", "lapsed_leases_still_answer", "no_doubt"],
)
def test_a_broken_product_is_caught(name: str, record_property: Callable[[str, object], None]) -> None:
    """Negative control."""
    with broken(BREAKAGES[name], TASK_HOMES):
        seed = catching_seed("tasks", range(1000))
    assert seed is not None
    record_property("seed", seed)
