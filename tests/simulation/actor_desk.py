"""Actors of one partition, hosts that it moves between, and connections that a test holds up at one point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct

from callboard import Actor, on
from callboard.runtime import subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor import placement
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.hosting import ActorHost
from callboard.runtime.actor.partition import Partition
from callboard.runtime.bus.base import Bus, PubAck, Stored, Write
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError
from callboard.runtime.simulation.run import Simulation, run
from callboard.runtime.simulation.world import World, open_world
from callboard.runtime.worker import WorkerOptions

LOST = "nobody knows what became of it"
CURSOR = subjects.cursor("desk", 0)


class Work(Struct):
    name: str
    takes_s: float = 0.0
    keeps: int = 0


class Stairs(Struct):
    steps: int


class Hold(Struct):
    name: str


class Go(Struct):
    name: str


class Stage:
    """What the actors did; one test at a time."""

    begun: list[str]
    ended: list[str]
    again: list[str]
    never_stops: bool


class Desk(Actor, name="desk"):
    class State(Struct):
        done: list[str] = []
        kept: str = ""

    state: State

    @on
    async def work(self, m: Work) -> str:
        Stage.begun.append(m.name)
        await asyncio.sleep(m.takes_s)
        self.state.done.append(m.name)
        self.state.kept = "x" * m.keeps
        Stage.ended.append(m.name)
        return m.name

    @on
    async def climb(self, m: Stairs) -> str:
        for number in range(m.steps):
            await self.step(f"s{number}", self._climb, number)
        return "up"

    async def _climb(self, number: int) -> str:
        name = f"s{number}"
        if name in Stage.ended:
            Stage.again.append(name)
        Stage.begun.append(name)
        await asyncio.sleep(1.0)
        Stage.ended.append(name)
        return name

    @on
    async def hold(self, m: Hold) -> str:
        Stage.begun.append(m.name)
        await self.wait_for(Go, where={"name": m.name})
        self.state.done.append(m.name)
        Stage.ended.append(m.name)
        return m.name

    async def on_stop(self) -> None:
        if Stage.never_stops:
            await asyncio.Event().wait()


class Narrow(Actor, name="narrow", mailbox_cap=1):
    class State(Struct):
        done: list[str] = []

    state: State

    @on
    async def work(self, m: Work) -> str:
        Stage.begun.append(m.name)
        await asyncio.sleep(m.takes_s)
        return m.name


class Between:
    """A connection whose stores and publishes a test may hold up, or see."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.is_behind = False
        self.batch_takes_s = 0.0
        self.get_takes_s = 0.0
        self.on_store: Callable[[Write, Callable[[], Awaitable[PubAck]]], Awaitable[PubAck]] | None = None
        self.on_publish: Callable[[str], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the real connection's
        return getattr(self._bus, name)

    async def get_next(self, stream: str, seq: int, subject: str, *, from_leader: bool = False) -> Stored | None:
        if self.is_behind and not from_leader:
            return None
        return await self._bus.get_next(stream, seq, subject, from_leader=from_leader)

    async def store(self, write: Write, **options: Any) -> PubAck:  # noqa: ANN401
        if self.on_store is not None:
            return await self.on_store(write, lambda: self._bus.store(write, **options))
        return await self._bus.store(write, **options)

    async def store_many(self, writes: Sequence[Write], **options: Any) -> list[PubAck | BusError]:  # noqa: ANN401
        if self.on_store is None:
            return await self._bus.store_many(writes, **options)
        found = await asyncio.gather(*(self.store(write) for write in writes), return_exceptions=True)
        return [one for one in found if isinstance(one, PubAck | BusError)]

    async def get_last(self, stream: str, subject: str, **options: Any) -> Stored | None:  # noqa: ANN401
        await asyncio.sleep(self.get_takes_s)
        return await self._bus.get_last(stream, subject, **options)

    async def store_batch(self, writes: Sequence[Write], **options: Any) -> PubAck:  # noqa: ANN401
        await asyncio.sleep(self.batch_takes_s)
        return await self._bus.store_batch(writes, **options)

    async def publish(self, subject: str, data: bytes = b"", **options: Any) -> None:  # noqa: ANN401
        if self.on_publish is not None:
            await self.on_publish(subject)
        await self._bus.publish(subject, data, **options)


class Fleet:
    """A world with one partition, an old host of it and a new one that it will move to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.buses: dict[str, list[Between]] = {}
        self.options = WorkerOptions(hosts_registry=False)

    async def start(self, name: str, actor: type[Actor] = Desk) -> ActorHost:
        def wrap(bus: Bus) -> Bus:
            self.buses.setdefault(name, []).append(Between(bus))
            return self.buses[name][-1]

        await self.world.start(actor, name=name, options=self.options, wrap=wrap)
        return self.host(name)

    async def start_heir(self, *others: str, actor: type[Actor] = Desk) -> str:
        """Start a host that the partition moves to while ``others`` live; return its name."""
        number = len(self.world.workers) + 1
        old = [worker.id for worker in self.world.workers.values()]
        name = next(
            name
            for name in "ghijklmnopqrstuvwxyz"
            if placement.assign("desk", 1, [*old, f"{name}-{number}"])[0] == f"{name}-{number}"
        )
        await self.start(name, actor)
        return name

    def host(self, name: str) -> ActorHost:
        found = self.world.workers[name].host
        assert found is not None
        return found

    def partition(self, name: str) -> Partition | None:
        return self.host(name).partitions.get(("desk", 0))

    async def owned_by(self, name: str) -> Partition:
        await self.world.eventually(lambda: true(self.partition(name)), within_s=20.0, what=f"{name} owns it")
        found = self.partition(name)
        assert found is not None
        return found

    async def tell(self, key: str, name: str, takes_s: float = 0.0) -> None:
        await self.world.actor(f"desk/{key}").tell(Work(name, takes_s))

    async def begun(self, name: str) -> None:
        await self.world.eventually(lambda: true(name in Stage.begun), within_s=60.0, what=f"{name} began")

    async def cursor(self) -> Cursor:
        stored = await self.world.bus.get_last(subjects.ACTORS, CURSOR)
        assert stored is not None
        return cursors.decode(stored.data)

    async def done(self, key: str) -> list[str]:
        stored = await self.world.bus.get_last(subjects.ACTORS, subjects.state("desk", key))
        if stored is None:
            return []
        found: list[str] = msgspec.json.decode(stored.data).get("state", {}).get("done", [])
        return found

    async def steps(self, key: str) -> dict[str, str]:
        """Return who recorded each step of the actor, by its name."""
        found = await self.world.bus.get_many(subjects.ACTORS, [f"cb.step.desk.{key}.>"])
        records = [(stored.subject, msgspec.json.decode(stored.data)) for stored in found]
        return {record["name"]: record["worker"] for subject, record in records if ".~" not in subject}

    async def parked(self, key: str) -> list[int]:
        stored = await self.world.bus.get_last(subjects.ACTORS, subjects.state("desk", key))
        assert stored is not None
        return [found["seq"] for found in msgspec.json.decode(stored.data).get("parked", [])]


async def true(value: object) -> bool:
    return bool(value)


@asynccontextmanager
async def _fleet(simulation: Simulation) -> AsyncIterator[Fleet]:
    Stage.begun, Stage.ended, Stage.again, Stage.never_stops = [], [], [], False
    async with open_world(simulation, TopologySettings(partitions=1)) as world:
        yield Fleet(world)


def play(scene: Callable[[Fleet], Awaitable[None]], *, max_time_s: float = 300.0) -> None:
    async def main(simulation: Simulation) -> None:
        async with _fleet(simulation) as fleet:
            await scene(fleet)

    run(main, 1, max_time_s=max_time_s)
