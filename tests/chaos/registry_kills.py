"""The worker that leads the registry is killed again and again while callers look up, pick and ask without a pause.

``python -m tests.chaos.registry_kills --kills 20`` prints a row for each kill and the sums; the status is 1 when a
promise was broken. Look-ups by the leader may fail while nobody leads; those of a caller with a warm cache may not,
and the agents, which other workers host, answer all the while.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.errors import BusError, CallboardError
from callboard.runtime.registry.actor import Lead, Led
from callboard.runtime.registry.handle import AgentHandle
from callboard.runtime.registry.message import FIND, Query
from callboard.runtime.worker import Worker, WorkerOptions
from tests.chaos.fleet import ROOT
from tests.chaos.stage import staged
from tests.support.eventually import eventually

LEADERS = 3
HOSTS = 2
AGENTS = 8
GOAL_S = 2.0
WITHIN_S = 60.0
# How often each caller asks, and for how long it goes on after the registry answers again.
EVERY_S = 0.01
AFTER_S = 0.5
# A worker that has just begun stands by when it has heard everybody's beat. Before that it takes a second longer to
# believe in a death: `--settle 0` shows it.
SETTLE_S = 1.2
_PATIENCE_S = 0.25


class Row(Struct, frozen=True, kw_only=True):
    """What one kill did.

    Attributes:
        away_s: From the kill to the next answer by a leader; infinite when none came.
        finds: Look-ups in the warm cache meanwhile, and ``picks`` of an agent.
        asks: Requests to picked agents meanwhile.
        failed: What failed of these three, by its error.
        slowest_ask_s: The longest of a pick and the request after it.
    """

    number: int
    away_s: float
    finds: int
    picks: int
    asks: int
    failed: list[str] = []
    slowest_find_s: float = 0.0
    slowest_pick_s: float = 0.0
    slowest_ask_s: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Broken promises, and rows that have tested nothing."""
        found = [f"kill {self.number}: {text}" for text in sorted(set(self.failed))]
        if self.away_s > GOAL_S:
            found.append(f"kill {self.number}: no leader answered for {self.away_s:.2f} s, more than {GOAL_S:g}")
        if not (self.finds and self.picks and self.asks):
            found.append(f"kill {self.number}: nobody looked up, picked or asked meanwhile")
        return found


# --- the workers


@capability("registry-kills-nothing")
async def nothing() -> None:
    """Give a worker something to serve."""


class Clerk(Actor, name="clerk", capabilities=["note"]):
    """Counts what it is asked."""

    class State(Struct):
        count: int = 0

    @on
    async def note(self, _: int) -> int:
        count: int = self.state.count + 1
        self.state.count = count
        return count


async def serve(kind: str, url: str) -> None:
    """Serve until killed: ``leads`` hosts the registry alone, ``hosts`` the agents alone."""

    async def connected(name: str) -> Bus:
        bus: Bus = await connect(url, name=name)
        return bus

    is_leader = kind == "leads"
    worker = Worker(
        [nothing] if is_leader else [],
        connected,
        actors=[] if is_leader else [Clerk],
        worker_id=f"{kind}-{os.getpid()}",
        options=WorkerOptions(hosts_registry=is_leader, enters_agents=True),
    )
    await worker.run(lambda: print("ready", flush=True))  # noqa: T201 - its parent waits for it


# --- the run


class Kills:
    """Workers, and callers that never stop."""

    def __init__(self, folder: Path, bus: Bus, *, url: str) -> None:
        self.client = Client(bus)
        self._folder = folder
        self._bus = bus
        self._url = url
        self._leaders: dict[str, asyncio.subprocess.Process] = {}
        self._others: list[asyncio.subprocess.Process] = []
        self._times: dict[str, list[float]] = {}
        self._failed: list[str] = []

    async def open(self) -> None:
        """Start the workers, wake the agents, and warm the cache."""
        self._others = list(await asyncio.gather(*(self._start("hosts") for _ in range(HOSTS))))
        await self.fill()
        for number in range(AGENTS):
            _ = await self.client.actor(f"clerk/{number}").ask(1, timeout_s=WITHIN_S)
        await eventually(self._is_known, within_s=WITHIN_S, what="all agents are known", every_s=0.1)

    async def close(self) -> None:
        """End all workers."""
        for process in [*self._leaders.values(), *self._others]:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            _ = await process.wait()
        await self.client.close()

    async def fill(self) -> None:
        """Start workers that may lead, up to three."""
        for process in await asyncio.gather(*(self._start("leads") for _ in range(LEADERS - len(self._leaders)))):
            self._leaders[f"leads-{process.pid}"] = process

    async def kill(self, number: int) -> Row:
        """Kill the leader, and see what becomes of the callers until the next one answers."""
        name = await self._leader()
        process = self._leaders.pop(name)
        self._times, self._failed = {"find": [], "pick": [], "ask": []}, []
        callers = [asyncio.create_task(each) for each in (self._finding(), self._asking())]
        try:
            # the callers are under way when it dies
            await eventually(lambda: all(self._times.values()), within_s=WITHIN_S, what="callers", every_s=0.01)
            process.send_signal(signal.SIGKILL)
            began_s = time.monotonic()
            away_s = await self._away(began_s)
            seen = len(self._times["find"])
            more = int(AFTER_S / EVERY_S / 4)
            await eventually(lambda: len(self._times["find"]) > seen + more, within_s=WITHIN_S, every_s=0.02)
        finally:
            for caller in callers:
                caller.cancel()
            _ = await asyncio.gather(*callers, return_exceptions=True)
        _ = await process.wait()
        return Row(
            number=number,
            away_s=away_s,
            finds=len(self._times["find"]),
            picks=len(self._times["pick"]),
            asks=len(self._times["ask"]),
            failed=self._failed,
            slowest_find_s=max(self._times["find"], default=0.0),
            slowest_pick_s=max(self._times["pick"], default=0.0),
            slowest_ask_s=max(self._times["ask"], default=0.0),
        )

    # --- the callers

    async def _finding(self) -> None:
        while True:
            await self._noted("find", self._find)
            await asyncio.sleep(EVERY_S)

    async def _asking(self) -> None:
        while True:
            handle = await self._noted("pick", self._pick)
            if isinstance(handle, AgentHandle):
                await self._noted("ask", lambda agent=handle: agent.ask(1, timeout_s=WITHIN_S))  # type: ignore[misc]
            await asyncio.sleep(EVERY_S)

    async def _find(self) -> None:
        found = await self.client.find("note")
        if len(found.agents) != AGENTS:
            message = f"a look-up in the cache found {len(found.agents)} of {AGENTS} agents"
            raise LookupError(message)

    async def _pick(self) -> object:
        return await self.client.pick("note")

    async def _noted(self, what: str, work: Callable[[], Awaitable[object]]) -> object:
        began_s = time.monotonic()
        try:
            answer = await work()
        except (CallboardError, LookupError) as error:
            self._failed.append(f"{what}: {error}")
            return None
        self._times[what].append(time.monotonic() - began_s)
        return answer

    # --- inside

    async def _start(self, kind: str) -> asyncio.subprocess.Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CALLBOARD_")} | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        }
        with (self._folder / "workers.err").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.chaos.registry_kills", "--serve", kind, self._url),
                cwd=ROOT,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), WITHIN_S)
        assert line == b"ready\n", f"no worker: see {self._folder / 'workers.err'}"
        return process

    async def _leader(self) -> str:
        led = await ActorRef(self._bus, "registry/main").ask(Lead(), returns=Led, timeout_s=WITHIN_S)
        return led.worker

    async def _is_known(self) -> bool:
        with contextlib.suppress(CallboardError):
            found = await self.client.find("note")
            cache = self.client.lookups.cache
            return cache is not None and cache.is_warm and len(found.agents) == AGENTS
        return False

    async def _away(self, began_s: float) -> float:
        query = msgspec.json.encode(Query(capability="note"))
        while time.monotonic() - began_s < WITHIN_S:
            with contextlib.suppress(BusError):
                _ = await self._bus.request(FIND, query, timeout_s=_PATIENCE_S)
                return time.monotonic() - began_s
            await asyncio.sleep(EVERY_S)
        return float("inf")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Kills]:
    """Start a server, three workers that may lead, and two that host agents."""
    async with staged(folder) as stage:
        found = Kills(folder, stage.bus, url=stage.server.url)
        try:
            await found.open()
            yield found
        finally:
            await found.close()


async def run(kills: int, folder: Path, *, settle_s: float = SETTLE_S) -> list[Row]:
    """Kill the leader so often; return a row for each. New workers have stood by for ``settle_s`` at the next kill."""
    async with opened(folder) as found:
        rows = []
        for number in range(1, kills + 1):
            await asyncio.sleep(settle_s)
            rows.append(await found.kill(number))
            print(f"… kill {number}: {rows[-1].away_s:.2f} s", file=sys.stderr, flush=True)  # noqa: T201
            await found.fill()
        return rows


def table(rows: Sequence[Row]) -> str:
    """Return the table, and the sums."""
    head = ("kill", "away s", "finds", "picks", "asks", "failed", "slowest find ms", "pick ms", "ask ms")
    lines = [
        (
            str(row.number), f"{row.away_s:.2f}", str(row.finds), str(row.picks), str(row.asks), str(len(row.failed)),
            f"{row.slowest_find_s * 1e3:.0f}", f"{row.slowest_pick_s * 1e3:.0f}", f"{row.slowest_ask_s * 1e3:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    text = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in [head, *lines]]
    times = sorted(row.away_s for row in rows)
    text.append(
        f"{len(rows)} kills: a leader answered again after p50 {times[len(times) // 2]:.2f} s, max {times[-1]:.2f} s; "
        f"{sum(row.finds for row in rows)} finds, {sum(row.picks for row in rows)} picks and "
        f"{sum(row.asks for row in rows)} asks meanwhile, {sum(len(row.failed) for row in rows)} failed"
    )
    return "\n".join(text)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--settle", type=float, default=SETTLE_S, help="seconds that new workers stand by before a kill"
    )
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "URL"), help="be a worker")
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(*given.serve))
        return 0
    with tempfile.TemporaryDirectory(prefix="callboard-registry-") as scratch:
        rows = asyncio.run(run(given.kills, Path(scratch), settle_s=given.settle))
    print(table(rows))  # noqa: T201 - a command
    problems = [problem for row in rows for problem in row.problems]
    for problem in problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
