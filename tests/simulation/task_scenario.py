"""Tasks under a nemesis: three workers, a submitter that does not give up, and the checker of the chaos suite."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from msgspec import Struct

from callboard.runtime import record, subjects
from callboard.runtime.capability import Capability, capability
from callboard.runtime.context import TaskContext
from callboard.runtime.errors import BusError, RetryableError
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.simulation.history import Event as Note
from callboard.runtime.simulation.loop import process
from callboard.runtime.simulation.nemesis import FAULTS_AND_CLOCKS, Nemesis, NemesisRules
from callboard.runtime.simulation.run import Simulation
from callboard.runtime.simulation.world import World, open_world
from tests.chaos.checker import Death, Evidence, Verdict, check
from tests.chaos.journal import Event, Kind
from tests.simulation.weather import Weather

TASKS = 30
WORKERS = ("a", "b", "c")
LOAD_S = 15.0
SETTLE_S = 180.0
# A worker that stood still or was cut off for longer may have lost its leases, of which up to 1.1 s of 4 s had passed:
# it does not count as living.
LEASE_S = 2.5


class Found(Struct, frozen=True, kw_only=True):
    """What a run showed."""

    verdict: Verdict
    strikes: dict[str, int]

    @property
    def problems(self) -> list[str]:
        return self.verdict.problems


class Load:
    """Submits tasks, and notes what handlers did."""

    def __init__(self, world: World, dice: random.Random) -> None:
        self.world = world
        self.events: list[Event] = []
        self.acked: set[str] = set()
        self.offered: set[str] = set()
        self.unnamed_unknown = 0
        self._dice = dice
        self._plan = [self._draw() for _ in range(TASKS)]

    def capability(self) -> Capability[..., Any]:
        retry = RetryPolicy(attempts=6, base_s=0.5, max_s=4.0)

        @capability("work", concurrency=4, retry=retry)
        async def work(n: int, ctx: TaskContext) -> int:
            takes_s, fails = self._plan[n]
            self._note("start", ctx, n)
            await self.world.clock.sleep(takes_s)
            if ctx.attempt <= fails:
                self._note("fail", ctx, n)
                text = "not yet"
                raise RetryableError(text)
            self._note("end", ctx, n)
            return n

        return work

    async def submit_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(TASKS):
                await self.world.clock.sleep(self._dice.uniform(0, 2 * LOAD_S / TASKS))
                name = f"work/{n}" if self._dice.random() < 0.7 else None
                group.create_task(self._submit(n, name), name=f"submit-{n}")

    async def _submit(self, n: int, name: str | None) -> None:
        while True:
            if name is not None:
                self.offered.add(name)
            try:
                handle = await self.world.client.submit("work", n, id=name)
            except BusError:
                if name is None:
                    # nobody knows whether it is stored; offered again it is another task
                    self.unnamed_unknown += 1
                await self.world.clock.sleep(1.0)
                continue
            self.offered.add(handle.id)
            self.acked.add(handle.id)
            return

    def _note(self, kind: Kind, ctx: TaskContext, n: int) -> None:
        owner = process.get()
        at_s = self.world.simulation.loop.time()
        self.events.append(Event(kind=kind, pid=owner.number, at_s=at_s, task=ctx.id, attempt=ctx.attempt, n=n))
        self.world.simulation.note(f"run-{kind}", f"{ctx.id} {ctx.attempt}", host=owner.name)

    def _draw(self) -> tuple[float, int]:
        takes_s = self._dice.choice((0.0, 0.0, 0.2, 3.0, 9.0))
        return takes_s, self._dice.choice((0, 0, 0, 1, 2))


async def tasks(simulation: Simulation) -> Found:
    """Run the scenario; what is wrong stands in the verdict."""
    async with open_world(simulation) as world:
        weather = Weather(world, simulation.dice("weather"))
        load = Load(world, simulation.dice("load"))
        for name in WORKERS:
            await world.start(load.capability(), name=name, wrap=weather.wrap)
        nemesis = Nemesis(world, simulation.dice("nemesis"), NemesisRules(faults=FAULTS_AND_CLOCKS))
        async with asyncio.TaskGroup() as group:
            group.create_task(load.submit_all(), name="submit")
            group.create_task(_strike(nemesis, weather), name="nemesis")
        await world.eventually(lambda: _is_settled(world, load), within_s=SETTLE_S, what="every task recorded")
        verdict = check(await _evidence(world, load))
        for name in WORKERS:
            await world.stop(name)
            assert not world.workers[name].keeper.claims, "a claim was kept for ever"
        return Found(verdict=verdict, strikes={**nemesis.strikes, **weather.struck})


async def _strike(nemesis: Nemesis, weather: Weather) -> None:
    await nemesis.run(LOAD_S)
    weather.calm()


async def _is_settled(world: World, load: Load) -> bool:
    """Nothing waits; what the broker lost would never come, so the number of records is not asked for."""
    for stream in (subjects.WORK, subjects.LATER):
        info = await world.bus.stream_info(stream)
        if info is None or info.messages:
            return False
    return not any(worker.keeper.claims for worker in world.workers.values())


async def _evidence(world: World, load: Load) -> Evidence:
    effects: dict[str, int] = {}
    statuses: dict[str, str] = {}
    for stored in await world.stored(subjects.LEDGER, "cb.result.work.*"):
        found = record.decode_task(stored.data)
        effects[found.task] = effects.get(found.task, 0) + 1
        statuses[found.task] = found.status
    dead = [record.decode_dead(s.data) for s in await world.stored(subjects.DEAD, "cb.dead.task.work.*")]
    return Evidence(
        acked=load.acked,
        offered=load.offered,
        unnamed_unknown=load.unnamed_unknown,
        effects=effects,
        statuses=statuses,
        dead={letter.task for letter in dead},
        pending=frozenset(),
        events=load.events,
        deaths=deaths(world.simulation),
    )


def deaths(simulation: Simulation) -> list[Death]:
    """Return when which process stopped to count as living."""
    found: list[Death] = []
    numbers = {host.name: host.number for host in simulation.hosts}
    since: dict[tuple[str, str], float] = {}
    ends = {"resume": "pause", "mend": "cut"}
    for note in simulation.history.events:
        match note:
            case Note(name="crash" | "exit"):
                found.append(Death(pid=numbers[note.host], at_s=note.at_s))
            case Note(name="pause" | "cut"):
                since[note.host, note.name] = note.at_s
            case Note(name="resume" | "mend"):
                began_s = since.pop((note.host, ends[note.name]))
                if note.at_s - began_s > LEASE_S:
                    found.append(Death(pid=numbers[note.host], at_s=began_s, until_s=note.at_s))
            case _:
                pass
    return found
