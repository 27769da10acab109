"""Approvals parked over the death of every process: ``python -m tests.chaos.parked --approvals 50``."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from msgspec import Struct

from callboard.agents import approvals
from callboard.agents.approval import COMPANIONS, approve
from callboard.runtime import roster, subjects
from callboard.runtime.actor import record
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import TopologySettings
from callboard.runtime.worker import Worker
from tests.support.eventually import eventually
from tests.support.server import NatsServer

ROOT = Path(__file__).parents[2]
PR_SET_PDEATHSIG = 1
WITHIN_S = 90.0


class Refund(Struct):
    order: int


class Report(Struct, kw_only=True):
    """What a run came to.

    Attributes:
        parked: Turns parked before everything was killed.
        in_use: Turns in progress on all workers, as their beats say, while all wait: before the deaths, and after.
        took_s: From the first grant to the last effect.
        counts: Lines of each kind in the file that the actors write.
        doubled: Effects, calls or resumptions that happened more than once, by kind and order.
    """

    approvals: int
    parked: int = 0
    in_use: tuple[int, int] = (-1, -1)
    took_s: float = 0.0
    counts: dict[str, int] = {}
    doubled: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What is not as promised."""
        found = []
        if self.parked != self.approvals:
            found.append(f"{self.parked} of {self.approvals} parked")
        if self.in_use != (0, 0):
            found.append(f"slots in use while all waited: {self.in_use}")
        wanted = dict.fromkeys(("call", "resumed", "paid"), self.approvals)
        if self.counts != wanted:
            found.append(f"lines {self.counts}, wanted {wanted}")
        return found + [f"more than once: {each}" for each in self.doubled]

    def __str__(self) -> str:
        """Return the figures on one line."""
        return (
            f"{self.approvals} approvals, {self.parked} parked; slots in use before and after the death of every "
            f"process {self.in_use[0]} and {self.in_use[1]}; {self.counts}, doubled {len(self.doubled)}; all resumed "
            f"and done {self.took_s:.1f} s after the first grant"
        )


def clerk(folder: Path) -> type[Actor]:
    """Return an actor that pays when it may, and writes a line for whatever it does."""

    def note(kind: str, order: int) -> int:
        fd = os.open(folder / "lines", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{kind} {order}\n".encode())
        os.close(fd)
        return order

    class Clerk(Actor, name="clerk"):
        companions = COMPANIONS

        @on
        async def pay(self, m: Refund) -> None:
            order = await self.step("call", note, "call", m.order)
            await approve(self, Refund(order), to="ops", on_timeout="wait")
            # no step: each run that came past the approval leaves its line
            note("resumed", order)
            await self.step("pay", note, "paid", order)

    return Clerk


class Fleet:
    """Worker processes of the run."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, count: int) -> None:
        """Start so many."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        with (self._folder / "workers.log").open("ab") as log:
            for _ in range(count):
                command = [sys.executable, "-m", "tests.chaos.parked", "--serve", self._url, str(self._folder)]
                self._running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))

    def kill(self) -> None:
        """End all with SIGKILL."""
        for process in self._running:
            process.send_signal(signal.SIGKILL)
            process.wait()
        self._running.clear()


async def run(folder: Path, *, count: int = 50, workers: int = 2) -> Report:
    """Park, kill everything, start it again, grant, and count."""
    report = Report(approvals=count)
    server = NatsServer(folder / "server", sync_always=True)
    await server.start()
    fleet = Fleet(server.url, folder)
    try:
        bus = await connect(server.url, name="judge")
        await apply(bus, await plan(bus, declared(TopologySettings())))
        fleet.start(workers)
        for order in range(count):
            await ActorRef(bus, f"clerk/{order}").tell(Refund(order))
        report.parked = await _parked(bus, count)
        before = await _in_use(bus, workers)
        fleet.kill()
        await bus.close()
        await server.restart()
        bus = await connect(server.url, name="judge")
        fleet.start(workers)
        report.in_use = (before, await _in_use(bus, workers))
        began_s = time.monotonic()
        await _grant_all(bus, count)
        await _done(bus, count)
        report.took_s = time.monotonic() - began_s
        await bus.close()
    finally:
        fleet.kill()
        server.stop()
    lines = (folder / "lines").read_text().splitlines()
    report.counts = dict(Counter(line.split()[0] for line in lines))
    report.doubled = [line for line, times in Counter(lines).items() if times > 1]
    return report


async def _parked(bus: Bus, count: int) -> int:
    async def parked() -> int:
        return sum(len(each.parked) for each in await _records(bus))

    async def all_asked() -> bool:
        return await parked() == count and len(await approvals.ls(bus)) == count

    await eventually(all_asked, within_s=WITHIN_S, what=f"{count} approvals asked for and their turns parked")
    return await parked()


async def _in_use(bus: Bus, workers: int) -> int:
    """Return how many turns run on all workers, once all are heard."""
    found: list[int] = []

    async def heard() -> bool:
        async with roster.listening(bus) as listener:
            await SYSTEM_CLOCK.sleep(roster.LISTEN_S)
        found.append(sum(load.running for beat in listener.alive for load in beat.actors))
        return len([beat for beat in listener.alive if beat.actors]) == workers

    await eventually(heard, within_s=WITHIN_S, what=f"{workers} workers that beat")
    return found[-1]


async def _grant_all(bus: Bus, count: int) -> None:
    pending = await approvals.ls(bus)
    assert len(pending) == count, f"{len(pending)} approvals wait, not {count}"
    await asyncio.gather(
        *(approvals.grant(bus, each.id, by="ops", hash=each.entry.hash) for each in pending),
    )


async def _done(bus: Bus, count: int) -> None:
    async def done() -> bool:
        records = await _records(bus)
        return len(records) == count and not any(each.parked for each in records)

    await eventually(done, within_s=WITHIN_S, what="the end of all turns")


async def _records(bus: Bus) -> list[record.StateRecord]:
    stored = await bus.get_many(subjects.ACTORS, ["cb.state.clerk.*"])
    return [record.decode(each.data) for each in stored]


async def serve(url: str, folder: Path) -> None:
    """Be a worker."""

    async def open_bus(name: str) -> Bus:
        bus: Bus = await connect(url, name=name)
        return bus

    await Worker([], open_bus, actors=[clerk(folder)]).run()


def main() -> int:
    """Run it and print the figures; 1 when something was not as promised."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--approvals", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--serve", nargs=2)
    given = parser.parse_args()
    if given.serve:
        # a harness that is killed itself must not leave workers behind
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        asyncio.run(serve(given.serve[0], Path(given.serve[1])))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(run(Path(folder), count=given.approvals, workers=given.workers))
    print(report, *report.problems, sep="\n")  # noqa: T201 - what it is for
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
