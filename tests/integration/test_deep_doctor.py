"""Each way to go wrong in silence that ``doctor --deep`` looks for, made to happen on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import census, deep_doctor, subjects
from callboard.runtime.actor import cursor
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.handler import on
from callboard.runtime.beat import Beat, decode_beat
from callboard.runtime.bus import jetstream, provision, topology
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.capability import capability
from callboard.runtime.clock import SYSTEM_CLOCK, SystemClock
from callboard.runtime.config import Settings, TopologySettings
from callboard.runtime.finding import Finding
from tests.chaos.stage import staged
from tests.support.eventually import eventually
from tests.support.server import NatsServer
from tests.support.world import QUICK, World

QUIET = ("probe_messages", "probe_work", "probe_actors", "declared", "consumers_gone", "damage", "actors_end")


@capability("nap", concurrency=1)
async def nap(seconds: float) -> None:
    await asyncio.sleep(seconds)


class Say(Struct):
    text: str


class Scribe(Actor, name="scribe", capabilities=["scribble"]):
    @on
    async def say(self, m: Say) -> str:
        return m.text


class Later(SystemClock):
    """Ahead by ten minutes."""

    def now(self):  # type: ignore[no-untyped-def]  # noqa: ANN201 - as its parent's
        return super().now() + timedelta(minutes=10)


async def look(bus: Bus, beats: list[Beat], clock: SystemClock = SYSTEM_CLOCK) -> dict[str, Finding]:
    worst: dict[str, Finding] = {}
    async for finding in deep_doctor.examine(bus, Settings(), beats, clock):
        if finding.check not in worst or finding.level in ("problem", "warning"):
            worst[finding.check] = finding
    return worst


async def test_a_sound_world_is_found_sound_and_left_as_it_was(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(nap)
    before = [await world.bus.stream_info(name) for name in (subjects.WORK, subjects.ACTORS)]
    found = await look(world.bus, [decode_beat(running.worker.beat())])
    assert {check: found[check].level for check in QUIET} == dict.fromkeys(QUIET, "ok")
    after = [await world.bus.stream_info(name) for name in (subjects.WORK, subjects.ACTORS)]
    assert [info and info.messages for info in after] == [info and info.messages for info in before]


async def test_settings_and_consumers_that_differ_are_named(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(nap)
    beat = decode_beat(running.worker.beat())
    info = await world.bus.stream_info(subjects.DEAD)
    assert info is not None
    await world.bus.update_stream(replace(info.config, max_age_s=3600.0))
    await world.bus.delete_consumer(subjects.WORK, "nap-low")
    found = await look(world.bus, [beat])
    assert "max_age_s is 3600.0" in found["declared"].text
    assert found["consumers_gone"].level == "problem"
    assert "nap-low" in found["consumers_gone"].text
    # and without a worker they are idle
    assert "nap" in (await look(world.bus, []))["consumers_idle"].text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda load: replace(load, busy=1), "all 1 slots are busy"),
        (lambda load: replace(load, busy=0), "1 of 1 slots are free"),
    ],
)
async def test_a_task_that_waits_although_it_is_offered_is_explained(
    callboard_world: World, change: Callable[..., object], why: str
) -> None:
    world = callboard_world
    running = await world.start(nap)
    for _ in range(3):
        await world.client.submit("nap", 30.0)
    await eventually(lambda: running.pool.load().busy == 1)
    beat = decode_beat(running.worker.beat())
    said = replace(beat, capabilities=[change(beat.capabilities[0])], restarts=4)
    found = await look(world.bus, [said], Later())
    assert why in found["waiting"].text
    assert found["restarts"].level == "warning"
    assert (await look(world.bus, [said]))["waiting"].level == "ok"


async def test_an_end_that_is_lost_is_seen_by_what_was_read_of_it(callboard_world: World) -> None:
    world = callboard_world
    record = cursor.encode(cursor.Cursor(epoch=1, owner="w", upto=4711))
    await world.bus.store(Write(subjects.cursor("ghost", 0), record))
    found = await look(world.bus, [])
    assert found["actors_end"].level == "problem"
    assert "4711" in found["actors_end"].text


async def test_agents_that_nobody_hosts_are_named(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(Scribe, options=replace(QUICK, hosts_registry=True))
    await world.client.actor("scribe/ann").ask(Say("x"))

    async def is_known() -> bool:
        view = await census.agent(world.bus, Address("scribe", "ann"))
        return view is not None and bool(view.worker)

    await eventually(is_known, within_s=10)
    found = await look(world.bus, [decode_beat(running.worker.beat())])
    assert (found["registry"].level, found["agents_away"].level) == ("ok", "ok")
    # the leader of another time
    stranger = replace(decode_beat(running.worker.beat()), worker="stranger")
    assert "could" in (await look(world.bus, [stranger]))["registry"].text
    await running.stop()
    found = await look(world.bus, [])
    assert found["agents_away"].level == "warning"
    assert "scribe" in found["agents_away"].text


async def test_a_flipped_bit_that_cost_messages_is_reported(tmp_path: Path) -> None:
    server = await NatsServer(tmp_path / "flipped").start()
    try:
        bus = await jetstream.connect([server.url], name="test")
        await provision.apply(bus, await provision.plan(bus, topology.declared(TopologySettings())))
        for number in range(400):
            await bus.store(Write(subjects.result("nap", f"t{number}"), b"x" * 200))
        assert (await look(bus, []))["damage"].level == "ok"
        await bus.close()
        server.kill()
        (block,) = (server.folder / "js").rglob(f"streams/{subjects.LEDGER}/msgs/1.blk")
        data = bytearray(block.read_bytes())
        data[len(data) // 2] ^= 1
        block.write_bytes(data)
        await server.start()
        bus = await jetstream.connect([server.url], name="test")
        found = (await look(bus, []))["damage"]
        assert found.level == "problem"
        assert subjects.LEDGER in found.text
        await bus.close()
    finally:
        server.kill()


@pytest.mark.slow
async def test_a_server_that_is_away_shows_as_a_lagging_replica(tmp_path: Path) -> None:
    async with staged(tmp_path, servers=3) as stage:

        async def level_is(wanted: str) -> bool:
            return (await look(stage.bus, []))["replicas"].level == wanted

        await eventually(lambda: level_is("ok"), within_s=20, what="replicas that are current", every_s=0.2)
        ours = stage.bus.server.name
        next(server for number, server in enumerate(stage.servers.all) if f"cb{number}" != ours).kill()
        await eventually(lambda: level_is("warning"), within_s=45, what="the lagging one", every_s=0.2)
