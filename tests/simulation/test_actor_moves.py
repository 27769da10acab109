"""A partition changes hands while an actor of it is in mid-turn: the turn goes on where it runs, and runs nowhere else.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct

from callboard import Actor, on
from callboard.runtime import subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor import placement
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.hosting import FREED, ActorHost
from callboard.runtime.actor.partition import Partition
from callboard.runtime.bus.base import Bus, Message, PubAck, Write
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusTimeoutError, ConflictError
from callboard.runtime.simulation.run import Simulation, run
from callboard.runtime.simulation.world import World, open_world

CURSOR = subjects.cursor("desk", 0)


class Work(Struct):
    name: str
    takes_s: float = 0.0


class Stage:
    """What the actors did; one test at a time."""

    begun: list[str]
    ended: list[str]


class Desk(Actor, name="desk"):
    class State(Struct):
        done: list[str] = []

    state: State

    @on
    async def work(self, m: Work) -> str:
        Stage.begun.append(m.name)
        await asyncio.sleep(m.takes_s)
        self.state.done.append(m.name)
        Stage.ended.append(m.name)
        return m.name


class Between:
    """A connection whose stores and publishes a test may hold up, or see."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.on_store: Callable[[Write, Callable[[], Awaitable[PubAck]]], Awaitable[PubAck]] | None = None
        self.on_publish: Callable[[str], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the real connection's
        return getattr(self._bus, name)

    async def store(self, write: Write, **options: Any) -> PubAck:  # noqa: ANN401
        if self.on_store is not None:
            return await self.on_store(write, lambda: self._bus.store(write, **options))
        return await self._bus.store(write, **options)

    async def publish(self, subject: str, data: bytes = b"", **options: Any) -> None:  # noqa: ANN401
        if self.on_publish is not None:
            await self.on_publish(subject)
        await self._bus.publish(subject, data, **options)


class Fleet:
    """A world with one partition, an old host of it and a new one that it will move to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.buses: dict[str, list[Between]] = {}

    async def start(self, name: str) -> ActorHost:
        def wrap(bus: Bus) -> Bus:
            self.buses.setdefault(name, []).append(Between(bus))
            return self.buses[name][-1]

        await self.world.start(Desk, name=name, wrap=wrap)
        return self.host(name)

    async def start_heir(self, *others: str) -> str:
        """Start a host that the partition moves to while ``others`` live; return its name."""
        number = len(self.world.workers) + 1
        old = [worker.id for worker in self.world.workers.values()]
        name = next(
            name
            for name in "ghijklmnopqrstuvwxyz"
            if placement.assign("desk", 1, [*old, f"{name}-{number}"])[0] == f"{name}-{number}"
        )
        await self.start(name)
        return name

    def host(self, name: str) -> ActorHost:
        found = self.world.workers[name].host
        assert found is not None
        return found

    def partition(self, name: str) -> Partition | None:
        return self.host(name).partitions.get(("desk", 0))

    async def owned_by(self, name: str) -> Partition:
        await self.world.eventually(lambda: _is(self.partition(name)), within_s=20.0, what=f"{name} owns it")
        found = self.partition(name)
        assert found is not None
        return found

    async def tell(self, key: str, name: str, takes_s: float = 0.0) -> None:
        await self.world.actor(f"desk/{key}").tell(Work(name, takes_s))

    async def begun(self, name: str) -> None:
        await self.world.eventually(lambda: _is(name in Stage.begun), within_s=60.0, what=f"{name} began")

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


async def _is(value: object) -> bool:
    return bool(value)


@asynccontextmanager
async def _fleet(simulation: Simulation) -> AsyncIterator[Fleet]:
    Stage.begun, Stage.ended = [], []
    async with open_world(simulation, TopologySettings(partitions=1)) as world:
        yield Fleet(world)


def _play(scene: Callable[[Fleet], Awaitable[None]]) -> None:
    async def main(simulation: Simulation) -> None:
        async with _fleet(simulation) as fleet:
            await scene(fleet)

    run(main, 1, max_time_s=300.0)


def test_a_turn_goes_on_where_it_runs_when_its_partition_moves() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 30.0)
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.tell("ann", "next")
        await fleet.begun("next")
        assert Stage.begun == ["long", "next"]
        assert Stage.ended[0] == "long"
        assert await fleet.done("ann") == ["long", "next"]

    _play(scene)


def test_an_actor_in_mid_turn_is_not_called_free_while_its_partition_is_being_handed_over() -> None:
    """The owner tells of one that has just ended, and hears its own cursor, before it has noted the next one."""

    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        await fleet.tell("ann", "short", 20.0)
        await fleet.tell("bob", "long", 60.0)
        await fleet.begun("short")
        await fleet.begun("long")

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            ack = await act()
            if write.subject == CURSOR and cursors.decode(write.data).held:
                # the word of it comes when the first of the two has ended
                await fleet.world.eventually(lambda: _is("short" in Stage.ended), within_s=30.0)
                await asyncio.sleep(0.1)
            return ack

        async def publish(subject: str) -> None:
            if subject == FREED:
                stored = await fleet.world.bus.get_last(subjects.ACTORS, CURSOR)
                assert stored is not None
                old._on_cursor(Message(CURSOR, stored.data))  # noqa: SLF001 - heard at this very moment
                await asyncio.sleep(0.01)

        for bus in fleet.buses["a"]:
            bus.on_store, bus.on_publish = store, publish
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await asyncio.sleep(40.0)
        assert Stage.begun.count("long") == 1

    _play(scene)


def test_a_turn_that_would_not_end_does_not_free_the_one_that_came_after_it() -> None:
    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        await fleet.tell("ann", "long", 60.0)
        await fleet.begun("long")
        partition = await fleet.owned_by("a")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        assert ("desk", 0, "ann") in old.held
        former = Partition.activation(partition, "nobody")
        former.address = old.held["desk", 0, "ann"].address
        # an activation of an earlier ownership comes to rest
        partition.settled(former)
        await asyncio.sleep(10.0)
        assert Stage.begun == ["long"]

    _play(scene)


def test_losing_a_partition_that_was_handed_over_leaves_its_held_turns_alone() -> None:
    """A look at the cursor was on its way when the partition went to another host, and shows it only afterwards."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 20.0)
        await fleet.begun("long")
        partition = await fleet.owned_by("a")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await partition.check()
        await fleet.world.eventually(lambda: _is(Stage.ended), within_s=60.0)
        await asyncio.sleep(10.0)
        assert Stage.begun == ["long"]
        assert await fleet.done("ann") == ["long"]

    _play(scene)


def test_losing_an_earlier_ownership_is_not_the_loss_of_the_present_one() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        former = await fleet.owned_by("a")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.world.stop(heir)
        present = await fleet.owned_by("a")
        assert present is not former
        former.is_handed = False
        former.lose()
        assert fleet.partition("a") is present

    _play(scene)


def test_a_hand_over_whose_outcome_is_unknown_keeps_the_turn_that_it_names() -> None:
    """The cursor was written and the word of it lost: the turn is held, so it is not stopped here."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 30.0)
        await fleet.begun("long")
        lost: list[str] = []

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            ack = await act()
            if write.subject == CURSOR and cursors.decode(write.data).held and not lost:
                lost.append(write.subject)
                raise BusTimeoutError("the word of it was lost")
            return ack

        for bus in fleet.buses["a"]:
            bus.on_store = store
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.world.eventually(lambda: _is(Stage.ended), within_s=60.0)
        await asyncio.sleep(10.0)
        assert lost
        assert Stage.begun == ["long"]
        assert await fleet.done("ann") == ["long"]

    _play(scene)


def test_nothing_begins_after_a_hand_over_that_may_still_arrive() -> None:
    """The client library sends what was in its buffer after a reconnect, whoever has given up on it meanwhile."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.owned_by("a")
        late: list[Callable[[], Awaitable[PubAck]]] = []
        done: list[str] = []

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if write.subject == CURSOR and cursors.decode(write.data).owner != fleet.world.workers["a"].id:
                if not late:
                    late.append(act)
                    raise BusTimeoutError("nobody knows")
                if not done:
                    # it still lies in the buffer
                    raise BusTimeoutError("nobody knows")
            return await act()

        for bus in fleet.buses["a"]:
            bus.on_store = store
        heir = await fleet.start_heir("a")
        await fleet.world.eventually(lambda: _is(late), within_s=20.0)
        await fleet.tell("ann", "long", 30.0)
        await asyncio.sleep(0.3)
        done.append("arrived")
        with contextlib.suppress(ConflictError):
            await late[0]()
        await fleet.owned_by(heir)
        await fleet.world.eventually(lambda: _is(Stage.ended), within_s=60.0)
        await asyncio.sleep(10.0)
        assert Stage.begun == ["long"]

    _play(scene)


def test_a_lower_bound_in_the_cursor_does_not_pass_for_a_finished_turn() -> None:
    """``pending`` may name a mail that was handled long ago; that it is handled says nothing of the turn under way."""

    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        await fleet.tell("ann", "first")
        await fleet.world.eventually(lambda: _is(Stage.ended), within_s=20.0)
        await fleet.tell("ann", "long", 30.0)
        await fleet.begun("long")
        partition = await fleet.owned_by("a")
        real = partition.next_cursor

        def vague(**given: Any) -> Cursor:  # noqa: ANN401
            found = real(**given)
            return msgspec.structs.replace(found, pending=dict.fromkeys(found.pending, 1))

        partition.next_cursor = vague  # type: ignore[method-assign]
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await asyncio.sleep(10.0)
        assert Stage.begun == ["first", "long"]
        assert old.held
        await fleet.world.eventually(lambda: _is("long" in Stage.ended), within_s=60.0)
        await fleet.tell("ann", "last")
        await fleet.begun("last")
        assert await fleet.done("ann") == ["first", "long", "last"]

    _play(scene)


def test_an_order_reaches_the_host_that_still_has_the_actor_in_mid_turn() -> None:
    """Carried out by the new owner it would write the record, and the turn's own commit would be refused."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 20.0)
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        order = msgspec.json.encode({"op": "pause", "reason": "lunch"})
        answer = await fleet.world.bus.request(subjects.ctl_actor("desk", "ann"), order)
        assert msgspec.json.decode(answer.data) == {"ok": True, "status": "paused"}
        await fleet.tell("ann", "next")
        await asyncio.sleep(30.0)
        assert Stage.begun == ["long"]
        assert await fleet.done("ann") == ["long"]
        order = msgspec.json.encode({"op": "resume"})
        await fleet.world.bus.request(subjects.ctl_actor("desk", "ann"), order)
        await fleet.begun("next")

    _play(scene)
