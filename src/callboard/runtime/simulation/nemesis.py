"""Faults at seeded times: who is hit, when and for how long is decided by the dice alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from msgspec import Struct

from callboard.runtime.simulation.host import Host
from callboard.runtime.simulation.world import World, alive

FAULTS = (("crash", 4), ("pause", 3), ("cut", 3), ("restart", 2), ("refused", 1), ("silent", 1))
# A wall clock that stays an hour wrong moves timers and deadlines by that hour, which is no fault of anybody's.
FAULTS_AND_CLOCKS = (*FAULTS, ("jump", 1))


class NemesisRules(Struct, frozen=True, kw_only=True):
    """How badly a world fares.

    Attributes:
        faults: Kinds by weight: crash, pause, cut and jump (of the wall clock, for good) hit a worker, restart the
            server; refused and silent take the streams' leader away.
        every_s: Mean time between two faults.
        for_s: Bounds of how long a worker is dead, paused or cut off.
        down_s: Bounds of a server's restart.
        gap_s: Bounds of the time without a leader.
        spare: So many workers are left alone at any time.
    """

    faults: tuple[tuple[str, int], ...] = FAULTS
    every_s: float = 2.0
    for_s: tuple[float, float] = (0.2, 9.0)
    down_s: tuple[float, float] = (0.1, 3.0)
    gap_s: tuple[float, float] = (4.0, 7.0)
    spare: int = 0


class Nemesis:
    """Strikes while ``run`` runs and repairs everything at its end.

    Attributes:
        strikes: How often each kind of fault was done.
    """

    def __init__(self, world: World, dice: random.Random, rules: NemesisRules | None = None) -> None:
        """Prepare."""
        self.strikes: dict[str, int] = {}
        self._world = world
        self._dice = dice
        self._rules = rules or NemesisRules()
        self._is_server_hit = False

    async def run(self, for_s: float) -> None:
        """Strike for ``for_s`` virtual seconds; returns when every worker is up again and the server is well."""
        clock, dice, rules = self._world.clock, self._dice, self._rules
        end_s = clock.monotonic() + for_s
        kinds = [kind for kind, _ in rules.faults]
        weights = [weight for _, weight in rules.faults]
        async with asyncio.TaskGroup() as group:
            while True:
                await clock.sleep(dice.expovariate(1 / rules.every_s))
                if clock.monotonic() >= end_s:
                    break
                self._strike(dice.choices(kinds, weights)[0], group)
        self._world.simulation.note("calm")

    def _strike(self, kind: str, group: asyncio.TaskGroup) -> None:
        dice, rules, world = self._dice, self._rules, self._world
        if kind in ("restart", "refused", "silent"):
            if self._is_server_hit:
                return
            self._is_server_hit = True
            group.create_task(self._hit_server(kind), name=f"nemesis-{kind}")
        else:
            victims = alive(world.hosts)
            if len(victims) <= rules.spare:
                return
            name = dice.choice(victims)
            for_s = dice.uniform(*rules.for_s)
            if kind == "jump":
                world.hosts[name].jump(dice.choice((-3600.0, 3600.0)))
            elif kind == "crash":
                world.crash(name)
                group.create_task(self._revive(name, for_s), name="nemesis-revive")
            else:
                begin, end = (Host.pause, Host.resume) if kind == "pause" else (Host.cut, Host.mend)
                begin(world.hosts[name])
                group.create_task(self._end(world.hosts[name], end, for_s), name=f"nemesis-{kind}")
        self.strikes[kind] = self.strikes.get(kind, 0) + 1

    async def _hit_server(self, kind: str) -> None:
        dice, rules, world = self._dice, self._rules, self._world
        try:
            if kind == "restart":
                await world.restart_server(dice.uniform(*rules.down_s))
            else:
                await world.lose_leader(dice.uniform(*rules.gap_s), is_hung=kind == "silent")
        finally:
            self._is_server_hit = False

    async def _end(self, host: Host, end: Callable[[Host], None], after_s: float) -> None:
        await self._world.clock.sleep(after_s)
        end(host)

    async def _revive(self, name: str, after_s: float) -> None:
        await self._world.clock.sleep(after_s)
        await self._world.start_again(name)
