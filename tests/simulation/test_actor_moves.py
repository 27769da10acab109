"""A partition changes hands while an actor of it is in mid-turn: the turn goes on where it runs, and runs nowhere else.

Time is virtual and no dice are thrown: each test brings about the one order of events that it is about.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from callboard import Actor, on
from callboard.runtime import subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor import placement
from callboard.runtime.actor.activation import Activation
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.held import FREED
from callboard.runtime.actor.hosting import ActorHost
from callboard.runtime.actor.partition import Partition
from callboard.runtime.actor.services import ActorRules
from callboard.runtime.bus.base import Bus, Message, PubAck, Stored, Write
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusTimeoutError, ConflictError
from callboard.runtime.simulation.run import Simulation, run
from callboard.runtime.simulation.world import World, open_world
from callboard.runtime.worker import WorkerOptions

LOST = "nobody knows what became of it"
CURSOR = subjects.cursor("desk", 0)


class Work(Struct):
    name: str
    takes_s: float = 0.0
    keeps: int = 0


class Hold(Struct):
    name: str


class Go(Struct):
    name: str


class Stage:
    """What the actors did; one test at a time."""

    begun: list[str]
    ended: list[str]
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
        self.options = WorkerOptions()

    async def start(self, name: str, actor: type[Actor] = Desk) -> ActorHost:
        def wrap(bus: Bus) -> Bus:
            self.buses.setdefault(name, []).append(Between(bus))
            return self.buses[name][-1]

        await self.world.start(actor, name=name, options=self.options, wrap=wrap)
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

    async def parked(self, key: str) -> list[int]:
        stored = await self.world.bus.get_last(subjects.ACTORS, subjects.state("desk", key))
        assert stored is not None
        return [found["seq"] for found in msgspec.json.decode(stored.data).get("parked", [])]


async def _is(value: object) -> bool:
    return bool(value)


@asynccontextmanager
async def _fleet(simulation: Simulation) -> AsyncIterator[Fleet]:
    Stage.begun, Stage.ended, Stage.never_stops = [], [], False
    async with open_world(simulation, TopologySettings(partitions=1)) as world:
        yield Fleet(world)


def _play(scene: Callable[[Fleet], Awaitable[None]], *, max_time_s: float = 300.0) -> None:
    async def main(simulation: Simulation) -> None:
        async with _fleet(simulation) as fleet:
            await scene(fleet)

    run(main, 1, max_time_s=max_time_s)


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
                old._on_cursor(Message(CURSOR, stored.data))
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
        assert ("desk", 0, "ann") in old.held.activations
        former = Partition.activation(partition, "nobody")
        former.address = old.held.activations["desk", 0, "ann"].address
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
                raise BusTimeoutError(LOST)
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
                    raise BusTimeoutError(LOST)
                if not done:
                    # it still lies in the buffer
                    raise BusTimeoutError(LOST)
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
        assert old.held.activations
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


def test_a_drain_outlasts_a_broker_that_does_not_answer() -> None:
    """Its turns end, and the worker ends without an error."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 10.0)
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        await fleet.world.stop(heir)
        await fleet.owned_by("a")
        await fleet.start(heir)

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if write.subject == CURSOR:
                raise BusTimeoutError(LOST)
            return await act()

        async def tail(*_: object, **__: object) -> None:
            raise BusTimeoutError(LOST)

        for bus in fleet.buses["a"]:
            bus.on_store = store
            bus.tail = tail  # type: ignore[attr-defined]
        await fleet.world.stop("a")
        assert Stage.begun[0] == "long"
        assert await fleet.done("ann") == ["long"]

    _play(scene)


def test_a_draining_host_begins_nothing_for_an_actor_it_had_not_in_memory() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 10.0)
        await fleet.begun("long")
        stopping = asyncio.ensure_future(fleet.world.stop("a"))
        await asyncio.sleep(1.0)
        await fleet.tell("bob", "late", 3.0)
        await stopping
        assert Stage.begun == ["long"]
        await fleet.start("b")
        await fleet.begun("late")
        assert Stage.begun == ["long", "late"]

    _play(scene)


def test_a_partition_that_was_handed_to_a_draining_host_goes_on_at_once() -> None:
    async def scene(fleet: Fleet) -> None:
        old = await fleet.start("a")
        partition = await fleet.owned_by("a")
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.tell("ann", "long", 25.0)
        await fleet.begun("long")
        stopping = asyncio.ensure_future(fleet.world.stop(heir))
        await fleet.owned_by("a")
        # somebody who has not heard of the drain hands it back
        partition = old.partitions["desk", 0]
        await old._hand_over(partition, fleet.world.workers[heir].id)
        await fleet.tell("bob", "short")
        await asyncio.sleep(3.0)
        assert "short" in Stage.ended
        await stopping
        assert Stage.begun.count("long") == 1

    _play(scene)


def test_a_stop_hook_that_never_ends_holds_up_neither_cursors_nor_the_end() -> None:
    async def scene(fleet: Fleet) -> None:
        Stage.never_stops = True
        await fleet.start("a")
        await fleet.tell("ann", "short")
        await fleet.begun("short")
        await asyncio.sleep(400.0)
        await fleet.tell("bob", "later")
        await fleet.begun("later")
        await asyncio.sleep(3.0)
        assert (await fleet.cursor()).pending == {}
        await fleet.world.stop("a")

    _play(scene, max_time_s=900.0)


def test_a_mistake_in_one_actor_is_not_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Activation._step

    async def step(activation: Activation) -> bool:
        if activation.address.key == "bad":
            raise ZeroDivisionError
        return await real(activation)

    monkeypatch.setattr(Activation, "_step", step)

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 10.0)
        await fleet.begun("long")
        await fleet.tell("bad", "no")
        await fleet.world.eventually(lambda: _is(Stage.ended), within_s=20.0)
        await fleet.tell("bob", "next")
        await fleet.begun("next")
        await fleet.world.stop("a")
        assert Stage.begun == ["long", "next"]

    _play(scene)


def test_mail_is_not_lost_to_a_server_that_is_behind() -> None:
    """A direct get is answered by any server, and what the new owner is to read may not have reached that one."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        await fleet.tell("ann", "long", 5.0)
        await fleet.tell("ann", "next")
        await fleet.begun("long")
        heir = await fleet.start_heir("a")
        for bus in fleet.buses[heir]:
            bus.is_behind = True
        await fleet.owned_by(heir)
        await fleet.begun("next")
        assert Stage.begun == ["long", "next"]

    _play(scene)


def test_a_turn_is_not_run_again_because_its_large_state_could_not_be_stored_at_once() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        refused: list[str] = []

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if write.subject.startswith("$O.") and len(refused) < 4:
                refused.append(write.subject)
                raise BusTimeoutError(LOST)
            return await act()

        for bus in fleet.buses["a"]:
            bus.on_store = store
        assert await fleet.world.actor("desk/ann").ask(Work("large", keeps=300_000), timeout_s=60.0) == "large"
        assert len(refused) == 4
        assert Stage.begun == ["large"]

    _play(scene)


def test_an_order_does_not_forget_a_turn_that_parks_at_the_same_time() -> None:
    async def scene(fleet: Fleet) -> None:
        await fleet.start("a")
        desk = fleet.world.actor("desk/ann")
        await desk.tell(Hold("one"))
        await fleet.begun("one")
        await asyncio.sleep(1.0)
        (parked,) = await fleet.parked("ann")
        for bus in fleet.buses["a"]:
            bus.batch_takes_s = 1.0
            bus.get_takes_s = 1.0
        order = msgspec.json.encode({"op": "cancel", "seq": parked})
        ordering = asyncio.ensure_future(fleet.world.bus.request(subjects.ctl_actor("desk", "ann"), order))
        # the order reads while the other turn begins to write
        await asyncio.sleep(0.5)
        await desk.tell(Hold("two"))
        answer = await ordering
        assert msgspec.json.decode(answer.data)["ok"]
        await asyncio.sleep(3.0)
        assert len(await fleet.parked("ann")) == 1
        await desk.tell(Go("two"))
        await fleet.world.eventually(lambda: _is(Stage.ended == ["two"]), within_s=20.0)

    _play(scene)


def test_mail_that_is_being_refused_does_not_run_meanwhile() -> None:
    """Its dead letter takes longer than the turn that it waits behind."""

    async def scene(fleet: Fleet) -> None:
        await fleet.start("a", Narrow)

        async def store(write: Write, act: Callable[[], Awaitable[PubAck]]) -> PubAck:
            if write.subject.startswith("cb.dead."):
                await asyncio.sleep(3.0)
            return await act()

        for bus in fleet.buses["a"]:
            bus.on_store = store
        narrow = fleet.world.actor("narrow/ann")
        for name in ("first", "second"):
            await narrow.tell(Work(name, 1.0))
        await asyncio.sleep(6.0)
        await narrow.tell(Work("third"))
        await fleet.begun("third")
        assert Stage.begun == ["first", "third"]
        assert len(await fleet.world.stored("CB_DEAD", "cb.dead.mail.narrow.>")) == 1

    _play(scene)


def test_a_turn_that_waits_for_a_place_moves_on_with_its_partition() -> None:
    """It has not begun, so nothing holds it to a host whose places are all taken."""

    async def scene(fleet: Fleet) -> None:
        fleet.options = WorkerOptions(actor_rules=ActorRules(turns=1))
        old = await fleet.start("a")
        await fleet.tell("ann", "long", 60.0)
        await fleet.begun("long")
        await fleet.tell("bob", "short")
        await asyncio.sleep(1.0)
        assert Stage.begun == ["long"]
        heir = await fleet.start_heir("a")
        await fleet.owned_by(heir)
        await fleet.begun("short")
        assert Stage.ended == ["short"]
        assert list(old.held.activations) == [("desk", 0, "ann")]
        await fleet.world.eventually(lambda: _is("long" in Stage.ended), within_s=90.0)
        assert Stage.begun == ["long", "short"]

    _play(scene)
