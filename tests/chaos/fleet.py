"""Worker processes of a chaos run: started, killed, stopped, let go on; every signal is written down."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from tests.chaos import journal
from tests.chaos.checker import Death
from tests.chaos.worker_main import Options
from tests.support.eventually import eventually

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 30.0


class WorkerProcess:
    """One worker, in a process group of its own; ``root`` is the tree whose code it runs."""

    def __init__(
        self,
        options: Options,
        folder: Path,
        *,
        crash_at: str | None = None,
        root: Path = ROOT,
        more_environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CALLBOARD_")} | dict(more_environment)
        environment["PYTHONPATH"] = os.pathsep.join([str(root / "src"), str(root)])
        if crash_at is not None:
            environment["CALLBOARD_CRASH_AT"] = crash_at
        self.log = folder / "workers.err"
        with self.log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.worker_main", msgspec.json.encode(options).decode()],
                cwd=root,
                env=environment,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; return when."""
        at_s = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return at_s


class Fleet:
    """All workers of a run.

    Attributes:
        crashed: Workers that ended by themselves, as far as ``note_deaths`` has looked.
    """

    def __init__(self, folder: Path, **defaults: Any) -> None:  # noqa: ANN401 - fields of Options
        self.folder = folder
        self.workers: list[WorkerProcess] = []
        self.deaths: list[Death] = []
        self.crashed: set[int] = set()
        self._defaults = defaults

    async def start(
        self,
        *,
        crash_at: str | None = None,
        is_awaited: bool = True,
        root: Path = ROOT,
        more_environment: Mapping[str, str] = MappingProxyType({}),
        **changes: Any,  # noqa: ANN401 - fields of Options
    ) -> WorkerProcess:
        """Start a worker, of the tree at ``root``, and wait until it is ready."""
        options = Options(**({"folder": str(self.folder)} | self._defaults | changes))
        worker = WorkerProcess(options, self.folder, crash_at=crash_at, root=root, more_environment=more_environment)
        self.workers.append(worker)
        if is_awaited:
            await self.ready(worker)
        return worker

    async def ready(self, worker: WorkerProcess) -> None:
        """Wait until a worker is ready."""

        def look() -> bool:
            if not worker.is_alive:
                said = worker.log.read_text()[-3000:]
                message = f"worker {worker.pid} ended with {worker.process.returncode}; the log ends with: {said}"
                raise RuntimeError(message)
            return any(event.kind == "ready" and event.pid == worker.pid for event in self.events())

        await eventually(look, within_s=READY_WITHIN_S, what=f"worker {worker.pid} being ready", every_s=0.05)

    @property
    def alive(self) -> list[WorkerProcess]:
        return [worker for worker in self.workers if worker.is_alive]

    def events(self) -> list[journal.Event]:
        """Return everything written down so far."""
        return journal.read(self.folder)

    def count(self, kind: journal.Kind) -> int:
        """Return how many events of a kind there are."""
        return sum(event.kind == kind for event in self.events())

    def kill(self, worker: WorkerProcess) -> float:
        """End a worker with SIGKILL; return when."""
        at_s = worker.signal(signal.SIGKILL)
        worker.process.wait()
        self.deaths.append(Death(pid=worker.pid, at_s=at_s))
        return at_s

    async def drain(self, worker: WorkerProcess, *, within_s: float) -> float:
        """End a worker with SIGTERM; return how long it took.

        Raises:
            RuntimeError: If it did not end with status 0.
        """
        at_s = worker.signal(signal.SIGTERM)
        await eventually(lambda: not worker.is_alive, within_s=within_s, what=f"the end of {worker.pid}", every_s=0.05)
        took_s = time.monotonic() - at_s
        self.deaths.append(Death(pid=worker.pid, at_s=time.monotonic()))
        if worker.process.returncode != 0:
            message = f"worker {worker.pid} drained with status {worker.process.returncode}"
            raise RuntimeError(message)
        return took_s

    def freeze(self, worker: WorkerProcess) -> float:
        """Stop a worker for longer than its leases last: it counts as dead from now on."""
        at_s = worker.signal(signal.SIGSTOP)
        self.deaths.append(Death(pid=worker.pid, at_s=at_s))
        return at_s

    def cut_off(self, worker: WorkerProcess, at_s: float) -> None:
        """Note that a worker's beats reach nobody: it counts as dead from then on, until ``thaw``."""
        self.deaths.append(Death(pid=worker.pid, at_s=at_s))

    def thaw(self, worker: WorkerProcess) -> float:
        """Let a stopped worker go on."""
        at_s = worker.signal(signal.SIGCONT)
        for index, death in enumerate(self.deaths):
            if death.pid == worker.pid and death.until_s > at_s:
                self.deaths[index] = Death(pid=death.pid, at_s=death.at_s, until_s=at_s)
        return at_s

    def note_deaths(self) -> None:
        """Write down workers that ended by themselves; when exactly is not known, so: with their last event."""
        known = {death.pid for death in self.deaths if death.until_s == float("inf")}
        for worker in self.workers:
            if not worker.is_alive and worker.pid not in known:
                last_s = max((event.at_s for event in self.events() if event.pid == worker.pid), default=0.0)
                self.deaths.append(Death(pid=worker.pid, at_s=last_s))
                self.crashed.add(worker.pid)

    def end(self) -> None:
        """End all that is left, each by its own pid."""
        for worker in self.alive:
            worker.signal(signal.SIGCONT)
            worker.signal(signal.SIGKILL)
            worker.process.wait()
