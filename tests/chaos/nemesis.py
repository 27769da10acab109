"""Injects faults while work is under way: in a seeded order, spread over the progress of the load."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import Struct

from tests.chaos.checker import Fault
from tests.chaos.stage import Stage
from tests.support.eventually import eventually

OUTAGE_S = 6.0
FREEZE_S = 7.0
RESPAWN_AFTER_S = 1.0
PROGRESS_WITHIN_S = 180.0

Act = Callable[[], Coroutine[Any, Any, None]]


class Faults(Struct, frozen=True, kw_only=True):
    """How many faults of each kind.

    Attributes:
        worker_kills: kill -9 of a worker; another one comes a second later.
        server_kills: kill -9 of the server and a start on the same store; of the actors' leader in a cluster.
        outages: The server is away for ``OUTAGE_S``.
        freezes: SIGSTOP of a worker for ``FREEZE_S``, longer than anything of it lasts.
        double_kills: kill -9 of a worker and the server in one moment.
        server_freezes: SIGSTOP of the server, the actors' leader in a cluster, for ``server_freeze_s``.
    """

    worker_kills: int = 0
    server_kills: int = 0
    outages: int = 0
    freezes: int = 0
    double_kills: int = 0
    server_freezes: int = 0
    server_freeze_s: float = 8.0

    @property
    def count(self) -> int:
        """All of them."""
        return (
            self.worker_kills
            + self.server_kills
            + self.outages
            + self.freezes
            + self.double_kills
            + self.server_freezes
        )


class Nemesis:
    """Injects the faults of a plan.

    Attributes:
        faults: What was done, in order.
    """

    def __init__(self, stage: Stage, faults: Faults, *, seed: int, total: int, pause: int) -> None:
        """Prepare.

        Args:
            stage: Whom to harm.
            faults: How often.
            seed: Gives order, times and victims.
            total: Runs that the load comes to; the faults are spread over their ends.
            pause: Runs that must end after a fault before the next one.
        """
        self.faults: list[Fault] = []
        self._stage = stage
        self._plan = faults
        self._dice = random.Random(seed)
        self._total = total
        self._pause = pause

    async def run(self) -> None:
        """Inject every fault."""
        acts = self._acts()
        self._dice.shuffle(acts)
        for index, act in enumerate(acts):
            share = (index + 0.6 + self._dice.uniform(-0.25, 0.25)) / (len(acts) + 1)
            await self._progress(int(share * self._total))
            before = self._stage.fleet.count("end")
            await act()
            await self._progress(before + self._pause)

    def _acts(self) -> list[Act]:
        plan = self._plan
        return (
            [self._kill_worker] * plan.worker_kills
            + [self._kill_server] * plan.server_kills
            + [self._outage] * plan.outages
            + [self._freeze] * plan.freezes
            + [self._kill_both] * plan.double_kills
            + [self._freeze_server] * plan.server_freezes
        )

    async def _progress(self, wanted: int) -> None:
        # towards the end there may be too few left
        wanted = min(wanted, self._total)
        await eventually(
            lambda: self._stage.fleet.count("end") >= wanted,
            within_s=PROGRESS_WITHIN_S,
            what=f"progress to {wanted} ended runs",
            every_s=0.25,
        )

    def _note(self, name: str, at_s: float, *pids: int) -> None:
        self.faults.append(Fault(name=name, at_s=at_s, pids=frozenset(pids)))

    async def _kill_worker(self) -> None:
        fleet = self._stage.fleet
        worker = self._dice.choice(fleet.alive)
        self._note("worker killed", fleet.kill(worker), worker.pid)
        await asyncio.sleep(RESPAWN_AFTER_S)
        await fleet.start()

    async def _kill_server(self) -> None:
        at_s = time.monotonic()
        self._note(f"{self._stage.servers.role} killed, same store", at_s)
        await (await self._stage.servers.victim(self._stage.bus)).restart()

    async def _kill_both(self) -> None:
        fleet = self._stage.fleet
        worker = self._dice.choice(fleet.alive)
        server = await self._stage.servers.victim(self._stage.bus)
        server.kill()
        at_s = fleet.kill(worker)
        self._note(f"worker and {self._stage.servers.role} killed", at_s, worker.pid)
        await server.start()
        await fleet.start()

    async def _outage(self) -> None:
        server = await self._stage.servers.victim(self._stage.bus)
        at_s = time.monotonic()
        server.kill()
        self._note(f"{self._stage.servers.role} away for {OUTAGE_S:g} s", at_s)
        await asyncio.sleep(OUTAGE_S)
        await server.start()

    async def _freeze(self) -> None:
        fleet = self._stage.fleet
        worker = self._dice.choice(fleet.alive)
        self._note(f"worker frozen for {FREEZE_S:g} s", fleet.freeze(worker), worker.pid)
        await asyncio.sleep(FREEZE_S)
        fleet.thaw(worker)

    async def _freeze_server(self) -> None:
        server = await self._stage.servers.victim(self._stage.bus)
        at_s = time.monotonic()
        server.pause()
        self._note(f"{self._stage.servers.role} frozen for {self._plan.server_freeze_s:g} s", at_s)
        await asyncio.sleep(self._plan.server_freeze_s)
        server.resume()
