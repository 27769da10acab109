"""A rolling upgrade under load: workers of an older version are replaced one by one while hundreds of turns are open.

``python -m tests.chaos.upgrade --turns 200 --workers 4`` runs it by hand and prints what it found. The older version is
a commit of this repository's own history; without it (a shallow clone, a plain copy) there is nothing to run.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

from msgspec import Struct, structs

from callboard.runtime import roster
from callboard.runtime.actor.ref import ActorRef
from tests.chaos.fleet import ROOT, WorkerProcess
from tests.chaos.stage import Stage, staged
from tests.chaos.troupe import LONG, SINK, Long
from tests.chaos.turns import TurnVerdict, heard, judge
from tests.support.eventually import eventually

# The version before: the last commit whose workers know neither groups nor pools by label.
OLDER = "3a5127141b4216a81721c27916f65a9a42055b99"
SETTLE_WITHIN_S = 300.0
READY_WITHIN_S = 120.0


class HistoryMissingError(Exception):
    """Raised when the older version cannot be read from the history."""


class Plan(Struct, frozen=True, kw_only=True):
    """How large a run is.

    Attributes:
        turns: Turns open at once, each of an actor of its own, with a second mail behind it.
        steps: Steps of such a turn; it lasts longer than any lease or silence that counts as death.
        grace_s: What a worker is given to finish; below the turns' time some are stopped and go on elsewhere.
        is_back: Whether it goes from this version to the older one.
    """

    turns: int = 200
    workers: int = 4
    steps: int = 30
    step_s: float = 1.0
    grace_s: float = 60.0
    is_back: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether a turn takes longer than a worker has to finish it."""
        return self.grace_s < self.steps * self.step_s


class Report(Struct, frozen=True, kw_only=True):
    """What a run left.

    Attributes:
        open_at_the_start: Turns under way when the first worker was replaced.
        steps_by_old: Steps that workers of the older version ran.
        drains_s: How long each worker took to end.
    """

    plan: Plan
    verdict: TurnVerdict
    open_at_the_start: int
    steps_by_old: int
    steps_by_new: int
    drains_s: list[float]
    took_s: float

    @property
    def problems(self) -> list[str]:
        """Broken promises; a run without both versions, or without open turns, has tested nothing."""
        # where there is no time to finish, turns are stopped: that is the drain's work and no fault
        verdict = structs.replace(self.verdict, broken_off=[]) if self.plan.is_cut else self.verdict
        found = list(verdict.problems)
        if not self.steps_by_old or not self.steps_by_new:
            found.append(f"the versions did not work together: {self.steps_by_old} and {self.steps_by_new} steps")
        if self.open_at_the_start < self.plan.turns:
            found.append(f"only {self.open_at_the_start} of {self.plan.turns} turns were open when the upgrade began")
        if not self.plan.is_cut and self.verdict.reruns:
            found.append(f"{self.verdict.reruns} turns were begun again although there was time to finish them")
        return found

    def __str__(self) -> str:
        """Return a few lines of figures."""
        plan = self.plan
        way = "back to the older version" if plan.is_back else "to this version"
        return (
            f"{plan.turns} open turns of {plan.steps} x {plan.step_s:g} s, {plan.workers} workers {way}, "
            f"{self.took_s:.0f} s; steps by the older {self.steps_by_old}, by this {self.steps_by_new}; drains "
            f"{', '.join(f'{each:.1f}' for each in self.drains_s)} s\n{self.verdict}"
        )


def older_tree(folder: Path) -> Path:
    """Unpack the older version and return where it stands.

    Raises:
        HistoryMissingError: If it is not in the history.
    """
    command = ["git", "-C", str(ROOT), "archive", OLDER, "src", "tests"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        message = f"there is no git: {error}"
        raise HistoryMissingError(message) from error
    if done.returncode:
        message = f"commit {OLDER[:12]} is not in the history: {done.stderr.decode().strip()}"
        raise HistoryMissingError(message)
    target = folder / "older"
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(target, filter="data")
    return target


async def run(plan: Plan, folder: Path) -> Report:
    """Run it and return the report.

    Raises:
        HistoryMissingError: If the older version is not there.
    """
    older = older_tree(folder)
    first, second = (ROOT, older) if plan.is_back else (older, ROOT)
    began_s = time.monotonic()
    sent = {f"k{n}": [n, n + plan.turns] for n in range(plan.turns)}
    async with staged(folder, has_actors=True, drain_grace_s=plan.grace_s) as stage:
        before = await asyncio.gather(*(stage.fleet.start(root=first) for _ in range(plan.workers)))
        await _tell(stage, sent, plan)
        await eventually(
            lambda: stage.fleet.count("start") >= plan.turns, within_s=READY_WITHIN_S, what="open turns", every_s=0.1
        )
        opened = stage.fleet.count("start") - stage.fleet.count("end")
        drains_s = [drained async for drained in _roll(stage, before, second, plan)]
        await eventually(lambda: _is_done(stage, plan), within_s=SETTLE_WITHIN_S, what="all outputs", every_s=0.5)
        verdict = await judge(stage.bus, stage.fleet, sent)
        by_first, by_second = _steps(stage, before)
    old, new = (by_second, by_first) if plan.is_back else (by_first, by_second)
    return Report(
        plan=plan,
        verdict=verdict,
        open_at_the_start=opened,
        steps_by_old=old,
        steps_by_new=new,
        drains_s=drains_s,
        took_s=time.monotonic() - began_s,
    )


async def _roll(stage: Stage, before: list[WorkerProcess], root: Path, plan: Plan) -> AsyncIterator[float]:
    """Replace the workers one after the other: the next one first, then the end of the one before."""
    for worker in before:
        await stage.fleet.start(root=root)
        yield await stage.fleet.drain(worker, within_s=plan.grace_s + 30.0)
    alive = await roster.live_workers(stage.bus)
    assert len(alive) == plan.workers, alive


async def _tell(stage: Stage, sent: dict[str, list[int]], plan: Plan) -> None:
    for key, (first, behind) in sent.items():
        ref = ActorRef(stage.bus, f"{LONG}/{key}")
        _ = await ref.tell(Long(n=first, order=0, steps=plan.steps, step_s=plan.step_s))
        _ = await ref.tell(Long(n=behind, order=1, steps=2, step_s=plan.step_s / 4))


def _steps(stage: Stage, before: list[WorkerProcess]) -> tuple[int, int]:
    pids = {worker.pid for worker in before}
    ran = [event.pid in pids for event in stage.fleet.events() if event.kind == "step"]
    return sum(ran), len(ran) - sum(ran)


async def _is_done(stage: Stage, plan: Plan) -> bool:
    outputs = await heard(stage.bus, SINK)
    return sum(len(set(numbers)) for numbers in outputs.values()) >= 2 * plan.turns


def main() -> int:
    """Run from the command line; the status is 1 when a promise was broken, 2 without the older version."""
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=plan.turns, help="open at once")
    parser.add_argument("--workers", type=int, default=plan.workers)
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--grace", type=float, default=plan.grace_s, help="seconds that a worker has to finish")
    parser.add_argument("--back", action="store_true", help="from this version to the older one")
    given = parser.parse_args()
    plan = Plan(turns=given.turns, workers=given.workers, steps=given.steps, grace_s=given.grace, is_back=given.back)
    with tempfile.TemporaryDirectory(prefix="callboard-upgrade-") as scratch:
        try:
            report = asyncio.run(run(plan, Path(scratch)))
        except HistoryMissingError as error:
            print(f"nothing to run: {error}")  # noqa: T201 - a command
            return 2
    print(report)  # noqa: T201 - a command
    for problem in report.problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
