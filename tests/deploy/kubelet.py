"""A node and a Deployment's controller: pods become processes, are probed, replaced, told to end, and killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from typing import Any

from tests.chaos.checker import Death
from tests.deploy import rollout
from tests.deploy.pod import Pod
from tests.deploy.render import Manifest
from tests.deploy.rollout import Standing, Threshold

LOOK_EVERY_S = 0.1
# a cluster would start such pods for ever, later and later
MOST_CRASHES = 3
Say = Callable[[str], None]


class Container:
    """One pod that runs: probed with the periods and thresholds of its manifest, ended as a kubelet ends it.

    Attributes:
        is_ready: Whether a Service would send it anything, and the controller counts it.
        is_leaving: Its end was ordered.
        killed_for: Why SIGKILL was needed: the end of its grace, a probe, or the loss of its node.
    """

    def __init__(self, name: str, pod: Pod, say: Say) -> None:
        self.name = name
        self.pod = pod
        self.is_ready = False
        self.is_leaving = False
        self.killed_for: str | None = None
        self.since_s = time.monotonic()
        self._say = say
        self.process: subprocess.Popen[bytes] = pod.start()
        say(f"{name} starts, process {self.process.pid}")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def stays(self) -> bool:
        """Whether it runs and is to go on."""
        return self.is_alive and not self.is_leaving

    async def watch(self) -> None:
        """Probe it until it ends or is told to."""
        if not await self._comes_up():
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._probe("readinessProbe", self._set_ready), name=f"ready-{self.name}")
            group.create_task(self._probe("livenessProbe", self._set_alive), name=f"live-{self.name}")

    async def end(self) -> None:
        """End it as a deleted pod is: not ready, SIGTERM, and SIGKILL when its grace is over."""
        self.is_leaving, self.is_ready = True, False
        assert "preStop" not in self.pod.container.get("lifecycle", {}), "no manifest of ours has one"
        began_s = time.monotonic()
        self._say(f"{self.name} gets SIGTERM, {self.pod.grace_s:g} s of grace")
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self.process.wait, self.pod.grace_s)
        except subprocess.TimeoutExpired:
            self.kill("its grace is over")
        took_s = time.monotonic() - began_s
        self._say(f"{self.name} has ended with status {self.process.returncode} after {took_s:.1f} s")

    def kill(self, why: str) -> None:
        """End it at once."""
        self.killed_for, self.is_ready = why, False
        self._say(f"{self.name} gets SIGKILL: {why}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    async def _comes_up(self) -> bool:
        found = Threshold(self.pod.container["startupProbe"]["failureThreshold"])
        while self.stays:
            await asyncio.sleep(self.pod.container["startupProbe"]["periodSeconds"])
            if found.take(is_success=await asyncio.to_thread(self.pod.probe, "startupProbe")):
                if not found.is_up:
                    self.kill(f"it did not start: {self.pod.said}")
                return bool(found.is_up)
        return False

    async def _probe(self, which: str, tell: Callable[[bool], None]) -> None:
        said = self.pod.container[which]
        found = Threshold(said["failureThreshold"])
        while self.stays:
            is_success = await asyncio.to_thread(self.pod.probe, which)
            if found.take(is_success=is_success) and self.stays:
                tell(bool(found.is_up))
            give_up_s = time.monotonic() + said["periodSeconds"]
            while time.monotonic() < give_up_s and self.stays:  # noqa: ASYNC110 - a process tells nobody that it ends
                await asyncio.sleep(LOOK_EVERY_S)

    def _set_ready(self, is_up: bool) -> None:
        self.is_ready, self.since_s = is_up, time.monotonic()
        self._say(f"{self.name} is {'ready' if is_up else f'no longer ready: {self.pod.said}'}")

    def _set_alive(self, is_up: bool) -> None:
        if not is_up:
            self.kill(f"it does not live: {self.pod.said}")


class Deployment:
    """One Deployment: as many pods as are wanted, of the newest template, replaced by the rules of the manifest.

    Attributes:
        wanted: How many pods there shall be.
        deaths: Processes that have ended.
        crashed: Processes that ended by themselves, or not with status 0 when told to.
    """

    def __init__(self, name: str, manifest: Manifest, make: Callable[[str], Pod], say: Say) -> None:
        self.name = name
        self.wanted = 0
        self.deaths: list[Death] = []
        self.crashed: set[int] = set()
        self.least_ready = 0
        self._rules = manifest["spec"]["strategy"]["rollingUpdate"]
        self._make = make
        self._say = say
        self._pods: dict[str, tuple[int, Container]] = {}
        self._template = 0
        self._count = 0
        self._work: set[asyncio.Task[None]] = set()

    @property
    def pods(self) -> list[Container]:
        """The pods that are not being ended."""
        return [pod for _, pod in self._pods.values() if pod.stays]

    @property
    def all(self) -> list[Container]:
        """All pods that were ever started."""
        return [pod for _, pod in self._pods.values()]

    @property
    def is_settled(self) -> bool:
        """Whether all pods are of the newest template, ready and as many as wanted, and no other process is left."""
        alive = [(template, pod) for template, pod in self._pods.values() if pod.is_alive]
        return len(alive) == self.wanted and all(template == self._template and pod.is_ready for template, pod in alive)

    def restart(self) -> None:
        """Begin what ``kubectl rollout restart`` does."""
        self._template += 1
        self.least_ready = self.wanted

    def reconcile(self) -> None:
        """Do what has to be done next.

        Raises:
            AssertionError: If pods end by themselves again and again, with the last one's words.
        """
        self.note_ends()
        assert len(self.crashed) < MOST_CRASHES, self.all[-1].pod.log()[-4000:]
        standing = [
            Standing(name=pod.name, is_new=template == self._template, is_ready=pod.is_ready, since_s=pod.since_s)
            for template, pod in self._pods.values()
            if pod.stays
        ]
        moves = rollout.next_moves(
            standing, wanted=self.wanted, surge=self._rules["maxSurge"], unavailable=self._rules["maxUnavailable"]
        )
        for _ in range(moves.starts):
            self._count += 1
            name = f"{self.name}-{self._count}"
            pod = Container(name, self._make(name), self._say)
            self._pods[name] = self._template, pod
            self._spawn(pod.watch(), f"watch-{name}")
        for name in moves.ends:
            self._spawn(self._pods[name][1].end(), f"end-{name}")
            self._pods[name][1].is_leaving = True
        self.least_ready = min(self.least_ready, sum(pod.is_ready for pod in self.pods))

    def note_ends(self) -> None:
        """Look for processes that have ended, and for those that should not have."""
        for pod in self.all:
            if pod.is_alive or any(death.pid == pod.pid for death in self.deaths):
                continue
            self.deaths.append(Death(pid=pod.pid, at_s=time.monotonic()))
            is_well = pod.killed_for is not None or (pod.is_leaving and pod.process.returncode == 0)
            if not is_well:
                self.crashed.add(pod.pid)
                self._say(f"{pod.name} ENDED BY ITSELF with status {pod.process.returncode}: {pod.pod.log()[-800:]}")

    async def close(self) -> None:
        """End all that is left at once, each by its own process id."""
        for pod in self.all:
            if pod.is_alive:
                pod.is_leaving = True
                pod.process.kill()
                pod.process.wait()
        await asyncio.gather(*self._work)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._work.add(asyncio.create_task(work, name=name))
