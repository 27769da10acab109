"""Run one seed and print its history: ``python -m tests.simulation.replay --scenario tasks --seed 7``."""

from __future__ import annotations

import argparse
import sys

from callboard.runtime.simulation.history import History
from tests.simulation.scenarios import SCENARIOS, run_seed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.simulation.replay", description=__doc__)
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="tasks")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--brief", action="store_true", help="print the outcome alone")
    chosen = parser.parse_args(arguments)
    history = History()
    try:
        outcome = run_seed(chosen.scenario, chosen.seed, history=history)
    finally:
        if not chosen.brief:
            sys.stdout.writelines(f"{event}\n" for event in history.events)
    problems = outcome.value.problems
    ending = f"seed {outcome.seed}: {', '.join(problems) or 'well'}; {outcome.steps} steps, {outcome.took_s:.1f} s"
    sys.stdout.write(f"{ending}\n{outcome.history_hash}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
