"""The ledger of three servers: tasks and turns go on while the cluster loses leaders, members and routes.

``python -m tests.chaos.cluster_ledger`` runs every fault and prints a row for tasks and one for turns of each;
``--fault "leader killed"`` runs one. Nothing acknowledged may be lost, nothing doubled, no living worker's work be
begun a second time, and work must flow again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

from callboard.runtime import record, subjects
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import BusError
from tests.chaos import cluster_faults
from tests.chaos.checker import check, repeats, runs_of
from tests.chaos.cluster_faults import KINDS, Kind, Scene
from tests.chaos.fleet import Fleet
from tests.chaos.handlers import Job
from tests.chaos.stage import Stage, staged
from tests.chaos.troupe import LONG, SINK, Long
from tests.chaos.turns import heard, judge, recorded_by
from tests.support.cluster import Servers
from tests.support.eventually import eventually

SETTLE_WITHIN_S = 120.0
# Effects come this far apart without any fault.
QUIET_S = 1.0
# What is sent while nobody leads is lost, and sent again after this: it is part of every recovery that is measured.
ATTEMPT_S = 0.75
RETRY_S = 0.1


class Plan(Struct, frozen=True, kw_only=True):
    """How large a run is.

    Attributes:
        lanes: Submitters, each with one submit in flight, ``pace_s`` apart.
        long_s: What every tenth task lasts: longer than any lease.
        keys: Actors; each gets a mail every ``mail_every_s``.
        workers: Of tasks, and as many of turns.
        before_s: How long all is well before the fault; ``after_s`` is how long the load goes on after it.
        breaks: Protections taken away in the workers, for the controls.
    """

    faults: Sequence[Kind] = tuple(KINDS.values())
    lanes: int = 4
    pace_s: float = 0.1
    task_s: float = 0.2
    long_s: float = 8.0
    keys: int = 6
    steps: int = 4
    step_s: float = 0.4
    mail_every_s: float = 2.5
    workers: int = 2
    before_s: float = 3.0
    after_s: float = 4.0
    breaks: tuple[str, ...] = ()


class Row(Struct, frozen=True, kw_only=True):
    """What one fault did to tasks or to turns.

    Attributes:
        rate: Acknowledged a second, over the whole round.
        redelivered: Deliveries of tasks that had been delivered before; of turns those begun again.
        reruns: Handler starts that had begun before.
        flow_s: From the fault to the end of the longest time without any effect: when they flowed again.
        recovery_s: From the fault to the first effect of work that was sent after it, which waits for what was sent
            before; None when there was none.
        problems: Broken promises.
    """

    fault: Kind
    what: str
    sync: str
    rate: float
    acked: int
    lost: int
    doubled: int
    redelivered: int
    reruns: int
    flow_s: float
    recovery_s: float | None
    problems: tuple[str, ...] = ()

    @property
    def tested_nothing(self) -> bool:
        """Whether redelivery was to be expected and nothing came again, or nothing was sent after the fault."""
        return (self.fault.redelivers and self.what == "tasks" and not self.redelivered) or self.recovery_s is None

    def __str__(self) -> str:
        """Return one line of the table."""
        back = f"{self.recovery_s:.1f}" if self.recovery_s is not None else "-"
        tail = "; ".join([*self.problems, *(["tested nothing"] if self.tested_nothing else [])])
        return (
            f"{self.fault.name:<27}{self.what:<7}{self.sync:<8}{self.rate:>7.1f}{self.acked:>7}{self.lost:>6}"
            f"{self.doubled:>9}{self.redelivered:>13}{self.reruns:>9}{self.flow_s:>8.1f}{back:>12}  {tail}"
        )


HEAD = (
    f"{'fault':<27}{'what':<7}{'sync':<8}{'rate/s':>7}{'acked':>7}{'lost':>6}{'doubled':>9}{'redelivered':>13}"
    f"{'re-runs':>9}{'flow s':>8}{'recovery s':>12}"
)


class Sent:
    """What a load has sent: when each piece was offered first, and which were acknowledged."""

    def __init__(self) -> None:
        self.began_s: dict[str, float] = {}
        self.acked: set[str] = set()


class Round:
    """One fault under load."""

    def __init__(self, plan: Plan, scene: Scene, *, order: dict[str, list[int]], first: int) -> None:
        """Prepare; ``order`` are the numbers of all mails by key, ``first`` is the first number not given away."""
        self.tasks = Sent()
        self.turns = Sent()
        self._plan = plan
        self._scene = scene
        self._order = order
        self._next = first
        self._is_over = False

    @property
    def next(self) -> int:
        """The first number not given away."""
        return self._next

    async def run(self, kind: Kind) -> tuple[float, float]:
        """Load, harm, go on until work flows again; return when the fault began and how long the load lasted."""
        plan = self._plan
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(plan.lanes):
                group.create_task(self._submit(), name=f"submit-{number}")
            for number in range(plan.keys):
                group.create_task(self._mail(f"k{number}"), name=f"mail-{number}")
            await asyncio.sleep(plan.before_s)
            at_s = await kind.act(self._scene)
            await asyncio.sleep(plan.after_s)
            # an election may last longer than that, and until then nothing is sent that is new
            for sent in (self.tasks, self.turns):
                await eventually(
                    lambda sent=sent: any(sent.began_s[name] >= at_s for name in sent.acked),
                    within_s=SETTLE_WITHIN_S,
                    what="work that was sent after the fault",
                    every_s=0.1,
                )
            self._is_over = True
        return at_s, time.monotonic() - began_s

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    async def _submit(self) -> None:
        plan = self._plan
        while not self._is_over:
            n = self._number()
            job = Job(n=n, sleep_s=plan.long_s if n % 10 == 0 else plan.task_s)
            name = f"chaos/{n}"
            self.tasks.began_s[name] = time.monotonic()
            await self._scene.stage.load.submit(job, task_id=name, attempt_s=ATTEMPT_S)
            self.tasks.acked.add(name)
            await asyncio.sleep(plan.pace_s)

    async def _mail(self, key: str) -> None:
        plan = self._plan
        while not self._is_over:
            n = self._number()
            numbers = self._order.setdefault(key, [])
            self.turns.began_s[str(n)] = time.monotonic()
            await self._tell(key, Long(n=n, order=len(numbers), steps=plan.steps, step_s=plan.step_s))
            numbers.append(n)
            self.turns.acked.add(str(n))
            await asyncio.sleep(plan.mail_every_s)

    async def _tell(self, key: str, mail: Long) -> None:
        ref = ActorRef(self._scene.stage.bus, f"{LONG}/{key}")
        while True:
            try:
                # the same id each time: what was stored unseen is not stored again
                _ = await ref.tell(mail, id=f"n{mail.n}", timeout_s=ATTEMPT_S)
            except BusError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return


async def run(plan: Plan, folder: Path) -> list[Row]:
    """Run every fault of the plan on one cluster; return two rows for each."""
    async with staged(folder, servers=3, has_mesh=True, breaks=plan.breaks, logs_claims=True) as stage:
        return await run_on(stage, plan, folder)


async def run_on(stage: Stage, plan: Plan, folder: Path) -> list[Row]:
    """Run every fault of the plan on servers that stand already; return two rows for each."""
    rows: list[Row] = []
    (folder / "turns").mkdir()
    turns = Fleet(folder / "turns", url=stage.servers.url, has_actors=True, breaks=plan.breaks)
    scene = Scene(stage, stage.fleet, turns)
    try:
        await asyncio.gather(
            *(stage.fleet.start() for _ in range(plan.workers)), *(turns.start() for _ in range(plan.workers))
        )
        order: dict[str, list[int]] = {}
        first = 0
        for kind in plan.faults:
            await healthy(scene)
            if len(stage.servers.all) > 1:
                await cluster_faults.gather(stage.bus, stage.servers)
            current = Round(plan, scene, order=order, first=first)
            seen_s = time.monotonic()
            at_s, took_s = await current.run(kind)
            first = current.next
            await settled(scene, order)
            for row in await _rows(kind, scene, current, order, at_s=at_s, took_s=took_s, since_s=seen_s):
                rows.append(row)
                print(row, flush=True)  # noqa: T201 - a command, and a test's evidence
    finally:
        turns.end()
    return rows


async def healthy(scene: Scene) -> None:
    """Wait until every stream has all its copies; a single server has no others."""
    if len(scene.servers.all) > 1:
        await cluster_faults.healthy(scene.stage.bus)


async def settled(scene: Scene, order: Mapping[str, list[int]]) -> None:
    """Wait until no task waits or runs, every mail has reached the sink, and no run is under way."""
    await healthy(scene)
    await scene.stage.settled(within_s=SETTLE_WITHIN_S)

    async def is_done() -> bool:
        try:
            outputs = await heard(scene.stage.bus, SINK)
        except BusError:
            return False
        if any(not set(numbers) <= set(outputs.get(key, [])) for key, numbers in order.items()):
            return False
        alive = {worker.pid for worker in scene.turns.alive}
        events = [event for event in scene.turns.events() if event.pid in alive]
        ends = sum(event.kind in {"end", "fail"} for event in events)
        return ends == sum(event.kind == "start" for event in events)

    await eventually(is_done, within_s=SETTLE_WITHIN_S, what="every mail at the sink, and quiet", every_s=0.25)


async def _rows(
    kind: Kind,
    scene: Scene,
    current: Round,
    order: dict[str, list[int]],
    *,
    at_s: float,
    took_s: float,
    since_s: float,
) -> list[Row]:
    tasks = await _row_of_tasks(kind, scene, current.tasks, at_s=at_s, took_s=took_s, since_s=since_s)
    turns = await _row_of_turns(kind, scene, current.turns, order, at_s=at_s, took_s=took_s, since_s=since_s)
    return [tasks, turns]


async def _row_of_tasks(kind: Kind, scene: Scene, own: Sent, *, at_s: float, took_s: float, since_s: float) -> Row:
    evidence = await scene.stage.evidence()
    recorded = await _recorded_at(scene.stage.bus)
    back_s = recovery_s(own.began_s, recorded, at_s=at_s)
    verdict = check(evidence)
    claims = [event for event in scene.tasks.events() if event.kind == "claim" and event.at_s >= since_s]
    return Row(
        fault=kind,
        what="tasks",
        sync=sync_mode(scene.servers),
        rate=len(own.acked) / took_s,
        acked=len(own.acked),
        lost=len(verdict.lost),
        doubled=len(verdict.doubled),
        redelivered=sum(event.delivered > 1 for event in claims),
        reruns=sum(run.start_s >= since_s for run in repeats(runs_of(evidence.events, evidence.deaths))),
        flow_s=flow_s(recorded.values(), at_s=at_s, until_s=max(seen_s(own), at_s + (back_s or 0.0))),
        recovery_s=back_s,
        problems=tuple(verdict.problems),
    )


async def _row_of_turns(
    kind: Kind, scene: Scene, own: Sent, order: dict[str, list[int]], *, at_s: float, took_s: float, since_s: float
) -> Row:
    judged = await judge(scene.stage.bus, scene.turns, order)
    written = await recorded_by(scene.stage.bus)
    steps = {str(n): entry.at_s for (n, step), entry in written.items() if step == 0}
    every = [entry.at_s for entry in written.values()]
    resumed_s = recovery_s(own.began_s, steps, at_s=at_s)
    again = sum(run.start_s >= since_s for run in repeats(runs_of(scene.turns.events(), scene.turns.deaths)))
    return Row(
        fault=kind,
        what="turns",
        sync=sync_mode(scene.servers),
        rate=len(own.acked) / took_s,
        acked=len(own.acked),
        lost=len(judged.lost),
        doubled=len(judged.doubled),
        redelivered=again,
        reruns=again,
        flow_s=flow_s(every, at_s=at_s, until_s=max(seen_s(own), at_s + (resumed_s or 0.0))),
        recovery_s=resumed_s,
        problems=tuple(judged.problems),
    )


def seen_s(sent: Sent) -> float:
    """Return when the last piece was offered: later silence is the load's."""
    return max(sent.began_s.values())


def flow_s(effects_s: Iterable[float], *, at_s: float, until_s: float) -> float:
    """Return how long after the fault the longest time without an effect ended; 0 when there was hardly any."""
    times = [at_s, *sorted(each for each in effects_s if at_s <= each <= until_s), until_s]
    silence_s, end_s = max((after - before, after) for before, after in pairwise(times))
    return end_s - at_s if silence_s > QUIET_S else 0.0


def recovery_s(began_s: Mapping[str, float], effects_s: Mapping[str, float], *, at_s: float) -> float | None:
    """Return how long after the fault the first effect stood of work that was first offered after it."""
    after = [effects_s[name] for name, first_s in began_s.items() if first_s >= at_s and name in effects_s]
    return min(after) - at_s if after else None


def sync_mode(servers: Servers) -> str:
    """Return how the servers sync, as their configuration says."""
    texts = [(server.folder / "server.conf").read_text("utf-8") for server in servers.all]
    return "always" if all("sync_interval: always" in text for text in texts) else "default"


async def _recorded_at(bus: Bus) -> dict[str, float]:
    """Return when each task's record was stored, in monotonic seconds: servers and we share a clock."""
    offset_s = datetime.now(UTC).timestamp() - time.monotonic()
    found = {}
    async for stored in bus.read(subjects.LEDGER, subjects=("cb.result.>",)):
        found[record.decode_task(stored.data).task] = stored.time.timestamp() - offset_s
    return found


def problems(rows: Sequence[Row]) -> list[str]:
    """Return broken promises, in words; a row that tested nothing is one of them."""
    found = [f"{row.fault.name}, {row.what}: {problem}" for row in rows for problem in row.problems]
    return found + [f"{row.fault.name}, {row.what}: tested nothing" for row in rows if row.tested_nothing]


def main() -> int:
    """Run from the command line; the status is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", action="append", choices=list(KINDS), help="only this one; may be repeated")
    parser.add_argument("--keep", type=Path, help="folder for journals and stores, kept afterwards")
    given = parser.parse_args()
    plan = Plan(faults=tuple(KINDS[name] for name in given.fault or KINDS))
    print(HEAD)  # noqa: T201 - a command
    with tempfile.TemporaryDirectory(prefix="callboard-cluster-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = asyncio.run(run(plan, folder))
    found = problems(rows)
    for problem in found:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
