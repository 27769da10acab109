"""The scenarios by name, and how a seed is run so that a failure says how to see it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from callboard.runtime.simulation.history import History
from callboard.runtime.simulation.run import Outcome, Simulation, run
from tests.simulation.actor_scenario import actors
from tests.simulation.task_scenario import tasks


class Finding(Protocol):
    """What every scenario returns."""

    @property
    def problems(self) -> list[str]: ...


MAX_TIME_S = 400.0
Scenario = Callable[[Simulation], Awaitable[Finding]]
SCENARIOS: dict[str, Scenario] = {"actors": actors, "tasks": tasks}


def replay_of(name: str, seed: int) -> str:
    """Return the command that runs a seed again."""
    return f"make simulate SCENARIO={name} SEED={seed}"


def run_seed(name: str, seed: int, *, history: History | None = None) -> Outcome[Finding]:
    """Run one seed of a scenario; an error bears the command that repeats it."""
    try:
        return run(SCENARIOS[name], seed, history=history, max_time_s=MAX_TIME_S)
    except BaseException as error:
        error.add_note(f"again: {replay_of(name, seed)}")
        raise


def check_seeds(name: str, seeds: Iterable[int]) -> None:
    """Fail with every seed that breaks an invariant."""
    found = {seed: problems for seed in seeds if (problems := run_seed(name, seed).value.problems)}
    assert not found, "\n".join(f"{replay_of(name, seed)}: {', '.join(problems)}" for seed, problems in found.items())


def catching_seed(name: str, seeds: Iterable[int]) -> int | None:
    """Return the first seed under which something is wrong, an invariant or an error that nobody took."""
    for seed in seeds:
        try:
            if run_seed(name, seed).value.problems:
                return seed
        except Exception:  # noqa: BLE001 - a mutant may fail in any way, and that is being caught too
            return seed
    return None
