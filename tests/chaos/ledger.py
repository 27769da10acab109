"""The ledger run: thousands of tasks, killed workers and servers, an outage, a frozen worker; nothing may be lost.

``python -m tests.chaos.ledger --tasks 5000 --seed 7`` runs it by hand and prints its table.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from tests.chaos.checker import Evidence, Fault, Verdict, check, runs_of, table
from tests.chaos.handlers import Job
from tests.chaos.nemesis import Faults, Nemesis
from tests.chaos.stage import staged

SETTLE_WITHIN_S = 120.0


class Plan(Struct, frozen=True, kw_only=True):
    """How large a run is.

    Attributes:
        long_share: Share of the tasks that sleep 2 to 12 s.
    """

    tasks: int = 5000
    seed: int = 7
    workers: int = 4
    concurrency: int = 16
    worker_kills: int = 4
    server_kills: int = 2
    outages: int = 1
    freezes: int = 1
    long_share: float = 0.02


class Report(Struct, frozen=True, kw_only=True):
    """What a run left."""

    plan: Plan
    faults: list[Fault]
    evidence: Evidence
    verdict: Verdict
    began_s: float
    took_s: float

    @property
    def problems(self) -> list[str]:
        """Broken promises; a run in which nothing ran again has tested nothing and is one of them."""
        found = list(self.verdict.problems)
        if not self.verdict.reruns:
            found.append("no task ran a second time: this has tested nothing")
        if len(self.evidence.acked) != self.plan.tasks:
            found.append(f"{len(self.evidence.acked)} of {self.plan.tasks} tasks were acknowledged")
        return found

    def __str__(self) -> str:
        """Return the table."""
        verdict, plan = self.verdict, self.plan
        runs = runs_of(self.evidence.events, self.evidence.deaths)
        lines = [
            f"seed {plan.seed}: {plan.tasks} tasks, {plan.workers} x {plan.concurrency} slots, {self.took_s:.0f} s",
            *table(self.faults, runs, began_s=self.began_s),
        ]
        lines.append(
            f"starts {verdict.starts}, re-runs {verdict.reruns}, retries {verdict.retries}, lost {len(verdict.lost)}, "
            f"double records {len(verdict.doubled)}, phantom {len(verdict.phantom)}, "
            f"dead letters {len(self.evidence.dead)}, starts while another living worker ran it {len(verdict.overlaps)}"
        )
        lines += [f"  overlap: {a.task} by {a.pid} {a.start_s - self.began_s:.2f}..{a.end_s - self.began_s:.2f}, "
                  f"by {b.pid} at {b.start_s - self.began_s:.2f}" for a, b in verdict.overlaps[:10]]  # fmt: skip
        return "\n".join(lines)


def jobs_of(plan: Plan) -> list[Job]:
    """Return the jobs: most short, some of a second or two, one in fifty of up to twelve; one in fifty fails once."""
    dice = random.Random(plan.seed)
    jobs = []
    for n in range(plan.tasks):
        roll = dice.random()
        sleep_s = (
            dice.uniform(0.02, 0.3) if roll < 0.9 else dice.uniform(0.3, 2) if roll < 0.98 else dice.uniform(2, 12)
        )
        is_failing = dice.random() < 0.02
        jobs.append(Job(n=n, how="raise" if is_failing else "sleep", failures=1, sleep_s=round(sleep_s, 3)))
    return jobs


async def run(plan: Plan, folder: Path) -> Report:
    """Run it and return the report."""
    began_s = time.monotonic()
    async with staged(folder, concurrency=plan.concurrency) as stage:
        for _ in range(plan.workers):
            await stage.fleet.start(is_awaited=False)
        for worker in stage.fleet.workers:
            await stage.fleet.ready(worker)
        nemesis = Nemesis(
            stage,
            Faults(
                worker_kills=plan.worker_kills,
                server_kills=plan.server_kills,
                outages=plan.outages,
                freezes=plan.freezes,
            ),
            seed=plan.seed + 1,
            total=plan.tasks,
            pause=plan.workers * plan.concurrency,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(stage.load.submit_all(jobs_of(plan), seed=plan.seed), name="load")
            group.create_task(nemesis.run(), name="nemesis")
        await stage.settled(within_s=SETTLE_WITHIN_S)
        evidence = await stage.evidence()
        return Report(
            plan=plan,
            faults=nemesis.faults,
            evidence=evidence,
            verdict=check(evidence),
            began_s=began_s,
            took_s=time.monotonic() - began_s,
        )


def main() -> int:
    """Run from the command line; the status is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=Plan().tasks)
    parser.add_argument("--seed", type=int, default=Plan().seed)
    parser.add_argument("--workers", type=int, default=Plan().workers)
    parser.add_argument("--concurrency", type=int, default=Plan().concurrency)
    parser.add_argument("--keep", type=Path, help="folder for journals and the server's store, kept afterwards")
    given = parser.parse_args()
    plan = Plan(tasks=given.tasks, seed=given.seed, workers=given.workers, concurrency=given.concurrency)
    with tempfile.TemporaryDirectory(prefix="callboard-chaos-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run(plan, folder))
    print(report)  # noqa: T201 - a command
    for problem in report.problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
