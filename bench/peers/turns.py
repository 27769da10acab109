"""Long turns on Celery with Redis under kill -9 of workers: ``python -m bench.peers.turns --visibility-s 4``.

Redis listens on loopback and syncs every write; everything ends with the run. The figures are counted from files that
the tasks write, by the code that judges our own turns (``python -m tests.chaos.turn_ledger``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from msgspec import Struct

from bench.peers import servers, venvs
from bench.peers.peer import PeerUnavailableError
from bench.peers.systems.celery import Celery
from tests.chaos import journal
from tests.chaos.checker import Death, overlaps, repeats, runs_of
from tests.chaos.journal import Event

ROOT = Path(__file__).parents[2]
USUAL_VISIBILITY_S = 3600


class Options(Struct, frozen=True, kw_only=True):
    """How a run is to be.

    Attributes:
        visibility_s: Celery's ``visibility_timeout``; None leaves its default, an hour.
        sweep_s: How often it looks for messages whose time is over; None leaves its default, about 100 s, and at each
            start of a worker.
        within_s: When to stop waiting, from the first task on.
    """

    turns: int = 200
    steps: int = 5
    step_s: float = 1.0
    workers: int = 4
    concurrency: int = 10
    kills: int = 8
    kill_every_s: float = 4.0
    seed: int = 7
    visibility_s: int | None = None
    sweep_s: int | None = None
    within_s: float = 180.0


class Scene:
    """Workers on one Redis, and the deaths of these."""

    def __init__(self, folder: Path, python: str, url: str, options: Options) -> None:
        self.deaths: list[Death] = []
        self._folder = folder
        self._python = python
        self._url = url
        self._options = options
        self._workers: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Send everything, kill as planned, wait for the end of all or of the time."""
        options = self._options
        dice = random.Random(options.seed)
        for _ in range(options.workers):
            self._start()
        subprocess.run(
            [self._python, "-m", "bench.peers.apps.celery_turns"], cwd=ROOT, env=self._environment(), check=True
        )
        began_s = time.monotonic()
        while not self.events():
            time.sleep(0.1)
        for _ in range(options.kills):
            time.sleep(options.kill_every_s * dice.uniform(0.7, 1.3))
            self._kill(dice.choice(self._workers))
            time.sleep(1.0)
            self._start()
        while time.monotonic() - began_s < options.within_s and self.finished() < options.turns:
            time.sleep(0.5)
        # whoever runs something a second time may still be at it
        time.sleep(options.steps * options.step_s)

    def events(self) -> list[Event]:
        return journal.read(self._folder)

    def finished(self) -> int:
        return len({event.n for event in self.events() if event.kind == "end"})

    def close(self) -> None:
        for worker in list(self._workers):
            self._kill(worker)

    def _start(self) -> None:
        app = ["-m", "celery", "-A", "bench.peers.apps.celery_turns", "worker", "-c", str(self._options.concurrency)]
        name = f"w{len(self.deaths)}-{len(self._workers)}@loopback"
        with (self._folder / "workers.log").open("ab") as log:
            worker = subprocess.Popen(
                [self._python, *app, "-n", name, "--loglevel", "WARNING"],
                cwd=ROOT, env=self._environment(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._workers.append(worker)

    def _kill(self, worker: subprocess.Popen[bytes]) -> None:
        """End a worker with all its processes, as the loss of a machine does."""
        self._workers.remove(worker)
        at_s = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        self.deaths.append(Death(pid=worker.pid, at_s=at_s))

    def _environment(self) -> dict[str, str]:
        options = self._options
        transport: dict[str, int] = {}
        if options.visibility_s is not None:
            transport["visibility_timeout"] = options.visibility_s
        if options.sweep_s is not None:
            transport |= {"unacked_restore_interval": options.sweep_s, "unacked_restore_throttle": 1}
        told = {
            "broker": self._url,
            "folder": str(self._folder),
            "transport": transport,
            "turns": options.turns,
            "steps": options.steps,
            "step_s": options.step_s,
        }
        return {**os.environ, "PYTHONPATH": str(ROOT), "PEER": json.dumps(told), "C_FORCE_ROOT": "1"}


def account(scene: Scene, options: Options, took_s: float) -> str:
    """Return the run's figures in one line."""
    events = scene.events()
    runs = runs_of(events, scene.deaths)
    begun: dict[tuple[int, int], int] = defaultdict(int)
    returned: set[tuple[int, int]] = set()
    again = 0
    for event in events:
        place = event.n, event.step
        if event.kind == "step":
            again += place in returned
            begun[place] += 1
        elif event.kind == "stepped":
            returned.add(place)
    finished = scene.finished()
    visibility_s = options.visibility_s or USUAL_VISIBILITY_S
    return (
        f"seed {options.seed}, visibility {visibility_s} s, sweep {options.sweep_s or 'default'}: "
        f"{options.turns} turns, {options.kills} workers killed, "
        f"{took_s:.0f} s; finished {finished}, not finished in time {options.turns - finished}, "
        f"turns begun {len(runs)}, begun again {len(repeats(runs))}, second runs while a living worker ran it "
        f"{len(overlaps(runs))}; finished steps run again {again} of {sum(begun.values())} begun"
    )


async def measure(options: Options) -> str:
    """Run it, and return the account.

    Raises:
        PeerUnavailableError: If Celery or Redis cannot be had here.
    """
    python = venvs.python_of(Celery())
    with tempfile.TemporaryDirectory(prefix="cb-peers-turns-") as scratch:
        folder = Path(scratch)
        async with servers.redis("always", folder) as told:
            scene = Scene(folder, python, told["url"], options)
            began_s = time.monotonic()
            try:
                scene.run()
                return account(scene, options, time.monotonic() - began_s)
            finally:
                scene.close()


def main() -> None:
    given = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=given.turns)
    parser.add_argument("--kills", type=int, default=given.kills)
    parser.add_argument("--seed", type=int, default=given.seed)
    parser.add_argument("--within-s", type=float, default=given.within_s)
    parser.add_argument("--visibility-s", type=int, help="visibility_timeout; Celery's default of an hour if left out")
    parser.add_argument("--sweep-s", type=int, help="seconds between its looks for messages whose time is over")
    asked = parser.parse_args()
    options = Options(
        turns=asked.turns,
        kills=asked.kills,
        seed=asked.seed,
        within_s=asked.within_s,
        visibility_s=asked.visibility_s,
        sweep_s=asked.sweep_s,
    )
    try:
        print(asyncio.run(measure(options)))
    except PeerUnavailableError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
