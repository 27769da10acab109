"""Actors under a nemesis: senders that do not give up, hosts that die, and everything handled once and in order."""

from __future__ import annotations

import asyncio
import random

from msgspec import Struct

from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError, CallboardError
from callboard.runtime.simulation.nemesis import FAULTS, FAULTS_AND_CLOCKS, Nemesis, NemesisRules
from callboard.runtime.simulation.run import Simulation
from callboard.runtime.simulation.world import World, open_world
from tests.simulation.actor_cast import KIND, Go, Hold, Note, Script, Stage, cast
from tests.simulation.actor_watch import Watch
from tests.simulation.weather import Weather

KEYS = ("ann", "bob", "cid", "dot", "eve")
SENDERS = 3
SENDS = 10
PARTITIONS = 3
LOAD_S = 12.0
# Nothing was stored for so long: nothing will.
SETTLE_S = 30.0
ASK_S = 6.0
# Longer than all faults together.
PATIENCE_S = 60.0
# Its time was over, before its turn or in the midst of it; the latter is kept as the answer.
FINAL = ("deadline", "turn_cancelled", "reply_gone")


class Found(Struct, frozen=True, kw_only=True):
    """What a run showed."""

    problems: list[str]
    strikes: dict[str, int]
    turns: int
    messages: int
    takeovers: int


class Sender:
    """Sends to the actors from a connection of the test's own, each message until it is acknowledged."""

    def __init__(
        self, world: World, stage: Stage, watch: Watch, dice: random.Random, name: str, *, is_timed: bool
    ) -> None:
        self.acked: set[str] = set()
        self.complaints: list[str] = []
        self._world = world
        self._stage = stage
        self._watch = watch
        self._dice = dice
        self._name = name
        self._is_timed = is_timed

    async def run(self) -> None:
        async with asyncio.TaskGroup() as asks:
            for n in range(SENDS):
                await self._world.clock.sleep(self._dice.uniform(0.0, 2 * LOAD_S / SENDS))
                name = f"{self._name}{n}"
                key = self._dice.choice(KEYS)
                self._stage.scripts[name] = self._script()
                kind = self._dice.choices(("tell", "ask", "hold"), (5, 3 if self._is_timed else 0, 2))[0]
                if kind == "ask":
                    asks.create_task(self._ask(key, name), name=f"ask-{name}")
                elif kind == "hold":
                    await self._tell(key, Hold(name), f"{name}-hold")
                    asks.create_task(self._go(key, name), name=f"go-{name}")
                else:
                    hops = [self._dice.choice(KEYS) for _ in range(self._dice.choice((0, 0, 1, 2, 4)))]
                    await self._tell(key, Note(name, hops), name)
                    self.acked.add(name)

    async def _tell(self, key: str, message: object, name: str) -> None:
        while True:
            try:
                await self._world.actor(f"{KIND}/{key}").tell(message, id=name)
            except BusError:
                await self._world.clock.sleep(0.5)
                continue
            return

    async def _go(self, key: str, name: str) -> None:
        await self._world.clock.sleep(self._dice.uniform(0.0, 4.0))
        await self._tell(key, Go(name), f"{name}-go")
        self.acked.add(f"went/{name}")

    async def _ask(self, key: str, name: str) -> None:
        give_up_s = self._world.clock.monotonic() + PATIENCE_S
        while self._world.clock.monotonic() < give_up_s:
            try:
                value = await self._world.actor(f"{KIND}/{key}").ask(Note(name), idempotency_key=name, timeout_s=ASK_S)
            except CallboardError as error:
                self._world.simulation.note("asked", f"{name}: {error.code}")
                if error.code in FINAL:
                    return
                await self._world.clock.sleep(0.5)
                continue
            break
        else:
            self.complaints.append(f"{name} was never answered")
            return
        self._world.simulation.note("answered", name)
        if name not in self._watch.committed or value != name:
            self.complaints.append(f"{name} was answered {value!r} before its turn was stored")
        self.acked.add(name)

    def _script(self) -> Script:
        dice = self._dice
        return Script(
            takes_s=dice.choice((0.0, 0.0, 0.1, 1.0, 4.0)),
            parts=dice.choice((0, 0, 1, 3)),
            fails=dice.choice((0, 0, 0, 1, 2)),
            remind_s=dice.choice((0.0, 0.0, 2.0)) if self._is_timed else 0.0,
        )


async def actors(simulation: Simulation) -> Found:
    """Run the scenario; what is wrong stands in ``problems``."""
    async with open_world(simulation, TopologySettings(partitions=PARTITIONS)) as world:
        watch = Watch(world, partitions=PARTITIONS)
        stage = Stage(world, simulation.dice("stage"), stands=watch.stands)
        ledger = cast(stage)
        dice = simulation.dice("load")
        weather = Weather(world, simulation.dice("weather"))
        for name in ("a", "b", "c", "d")[: dice.randint(2, 4)]:
            await world.start(ledger, name=name, wrap=weather.wrap)
        # a wall clock that is wrong moves timers and deadlines, so these worlds have none of them
        has_good_clocks = dice.random() < 0.7
        faults = FAULTS if has_good_clocks else FAULTS_AND_CLOCKS
        nemesis = Nemesis(world, simulation.dice("nemesis"), NemesisRules(faults=faults))
        senders = [Sender(world, stage, watch, dice, name, is_timed=has_good_clocks) for name in "xyz"[:SENDERS]]
        async with asyncio.TaskGroup() as group:
            for sender in senders:
                group.create_task(sender.run(), name="sender")
            group.create_task(_strike(nemesis, weather), name="nemesis")
        problems = (
            [text for sender in senders for text in sender.complaints] + stage.paid_again + stage.wrong + stage.beside
        )
        acked = {name for sender in senders for name in sender.acked}
        await _settle(world, watch, problems)
        for name in sorted(world.hosts):
            await world.stop(name)
        return Found(
            problems=problems + watch.verdict(acked=acked),
            strikes={**nemesis.strikes, **weather.struck},
            turns=stage.turns,
            messages=sum(map(len, watch.mails.values())),
            takeovers=sum(worker.host.takeovers for worker in world.workers.values() if worker.host is not None),
        )


async def _strike(nemesis: Nemesis, weather: Weather) -> None:
    await nemesis.run(LOAD_S)
    weather.calm()


async def _settle(world: World, watch: Watch, problems: list[str]) -> None:
    done, moved_s = -1, 0.0
    while unsettled := watch.unsettled():
        if len(watch.committed) != done:
            done, moved_s = len(watch.committed), world.clock.monotonic()
        if world.clock.monotonic() - moved_s > SETTLE_S:
            problems += [f"not settled: {text}" for text in unsettled]
            return
        await world.clock.sleep(0.5)
