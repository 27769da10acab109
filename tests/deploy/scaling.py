"""The autoscaler's rehearsal: KEDA's loop drives real worker processes from none to many and back under a load curve.

``make rehearse-scale`` runs it, prints what it did, and writes a drawing (HTML) and every sample (JSON). Pods,
consumers, rules and times are those of the pool ``default`` and its ScaledObject; ``--speed`` runs the autoscaler's
clock faster than the wall's. Processes, signals, drains and the server are real and take the time they take.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import msgspec
from msgspec import Struct

from callboard.runtime import record, subjects
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import Bus
from tests.chaos import checker, journal
from tests.chaos.checker import Evidence, Verdict
from tests.chaos.handlers import Job
from tests.chaos.load import Load
from tests.deploy import keda, render
from tests.deploy.generated import K8S, ROOT, keda_default
from tests.deploy.hpa import Autoscaler
from tests.deploy.kubelet import LOOK_EVERY_S, Deployment
from tests.deploy.pod import Image, Pod
from tests.deploy.rehearsal import CAPABILITY, CAST, JOURNAL
from tests.deploy.scaling_plot import Sample, page
from tests.support.eventually import eventually
from tests.support.server import NatsServer

WITHIN_S = 300.0
SAMPLE_S = 0.25
ACCOUNT = "$G"


class Plan(Struct, frozen=True, kw_only=True):
    """How large a rehearsal is.

    Attributes:
        speed: Seconds of the autoscaler in a second of this machine.
        peak: Tasks a second at the top of the curve, a squared sine of ``length_s``; a tenth of it for ``tail_s``
            more, so that pods go while there is work.
        task_s: How long a task holds its slot.
        most: Pods at most, in place of the manifest's.
    """

    speed: float = 20.0
    peak: float = 16.0
    length_s: float = 40.0
    tail_s: float = 30.0
    task_s: float = 2.0
    most: int = 5

    def rate(self, at_s: float) -> float:
        """Return how many tasks a second are handed in at a moment of the curve."""
        curve = math.sin(math.pi * at_s / self.length_s) ** 2 if at_s < self.length_s else 0.0
        return self.peak * max(curve, 0.1 if at_s > self.length_s / 2 else 0.0)


class Report(Struct, frozen=True, kw_only=True):
    """What a rehearsal left; times in seconds of this machine.

    Attributes:
        wait_s: Longest time from a task's acknowledgement to its start, that of the first pod included.
        ended_busy: Pods that were told to end with tasks in their slots.
    """

    plan: Plan
    samples: list[Sample]
    verdict: Verdict
    tasks: int
    wait_s: float
    ended_busy: int
    forced: list[str]
    crashed: int

    @property
    def problems(self) -> list[str]:
        """Broken promises; a rehearsal that never scaled has shown nothing."""
        found = [*self.verdict.problems, *(f"killed without a cause: {each}" for each in self.forced)]
        wanted = [each.wanted for each in self.samples]
        if self.verdict.reruns:
            found.append(f"{self.verdict.reruns} tasks were begun again though no pod was killed")
        if self.crashed:
            found.append(f"{self.crashed} pods ended by themselves")
        if max(wanted, default=0) < 2:
            found.append("it never wanted two pods: this has shown nothing")
        elif wanted[-1] or self.samples[-1].alive:
            found.append(f"{self.samples[-1].alive} pods are left, {wanted[-1]} are wanted, and there is nothing to do")
        return found

    def __str__(self) -> str:
        """Return the figures."""
        verdict, samples = self.verdict, self.samples
        busy = sum(each.busy for each in samples)
        slots = sum(each.ready for each in samples) * keda_default().slots
        return (
            f"tasks: {self.tasks} acked, {len(verdict.lost)} lost, {len(verdict.doubled)} doubled, "
            f"{verdict.reruns} begun again\n"
            f"pods: 0 to {max(each.wanted for each in samples)} wanted, at most {max(each.ready for each in samples)} "
            f"ready, and back to {samples[-1].alive}; {self.ended_busy} ended with work in their slots\n"
            f"slots busy {busy / max(1, slots):.0%} of the time that they were ready; most lag "
            f"{max(each.lag for each in samples):g}; longest wait of a task {self.wait_s:.1f} s"
        )


class Stage:
    """A server, a Deployment and its autoscaler."""

    def __init__(self, folder: Path, server: NatsServer, plan: Plan) -> None:
        self.plan = plan
        self.began_s = time.monotonic()
        self.samples: list[Sample] = []
        self.rate = 0.0
        self.lag = 0.0
        self.ended_busy = 0
        self.lines = folder / "journal"
        self.lines.mkdir()
        told = re.search(r"Starting http monitor on (127\.0\.0\.1:\d+)", server.log())
        assert told, server.log()
        self._monitoring = f"http://{told[1]}"
        self._folder = folder
        self._url = server.url
        self._objects = render.by_name(render.render(K8S / "overlays" / "dev-single"))
        self._objects["ConfigMap/callboard-code"]["data"]["hello.py"] = f"from {CAST} import hello\n"
        self._scaled = render.by_name(render.render(K8S / "overlays" / "prod-ha"))["ScaledObject/callboard-default"]
        self._scaled["spec"]["maxReplicaCount"] = plan.most
        for trigger in self._scaled["spec"]["triggers"]:
            trigger["metadata"]["account"] = ACCOUNT
        self.scaler = Autoscaler(self._scaled)
        title = "Deployment/callboard-default"
        self.deployment = Deployment("default", self._objects[title], lambda name: self._pod(title, name), self.say)

    @property
    def now_s(self) -> float:
        """Seconds of this machine."""
        return time.monotonic() - self.began_s

    def say(self, text: str) -> None:
        """Print an event with its time."""
        print(f"{self.now_s:7.1f} s  {text}", flush=True)  # noqa: T201 - the log is the outcome

    async def run_jobs(self) -> None:
        """Make streams and consumers: the scaler needs them before there is a pod."""
        for title in sorted(each for each in self._objects if each.startswith("Job/")):
            process = self._pod(title, title.rpartition("/")[2]).start()
            assert await asyncio.to_thread(process.wait, WITHIN_S) == 0, title

    async def scale(self) -> None:
        """Be KEDA, the autoscaler and the controller, and note what there is."""
        looked_s = sampled_s = -math.inf
        while True:
            if self.now_s - looked_s >= self.scaler.poll_s / self.plan.speed:
                looked_s = self.now_s
                await self._look()
            self._reconcile()
            if self.now_s - sampled_s >= SAMPLE_S:
                sampled_s = self.now_s
                self._sample()
            await asyncio.sleep(LOOK_EVERY_S)

    def busy(self) -> Counter[int]:
        """Return the tasks that run by process."""
        runs = checker.runs_of(journal.read(self.lines), self.deployment.deaths)
        return Counter(run.pid for run in runs if run.end_s == math.inf)

    async def _look(self) -> None:
        triggers = self._scaled["spec"]["triggers"]
        try:
            seen = await asyncio.to_thread(keda.fetch, self._monitoring, ACCOUNT)
            loads = {each["name"]: keda.load(seen, each) for each in triggers}
        except (httpx.HTTPError, keda.MissingConsumerError) as error:
            self.say(f"the scaler sees nothing and changes nothing: {error}")
            return
        self.lag = keda.evaluate(self._scaled["spec"]["advanced"]["scalingModifiers"]["formula"], loads)
        before = self.scaler.replicas
        after = self.scaler.see(self.lag, at_s=self.now_s * self.plan.speed)
        if after != before:
            self.say(f"SCALE from {before} to {after}: lag {self.lag:g}")
        self.deployment.wanted = after

    def _reconcile(self) -> None:
        busy = self.busy()
        staying = {pod.pid for pod in self.deployment.pods}
        self.deployment.reconcile()
        gone = staying - {pod.pid for pod in self.deployment.pods}
        self.ended_busy += sum(busy[pid] > 0 for pid in gone)

    def _sample(self) -> None:
        self.samples.append(
            Sample(
                at_s=round(self.now_s, 2),
                rate=round(self.rate, 2),
                lag=self.lag,
                wanted=self.scaler.replicas,
                alive=sum(pod.is_alive for pod in self.deployment.all),
                ready=sum(pod.is_ready for pod in self.deployment.pods),
                busy=self.busy().total(),
            )
        )

    def _pod(self, title: str, name: str) -> Pod:
        image = Image(env={JOURNAL: str(self.lines)}, packages=(ROOT,))
        return Pod(self._objects, title, folder=self._folder / name, nats=self._url, image=image)


async def run(plan: Plan, folder: Path) -> Report:
    """Rehearse and return the report."""
    server = await NatsServer(folder / "server", sync_always=True, more='http: "127.0.0.1:-1"').start()
    try:
        stage = Stage(folder, server, plan)
        await stage.run_jobs()
        bus = await jetstream.connect(server.url, name="rehearsal")
        load = Load(bus, capability=CAPABILITY)
        scaling = asyncio.create_task(stage.scale(), name="scale")
        acked_s: dict[str, float] = {}
        try:
            await _send(stage, load, acked_s)
            await eventually(
                lambda: scaling.done() or _is_over(stage),
                within_s=WITHIN_S,
                every_s=LOOK_EVERY_S,
                what="no pod is left",
            )
            return await _report(stage, bus, load, acked_s)
        finally:
            scaling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await scaling
            await stage.deployment.close()
            await bus.close()
    finally:
        server.stop()


def _is_over(stage: Stage) -> bool:
    last = stage.samples[-1]
    return last.wanted == 0 and last.alive == 0 and last.lag == 0


async def _send(stage: Stage, load: Load, acked_s: dict[str, float]) -> None:
    """Hand in tasks along the curve."""
    plan = stage.plan
    stage.say(f"a curve of {plan.length_s + plan.tail_s:g} s up to {plan.peak:g} tasks a second begins")
    began_s = last_s = time.monotonic()
    due, n = 0.0, 0
    while (at_s := last_s - began_s) < plan.length_s + plan.tail_s:
        stage.rate = plan.rate(at_s)
        while due >= 1:
            task = await load.submit(Job(n=n, sleep_s=plan.task_s), task_id=f"{CAPABILITY}/{n}")
            acked_s[task] = time.monotonic()
            due, n = due - 1, n + 1
        await asyncio.sleep(LOOK_EVERY_S)
        due, last_s = due + stage.rate * (time.monotonic() - last_s), time.monotonic()
    stage.rate = 0.0
    stage.say("the curve has ended")


async def _report(stage: Stage, bus: Bus, load: Load, acked_s: dict[str, float]) -> Report:
    effects: Counter[str] = Counter()
    async for stored in bus.read(subjects.LEDGER, subjects=("cb.result.>",)):
        effects[record.decode_task(stored.data).task] += 1
    events = journal.read(stage.lines)
    deployment = stage.deployment
    deployment.note_ends()
    evidence = Evidence(
        acked=frozenset(load.acked),
        offered=frozenset(load.offered),
        effects=effects,
        statuses={},
        dead=frozenset(),
        pending=frozenset(),
        events=events,
        deaths=tuple(deployment.deaths),
    )
    starts = {event.task: event.at_s for event in reversed(events) if event.kind == "start"}
    return Report(
        plan=stage.plan,
        samples=stage.samples,
        verdict=checker.check(evidence),
        tasks=len(load.acked),
        wait_s=max((starts[task] - at_s for task, at_s in acked_s.items() if task in starts), default=0.0),
        ended_busy=stage.ended_busy,
        forced=[f"{pod.name}, {pod.killed_for}" for pod in deployment.all if pod.killed_for],
        crashed=len(deployment.crashed),
    )


def write(report: Report, path: Path) -> None:
    """Write the drawing to ``path`` and the samples beside it."""
    plan = report.plan
    about = (
        f"KEDA's formula and the autoscaler's rules, {plan.speed:g} of their seconds in one of this machine; tasks of "
        f"{plan.task_s:g} s, up to {plan.peak:g} a second, {keda_default().slots} slots in a pod, {plan.most} pods at "
        "most. Processes, signals and the server are real, and start and drain in their own time."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(report.samples, slots=keda_default().slots, about=about, figures=str(report)), "utf-8")
    body = {"plan": plan, "figures": str(report).splitlines(), "problems": report.problems, "samples": report.samples}
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(body), indent=1))


def main() -> int:
    """Run from the command line; the status is 1 when a promise was broken."""
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=float, default=plan.speed, help="of the autoscaler's clock")
    parser.add_argument("--peak", type=float, default=plan.peak, help="tasks a second at the top of the curve")
    parser.add_argument("--length", type=float, default=plan.length_s, help="seconds of the curve")
    parser.add_argument("--task", type=float, default=plan.task_s, help="seconds of a task")
    parser.add_argument("--most", type=int, default=plan.most, help="pods at most")
    parser.add_argument("--out", type=Path, default=Path("bench/out/rehearse-scale.html"), help="the drawing")
    given = parser.parse_args()
    if min(given.speed, given.peak, given.length, given.task, given.most) <= 0:
        parser.error("every number must be above 0")
    plan = Plan(speed=given.speed, peak=given.peak, length_s=given.length, task_s=given.task, most=given.most)
    with tempfile.TemporaryDirectory(prefix="callboard-scale-") as scratch:
        report = asyncio.run(run(plan, Path(scratch)))
    write(report, given.out)
    print(report)  # noqa: T201 - a command
    print(f"written: {given.out} and {given.out.with_suffix('.json').name}")  # noqa: T201 - a command
    for problem in report.problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
