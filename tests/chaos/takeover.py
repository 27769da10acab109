"""Kill the host of a turn, again and again: how soon does another go on, and does it repeat anything?

``python -m tests.chaos.takeover --kills 200`` runs it by hand and prints its figures. Each round sends three mails to
an actor of its own, kills the host in the second step of the first one, and goes on as soon as another host has begun;
a new worker takes the dead one's place, so partitions move all the time as well.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from callboard.runtime.actor.ref import ActorRef
from tests.chaos.fleet import WorkerProcess
from tests.chaos.journal import Event
from tests.chaos.stage import Stage, staged
from tests.chaos.troupe import LONG, Long, task_of
from tests.chaos.turns import TurnVerdict, heard, judge
from tests.support.eventually import eventually

MAILS = 3
WORKERS = 3
ROUND_WITHIN_S = 60.0


class Plan(Struct, frozen=True, kw_only=True):
    """How large a run is."""

    kills: int = 200
    steps: int = 4
    step_s: float = 1.0


class Report(Struct, frozen=True, kw_only=True):
    """What a run left; times in seconds from the kill to the next start of the killed turn."""

    plan: Plan
    takeovers_s: list[float]
    verdict: TurnVerdict
    took_s: float

    @property
    def problems(self) -> list[str]:
        """Broken promises; a run without a second start has tested nothing and is one of them."""
        found = list(self.verdict.problems)
        if self.verdict.reruns < self.plan.kills:
            found.append(f"{self.verdict.reruns} turns were begun again after {self.plan.kills} kills")
        return found

    def __str__(self) -> str:
        """Return the figures."""
        times = sorted(self.takeovers_s)
        p50_s, p99_s = times[len(times) // 2], times[len(times) * 99 // 100]
        return (
            f"{len(times)} kills of a turn's host, {self.took_s:.0f} s: next start after p50 {p50_s:.2f} s, "
            f"p99 {p99_s:.2f} s, max {times[-1]:.2f} s\n{self.verdict}"
        )


async def run(plan: Plan, folder: Path) -> Report:
    """Run it and return the report."""
    began_s = time.monotonic()
    sent: dict[str, list[int]] = {}
    takeovers: list[float] = []
    async with staged(folder, has_actors=True) as stage:
        await asyncio.gather(*(stage.fleet.start() for _ in range(WORKERS)))
        for number in range(plan.kills):
            sent[f"k{number}"] = await _send(stage, plan, number)
            takeovers.append(await _kill(stage, number))
        await eventually(lambda: _is_done(stage, sent), within_s=ROUND_WITHIN_S, what="all outputs", every_s=0.25)
        verdict = await judge(stage.bus, stage.fleet, sent)
    return Report(plan=plan, takeovers_s=takeovers, verdict=verdict, took_s=time.monotonic() - began_s)


async def _send(stage: Stage, plan: Plan, number: int) -> list[int]:
    """Leave the mails of a round; return their numbers."""
    ref = ActorRef(stage.bus, f"{LONG}/k{number}")
    numbers = [number * MAILS + order for order in range(MAILS)]
    for order, n in enumerate(numbers):
        # the killed turn is long, those behind it are short
        steps, step_s = (plan.steps, plan.step_s) if order == 0 else (1, 0.05)
        _ = await ref.tell(Long(n=n, order=order, steps=steps, step_s=step_s))
    return numbers


async def _kill(stage: Stage, number: int) -> float:
    """Kill the host of a round's first turn in its second step; return when another one began it."""
    fleet = stage.fleet
    task = task_of(number * MAILS)
    found: list[Event] = []

    def look() -> bool:
        found[:] = [e for e in fleet.events() if e.task == task and e.kind == "step" and e.step == 1]
        return bool(found)

    await eventually(look, within_s=ROUND_WITHIN_S, what=f"{task} in its second step", every_s=0.02)
    victim = next(worker for worker in fleet.alive if worker.pid == found[-1].pid)
    at_s = fleet.kill(victim)
    replacement = asyncio.create_task(_replace(stage))
    again: list[Event] = []

    def began() -> bool:
        again[:] = [e for e in fleet.events() if e.task == task and e.kind == "start" and e.at_s > at_s]
        return bool(again)

    await eventually(began, within_s=ROUND_WITHIN_S, what=f"{task} begun by another worker", every_s=0.02)
    await replacement
    return again[0].at_s - at_s


async def _replace(stage: Stage) -> WorkerProcess:
    return await stage.fleet.start()


async def _is_done(stage: Stage, sent: dict[str, Sequence[int]] | dict[str, list[int]]) -> bool:
    outputs = await heard(stage.bus, "sink")
    return all(len(outputs.get(key, [])) >= len(numbers) for key, numbers in sent.items())


def main() -> int:
    """Run from the command line; the status is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=Plan().kills)
    parser.add_argument("--keep", type=Path, help="folder for journals and the server's store, kept afterwards")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="callboard-takeover-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run(Plan(kills=given.kills), folder))
    print(report)  # noqa: T201 - a command
    for problem in report.problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
