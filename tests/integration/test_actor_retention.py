"""What ages out and what never does: states and waiting mail outlive every age; the rest carries a lifetime."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import history, replay
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.cursor import decode as decode_cursor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.trim import Trimmer
from callboard.runtime.bus import header, jetstream
from callboard.runtime.bus.base import Bus, Stored, StreamConfig, Write
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.capability import capability
from callboard.runtime.config import TopologySettings
from callboard.runtime.context import TaskContext
from tests.integration.test_actor_trim import RETENTION_S, LaterClock, copied, standing
from tests.support.eventually import eventually
from tests.support.server import NatsServer
from tests.support.world import World

ANN = Address("diarist", "ann")


class Line(Struct):
    text: str


class Diarist(Actor):
    """Keeps what it is told, with a step and an event for each."""

    class State(Struct):
        lines: list[str] = []

    @on
    async def line(self, m: Line) -> int:
        text = await self.step("upper", str.upper, m.text)
        self.state.lines.append(text)
        self.emit("written", {"text": text})
        return len(self.state.lines)


async def told(world: World, address: Address, *, lines: int) -> None:
    """Wait until the actor's state has so many lines."""

    async def is_there() -> bool:
        stored = await world.bus.get_last(subjects.ACTORS, subjects.state(address.type, address.key))
        if stored is None:
            return False
        state = await history.state_of(world.bus, history.version_of(stored))
        return state is not None and len(msgspec.json.decode(state)["lines"]) >= lines

    await eventually(is_there, within_s=15)


async def cursors_moved(bus: Bus) -> dict[int, Cursor]:
    """Wait until every cursor says that its partition's mail is handled; return them by partition."""
    last: dict[int, int] = {}
    for mail in await standing(bus, "cb.mbox.diarist.>"):
        last[int(mail.subject.split(".")[3])] = mail.seq
    found: dict[int, Cursor] = {}

    async def is_there() -> bool:
        for stored in await bus.get_many(subjects.ACTORS, ["cb.cursor.diarist.*"]):
            found[int(stored.subject.rpartition(".")[2])] = decode_cursor(stored.data)
        return all(found[number].upto >= seq and not found[number].pending for number, seq in last.items())

    await eventually(is_there, within_s=15)
    return found


async def test_what_real_actors_were_is_told_at_a_hundred_points_after_a_sweep(callboard_world: World) -> None:
    world, bus = callboard_world, callboard_world.bus
    noted: dict[str, list[tuple[int, str]]] = {}

    def note(stored: Stored) -> None:
        noted.setdefault(stored.subject, []).append((stored.seq, hashlib.sha256(stored.data).hexdigest()))

    tail = await bus.tail(subjects.ACTORS, "cb.state.*.*", note, start_seq=1)
    await world.start(Diarist)
    keys = ("ann", "bob", "c.d/e")
    for number in range(20):
        for key in keys:
            await world.client.actor(Address("diarist", key)).tell(Line(f"{key} {number}"))
    for key in keys:
        await told(world, Address("diarist", key), lines=20)
    await copied(bus)
    await eventually(lambda: sum(map(len, noted.values())) >= 60)
    await tail.close()
    dirty = {subjects.actor_of(subject)[1]: seqs[-1][0] for subject, seqs in noted.items()}
    sweeper = Trimmer(bus, clock=LaterClock(), retention_s=RETENTION_S, settle_s=0.0)
    swept = 0
    for number, cursor in (await cursors_moved(bus)).items():
        mine = {key: seq for key, seq in dirty.items() if Address("diarist", key).partition(16) == number}
        swept += (await sweeper.trim("diarist", number, cursor=cursor, dirty=mine)).mails
    assert swept == 60
    assert len(await standing(bus, "cb.state.diarist.*")) == 3
    dice = random.Random(3)
    for _ in range(100):
        key = dice.choice(keys)
        mine_noted = noted[subjects.state("diarist", key)]
        seq = dice.randint(mine_noted[0][0], mine_noted[-1][0] + 2)
        found = await history.version_at(bus, Address("diarist", key), seq)
        assert (found.seq, found.digest) == [each for each in mine_noted if each[0] <= seq][-1]
    turns = [turn async for turn in replay.turns(bus, ANN)]
    assert [len(turn.steps) for turn in turns] == [1] * 20
    assert [len(turn.events) for turn in turns] == [1] * 20
    assert all(turn.arrival is not None and turn.missing == 0 for turn in turns)
    assert turns[4].changes[0].path == "state.lines[4]"
    assert turns[4].changes[0].new == msgspec.Raw(b'"ANN 4"')


async def test_steps_and_events_carry_a_lifetime_and_mail_and_states_do_not(callboard_world: World) -> None:
    world = callboard_world

    @capability("slow")
    async def slow(ctx: TaskContext) -> None:
        ctx.progress(50, text="half")

    await world.start(Diarist, slow)
    await world.client.actor(ANN).tell(Line("hello"))
    handle = await world.client.submit("slow", None)
    await told(world, ANN, lines=1)
    await eventually(lambda: world.bus.get_last(subjects.ACTORS, subjects.task_event(handle.id)))
    found = await standing(world.bus, *subjects.AUDITED)
    timed = {stored.subject.split(".")[1] for stored in found if header.TTL in (stored.headers or {})}
    untimed = {stored.subject.split(".")[1] for stored in found if header.TTL not in (stored.headers or {})}
    assert timed == {"step", "event"}
    assert untimed == {"mbox", "state"}


async def test_states_and_waiting_mail_outlive_every_age_and_a_restart(
    make_server: Callable[..., NatsServer],
) -> None:
    server = await make_server().start()
    bus = await jetstream.connect(server.url, name="world")
    wanted = declared(TopologySettings())
    short = [replace(each, max_age_s=1.0) if each.name == "CB_AUDIT" else each for each in wanted.streams]
    await apply(bus, await plan(bus, replace(wanted, streams=tuple(short))))
    world = World("jetstream", lambda name: jetstream.connect(server.url, name=name), bus)
    # negative control: the same state where messages have an age limit
    aged = StreamConfig(name="AGED", subjects=("aged.>",), max_age_s=1.0, allow_msg_ttl=True, allow_direct=True)
    await bus.create_stream(replace(aged, duplicate_window_s=1.0))
    await bus.store(Write("aged.state", b"{}", {header.TTL: "never"}))

    first = await world.start(Diarist)
    await world.client.actor(ANN).tell(Line("before"))
    await told(world, ANN, lines=1)
    await first.stop()
    state = await bus.get_last(subjects.ACTORS, subjects.state("diarist", "ann"))
    assert state is not None
    # mail without headers, for an actor that nobody hosts now
    await bus.publish(subjects.mail("diarist", "bob"), b'{"text":"waits"}', headers={header.TYPE: "Line"})
    for subject in (subjects.step("diarist", "ann", 1, "late.0.1"), subjects.event("diarist", "ann")):
        await bus.store(Write(subject, b"{}", header.build(ttl_s=1)))

    async def has_aged() -> bool:
        audit = await bus.stream_info("CB_AUDIT")
        step = await bus.get_last(subjects.ACTORS, subjects.step("diarist", "ann", 1, "late.0.1"))
        return audit is not None and audit.messages == 0 and step is None

    await eventually(has_aged, within_s=20)
    await server.restart()
    await eventually(lambda: bus.is_connected, within_s=10)
    assert await bus.get_last("AGED", "aged.state") is None
    after = await bus.get_last(subjects.ACTORS, subjects.state("diarist", "ann"))
    assert after == state
    assert (await history.version_at(bus, ANN)).data == state.data

    # long after its retention, unhandled: it stays
    waiting = await standing(bus, "cb.mbox.diarist.*.bob")
    sweeper = Trimmer(bus, clock=LaterClock(), retention_s=RETENTION_S, audit=False)
    number = Address("diarist", "bob").partition(16)
    cursor = Cursor(upto=waiting[0].seq, pending={"bob": waiting[0].seq})
    await sweeper.trim("diarist", number, cursor=cursor, dirty={})
    assert await standing(bus, "cb.mbox.diarist.*.bob") == waiting
    await world.start(Diarist)
    await told(world, Address("diarist", "bob"), lines=1)
    await world.client.actor(ANN).tell(Line("after"))
    await told(world, ANN, lines=2)
    await world.close()
