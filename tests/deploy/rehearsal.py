"""The rehearsal: the pods of ``prod-ha`` as processes, replaced, scaled in and lost under long turns and tasks.

``make rehearse`` runs it and prints each event with its time; the status is 1 when a promise was broken. Commands,
variables, files, probes with their periods and thresholds, and signals with their grace are those of the manifests;
servers are three that the chart's configuration makes. What is not a cluster's: a lost node is noticed at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from callboard.runtime import record, subjects
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import BusError
from tests.chaos import checker, journal
from tests.chaos.checker import Death, Evidence, Verdict
from tests.chaos.handlers import Job
from tests.chaos.journal import Event
from tests.chaos.load import Load
from tests.chaos.troupe import LONG, SINK, Long
from tests.chaos.turns import TurnVerdict, heard, judge
from tests.deploy import render
from tests.deploy.brokers import Brokers
from tests.deploy.generated import K8S, ROOT
from tests.deploy.kubelet import LOOK_EVERY_S, Container, Deployment
from tests.deploy.pod import Image, Pod
from tests.support.eventually import eventually

CAPABILITY = "hello"
WITHIN_S = 240.0
ATTEMPT_S = 2.0
RETRY_S = 0.1
# imported by the pods alone
CAST = "tests.deploy.rehearsal_cast"
JOURNAL = "REHEARSAL_JOURNAL"
# of one pod, for work, leases and whatever it asks
CONNECTIONS = 4
_REFUSED = re.compile(r'"event": "callboard\.v1\.bus\.refused", "subject": "([^"]+)"')
_METADATA = "Metadata-Version: 2.1\nName: rehearsal-cast\nVersion: 1\n"
_ENTRY = f"[callboard.agents]\ncast = {CAST}:long_actor\nsink = {CAST}:sink_actor\n"


class Plan(Struct, frozen=True, kw_only=True):
    """How large a rehearsal is.

    Attributes:
        keys: Actors, each in a turn all the time, with a mail behind it.
        steps: Steps of a turn, of ``step_s`` each; it outlasts every lease and silence.
        task_s: How long a task runs; ``tasks`` of them are under way or waiting all the time.
        hosts, workers: Pods of the pools ``agents`` and ``default``, as their scaler has them.
        grace_s: Time of a pod from SIGTERM to SIGKILL in place of its manifest's, for a control.
    """

    keys: int = 10
    steps: int = 12
    step_s: float = 1.0
    tasks: int = 8
    task_s: float = 4.0
    hosts: int = 2
    workers: int = 2
    grace_s: float | None = None


class Pause(Struct, frozen=True, kw_only=True):
    """A time in which nothing happened, from ``at_s`` on, and between which lines of the files."""

    length_s: float = 0.0
    at_s: float = 0.0
    what: str = "none"


class Report(Struct, frozen=True, kw_only=True):
    """What a rehearsal left.

    Attributes:
        caught: Turns that were under way in a pod when it was told to end, or killed, by event.
        forced: Pods that were killed though nobody meant to, and why.
        too_few: Deployments that had fewer ready pods than their manifest allows, while they were replaced.
        refused: What servers refused to a pod's user again and again, so that it cannot do what it tries.
        turn_pause: Longest time in which an actor with mail did nothing.
        task_wait_s: Longest time from a task's acknowledgement to its start.
    """

    turns: int
    tasks: int
    turn_verdict: TurnVerdict
    task_verdict: Verdict
    caught: dict[str, int]
    forced: list[str]
    too_few: list[str]
    refused: list[str]
    turn_pause: Pause
    began_s: float
    task_wait_s: float

    @property
    def problems(self) -> list[str]:
        """Broken promises; a rehearsal whose events caught no turn has shown nothing."""
        found = [*self.turn_verdict.problems, *self.task_verdict.problems]
        found += [f"killed without a cause: {each}" for each in self.forced]
        found += [f"too few pods were ready: {each}" for each in self.too_few]
        found += [f"refused again and again: {each}" for each in self.refused]
        found += [
            f"{event} caught no turn: this has shown nothing" for event, count in self.caught.items() if not count
        ]
        return found

    def __str__(self) -> str:
        """Return the figures."""
        turns, tasks, pause = self.turn_verdict, self.task_verdict, self.turn_pause
        caught = ", ".join(f"{count} at {event}" for event, count in self.caught.items())
        return (
            f"turns: {self.turns} acked, {len(turns.lost)} lost, {len(turns.doubled)} doubled, "
            f"{len(turns.disordered)} actors out of order; {turns.steps} steps begun, "
            f"{len(turns.repeated)} recorded ones repeated, {turns.steps_again} unrecorded ones begun again\n"
            f"tasks: {self.tasks} acked, {len(tasks.lost)} lost, {len(tasks.doubled)} doubled, "
            f"{len(tasks.overlaps)} begun beside a living run; {tasks.reruns} begun again\n"
            f"turns under way in the pod: {caught}\n"
            f"longest pause of an actor with mail {pause.length_s:.1f} s, from {pause.at_s - self.began_s:.1f} s on "
            f"({pause.what}); of a task until its start {self.task_wait_s:.1f} s"
        )


class Stage:
    """Servers, deployments, and what their processes wrote down."""

    def __init__(self, folder: Path, brokers: Brokers, bus: Bus, *, grace_s: float | None = None) -> None:
        self.grace_s = grace_s
        self.brokers = brokers
        self.bus = bus
        self.deployments: list[Deployment] = []
        self.caught: dict[str, int] = {}
        self.expected: set[str] = set()
        self.too_few: list[str] = []
        self.began_s = time.monotonic()
        self._folder = folder
        self._lines = folder / "journal"
        self._lines.mkdir()
        self._image = Image(env={JOURNAL: str(self._lines)}, packages=(_package(folder), ROOT))
        self._objects = render.by_name(render.render(K8S / "overlays" / "prod-ha"))
        code = self._objects["ConfigMap/callboard-code"]["data"]
        code["hello.py"] = f"from {CAST} import hello\n"

    @property
    def deaths(self) -> list[Death]:
        return [death for each in self.deployments for death in each.deaths]

    @property
    def crashed(self) -> set[int]:
        return set().union(*(each.crashed for each in self.deployments))

    @property
    def forced(self) -> list[str]:
        """Pods that were killed and should not have been."""
        return [
            f"{pod.name}, {pod.killed_for}" for pod in self.pods if pod.killed_for and pod.name not in self.expected
        ]

    @property
    def pods(self) -> list[Container]:
        """All pods that were ever started."""
        return [pod for each in self.deployments for pod in each.all]

    def note_deaths(self) -> None:
        """Look at every pod once more."""
        for each in self.deployments:
            each.note_ends()

    def events(self) -> list[Event]:
        """Return what the steps and tasks wrote."""
        return journal.read(self._lines)

    def say(self, text: str) -> None:
        """Print an event with its time."""
        print(f"{time.monotonic() - self.began_s:7.1f} s  {text}", flush=True)  # noqa: T201 - the log is the outcome

    def turns_in(self, pod: Container) -> int:
        """Return how many turns are under way in a pod."""
        runs = checker.runs_of([event for event in self.events() if event.pid == pod.pid], ())
        return sum(run.end_s == float("inf") and run.task.startswith("turn-") for run in runs)

    def pod(self, title: str, name: str) -> Pod:
        """Make a pod of an object of the overlay."""
        return Pod(
            self._objects,
            title,
            folder=self._folder / name,
            nats=self.brokers.url,
            secrets=self.brokers.secrets,
            image=self._image,
        )

    def deploy(self, name: str, pods: int) -> Deployment:
        """Apply a Deployment."""
        title = f"Deployment/callboard-{name}"
        if self.grace_s is not None:
            render.pods([self._objects[title]])[0]["terminationGracePeriodSeconds"] = self.grace_s
        found = Deployment(name, self._objects[title], lambda each: self.pod(title, each), self.say)
        found.wanted = pods
        self.deployments.append(found)
        return found

    async def run_jobs(self) -> None:
        """Run the Jobs that make streams and consumers, tried again as their manifests say."""
        for title in sorted(each for each in self._objects if each.startswith("Job/")):
            most = self._objects[title]["spec"]["backoffLimit"]
            for number in range(most + 1):
                process = self.pod(title, f"{title.rpartition('/')[2]}-{number}").start()
                if await asyncio.to_thread(process.wait, WITHIN_S) == 0:
                    break
            assert process.returncode == 0, f"{title} failed"
            self.say(f"{title} is complete, try {number + 1}")

    async def settled(self, what: str) -> None:
        """Wait until every deployment has what it wants and nothing is on its way out."""
        await eventually(
            lambda: all(each.is_settled for each in self.deployments),
            within_s=WITHIN_S,
            every_s=LOOK_EVERY_S,
            what=what,
        )
        self.say(what)

    async def in_turn(self, pod: Callable[[], Container]) -> Container:
        """Wait until a pod has turns under way, and return it."""
        await eventually(
            lambda: self.turns_in(pod()) > 0, within_s=WITHIN_S, every_s=LOOK_EVERY_S, what="turns in the pod"
        )
        return pod()


class Traffic:
    """Turns and tasks that are sent for as long as the rehearsal lasts.

    Attributes:
        sent: Numbers of turns by key, in the order of their mail.
        told_s: When the mail of each turn was acknowledged.
        acked_s: When each task was acknowledged.
    """

    def __init__(self, stage: Stage, bus: Bus, plan: Plan) -> None:
        self.sent: dict[str, list[int]] = defaultdict(list)
        self.told_s: dict[int, float] = {}
        self.acked_s: dict[str, float] = {}
        self.load = Load(bus, capability=CAPABILITY)
        self.is_over = False
        self._stage = stage
        self._bus = bus
        self._plan = plan
        self._number = 0
        self._done: Counter[str] = Counter()

    async def run(self) -> None:
        """Keep every actor in a turn with a mail behind it, and so many tasks open, until it is over."""
        while not self.is_over:
            events = self._stage.events()
            ended = {event.n for event in events if event.kind == "end" and event.task.startswith("turn-")}
            done = {event.task for event in events if event.kind == "end"}
            for key in (f"k{number}" for number in range(self._plan.keys)):
                while len([n for n in self.sent[key] if n not in ended]) < 2:
                    await self._tell(key)
            while sum(task not in done for task in self.load.acked) < self._plan.tasks:
                await self._submit()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _tell(self, key: str) -> None:
        n, self._number = self._number, self._number + 1
        numbers = self.sent[key]
        mail = Long(n=n, order=len(numbers), steps=self._plan.steps, step_s=self._plan.step_s)
        while True:
            try:
                # the same id each time: what was stored unseen is not stored again
                _ = await ActorRef(self._bus, f"{LONG}/{key}").tell(mail, id=f"n{n}", timeout_s=ATTEMPT_S)
            except BusError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                numbers.append(n)
                self.told_s[n] = time.monotonic()
                return

    async def _submit(self) -> None:
        n = len(self.load.acked)
        task = await self.load.submit(Job(n=n, sleep_s=self._plan.task_s), task_id=f"{CAPABILITY}/{n}")
        self.acked_s[task] = time.monotonic()


async def run(plan: Plan, folder: Path) -> Report:
    """Rehearse and return the report."""
    async with _staged(folder, grace_s=plan.grace_s) as stage:
        await stage.run_jobs()
        hosts = stage.deploy("agents", plan.hosts)
        workers = stage.deploy("default", plan.workers)
        stage.deploy("registry", 1)
        sender = await stage.brokers.bus("submitter")
        traffic = Traffic(stage, sender, plan)
        try:
            async with asyncio.TaskGroup() as group:
                control = group.create_task(_control(stage), name="control")
                await stage.settled("all pods are ready")
                sending = group.create_task(traffic.run(), name="traffic")
                await _scenes(stage, hosts, workers)
                traffic.is_over = True
                await sending
                await _finish(stage, traffic)
                control.cancel()
        finally:
            await sender.close()
        return await verdict(stage, traffic)


async def _scenes(stage: Stage, hosts: Deployment, workers: Deployment) -> None:
    """Replace all pods, scale in, lose a node."""
    await stage.in_turn(lambda: hosts.pods[0])
    stage.caught["the rolling restart"] = sum(stage.turns_in(pod) for pod in hosts.pods)
    stage.say(f"ROLLING RESTART of agents and default, {stage.caught['the rolling restart']} turns under way")
    for each in (hosts, workers):
        each.restart()
    await stage.settled("the restart is complete")
    for each in (hosts, workers):
        if each.least_ready < each.wanted:  # maxUnavailable of every pool is 0
            stage.too_few.append(f"{each.name}: {each.least_ready} of {each.wanted}")
    stage.say("SCALE-OUT of agents by one")
    hosts.wanted += 1
    await stage.settled("the scale-out is complete")
    youngest = await stage.in_turn(lambda: max(hosts.pods, key=lambda pod: pod.since_s))
    stage.caught["the scale-in"] = stage.turns_in(youngest)
    stage.say(
        f"SCALE-IN of agents and default by one, {stage.caught['the scale-in']} turns under way in {youngest.name}"
    )
    hosts.wanted -= 1
    workers.wanted -= 1
    await stage.settled("the scale-in is complete")
    lost = await stage.in_turn(lambda: hosts.pods[0])
    stage.caught["the lost node"] = stage.turns_in(lost)
    stage.say(f"NODE LOST with {lost.name} and {workers.pods[0].name}, {stage.caught['the lost node']} turns under way")
    stage.expected |= {lost.name, workers.pods[0].name}
    workers.pods[0].kill("its node is lost")
    lost.kill("its node is lost")
    await stage.settled("what was lost has been replaced")


async def _control(stage: Stage) -> None:
    while True:
        for each in stage.deployments:
            each.reconcile()
        await asyncio.sleep(LOOK_EVERY_S)


async def _finish(stage: Stage, traffic: Traffic) -> None:
    """Wait until everything that was acknowledged has come to its end."""
    stage.say("nothing more is sent")

    async def is_done() -> bool:
        outputs = await heard(stage.bus, SINK)
        queues = [await stage.bus.stream_info(name) for name in (subjects.WORK, subjects.LATER)]
        left = sum(each.messages for each in queues if each is not None)
        return not left and sum(map(len, outputs.values())) >= sum(map(len, traffic.sent.values()))

    await eventually(is_done, within_s=WITHIN_S, every_s=0.5, what="all turns and tasks are done")
    stage.say("all turns and tasks are done")


async def verdict(stage: Stage, traffic: Traffic) -> Report:
    """Return what the files, the records and the ledger say together."""
    turns = await judge(stage.bus, stage, dict(traffic.sent))
    effects: Counter[str] = Counter()
    statuses = {}
    async for stored in stage.bus.read(subjects.LEDGER, subjects=("cb.result.>",)):
        entry = record.decode_task(stored.data)
        effects[entry.task] += 1
        statuses[entry.task] = entry.status
    events = stage.events()
    is_task = {event.task for event in events if event.task in traffic.load.offered}
    evidence = Evidence(
        acked=frozenset(traffic.load.acked),
        offered=frozenset(traffic.load.offered),
        effects=effects,
        statuses=statuses,
        dead=frozenset(),
        pending=frozenset(),
        events=[event for event in events if event.task in is_task],
        deaths=tuple(stage.deaths),
    )
    starts = {event.task: event.at_s for event in reversed(events) if event.kind == "start"}
    return Report(
        turns=sum(map(len, traffic.sent.values())),
        tasks=len(traffic.load.acked),
        turn_verdict=turns,
        task_verdict=checker.check(evidence),
        caught=stage.caught,
        forced=stage.forced,
        too_few=stage.too_few,
        refused=[each for pod in stage.pods for each in refusals(pod.name, pod.pod.log())],
        turn_pause=longest_pause(events, traffic.sent, traffic.told_s),
        began_s=stage.began_s,
        task_wait_s=max((starts[task] - at_s for task, at_s in traffic.acked_s.items() if task in starts), default=0.0),
    )


def refusals(name: str, log: str) -> list[str]:
    """Return what a pod's log says was refused more often than its connections can each be told once."""
    said = Counter(_REFUSED.findall(log))
    return [f"{subject} to {name}, {count} times" for subject, count in said.items() if count > CONNECTIONS]


def longest_pause(events: Sequence[Event], sent: dict[str, list[int]], told_s: Mapping[int, float]) -> Pause:
    """Return the longest time in which an actor wrote nothing, though it had mail; a step that runs is no pause."""
    key_of = {n: key for key, numbers in sent.items() for n in numbers}
    last: dict[str, Event] = {}
    longest = Pause()
    for event in events:
        key = key_of.get(event.n) if event.task.startswith("turn-") else None
        if key is None:
            continue
        before = last.get(key)
        is_step = before is not None and (before.kind, event.kind, before.pid) == ("step", "stepped", event.pid)
        if before is not None and not is_step:
            from_s = max(before.at_s, told_s[event.n])
            if event.at_s - from_s > longest.length_s:
                what = f"{key}, {before.kind} of turn {before.n} in process {before.pid} to {event.kind} in {event.pid}"
                longest = Pause(length_s=event.at_s - from_s, at_s=from_s, what=what)
        last[key] = event
    return longest


@contextlib.asynccontextmanager
async def _staged(folder: Path, *, grace_s: float | None) -> AsyncIterator[Stage]:
    brokers = Brokers(folder)
    stage: Stage | None = None
    try:
        await brokers.start()
        bus = await brokers.bus("operator")
        stage = Stage(folder, brokers, bus, grace_s=grace_s)
        stage.say("three servers of deploy/nats/values.yaml are a cluster")
        try:
            yield stage
        finally:
            for each in stage.deployments:
                await each.close()
            await bus.close()
    finally:
        brokers.stop()


def _package(folder: Path) -> Path:
    """Lay out an installed package that offers the actors, as ``@installed`` finds them."""
    site = folder / "site-packages"
    place = site / "rehearsal_cast-1.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(_METADATA, "utf-8")
    (place / "entry_points.txt").write_text(_ENTRY, "utf-8")
    return site


def main() -> int:
    """Run from the command line; the status is 1 when a promise was broken."""
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=plan.keys, help="actors that are in a turn all the time")
    parser.add_argument("--steps", type=int, default=plan.steps, help="steps of a turn")
    parser.add_argument("--tasks", type=int, default=plan.tasks, help="tasks open all the time")
    parser.add_argument("--hosts", type=int, default=plan.hosts, help="pods of the pool agents")
    parser.add_argument("--grace", type=float, help="seconds to end in place of the manifests', for a control")
    parser.add_argument("--workers", type=int, default=plan.workers, help="pods of the pool default")
    parser.add_argument("--keep", type=Path, help="folder for logs, stores and the steps' files, kept afterwards")
    given = parser.parse_args()
    plan = Plan(
        keys=given.keys,
        steps=given.steps,
        tasks=given.tasks,
        hosts=given.hosts,
        workers=given.workers,
        grace_s=given.grace,
    )
    with tempfile.TemporaryDirectory(prefix="callboard-rehearsal-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run(plan, folder.absolute()))
    print(report)  # noqa: T201 - a command
    for problem in report.problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
