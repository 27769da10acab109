"""The audit copy compared with its original, and copied late what it lacks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from callboard.runtime import subjects
from callboard.runtime.actor import archive, history, repair, replay
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.trim import MARK, SETTLE_S, Trimmer, TrimReport
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError, DecodeError, NotFoundError
from tests.integration.test_actor_trim import RETENTION_S, LaterClock, copied, filled, swept
from tests.support.eventually import eventually
from tests.support.past import Past
from tests.support.server import NatsServer
from tests.support.world import World

ANN = Address("greeter", "ann")


async def test_a_whole_copy_is_found_whole(callboard_world: World) -> None:
    await filled(callboard_world, mails=3, handled=2)
    found = await repair.compare(callboard_world.bus, repair=True)
    assert (found.first, found.compared, found.copies, found.missed, found.lost) == (1, 7, 7, 0, [])


async def test_what_cannot_be_compared_is_an_error(callboard_world: World) -> None:
    bus = callboard_world.bus
    await bus.store(Write(f"{subjects.gap('cb.state.greeter.ann', 1)}x", b"{}"))
    await filled(callboard_world, mails=1, handled=1)
    with pytest.raises(DecodeError, match="is no copy"):
        await repair.compare(bus, repair=False)
    await bus.delete_stream(subjects.GAPS)
    with pytest.raises(NotFoundError, match="CB_AUDIT_GAPS"):
        await repair.compare(bus, repair=False)
    await bus.delete_stream(subjects.AUDIT)
    with pytest.raises(BusError, match="does not exist"):
        await repair.compare(bus, repair=False)


async def _store_of(server: NatsServer) -> Path:
    (found,) = (server.folder / "js").rglob("streams/CB_AUDIT")
    return found


@pytest.mark.parametrize("has_place", [False, True])
async def test_after_a_power_cut_the_copy_becomes_whole_again(
    make_server: Callable[..., NatsServer], *, has_place: bool
) -> None:
    """The cut is played by an earlier copy of the audit's messages; the originals are synced and stay.

    With ``has_place`` the server's note of how far it has copied is newer than what it has: it does not go back.
    """
    server = await make_server(sync_always=True).start()
    bus = await jetstream.connect(server.url, name="first")
    await apply(bus, await plan(bus, declared(TopologySettings())))
    past = Past(bus, SYSTEM_CLOCK)

    async def turns(count: int) -> None:
        for _ in range(count):
            await past.send("ann")
            await past.handle("ann")
        await copied(bus)

    await turns(10)
    await bus.close()
    server.stop()
    audit = await _store_of(server)
    kept = audit / "msgs" if has_place else audit
    shutil.copytree(kept, server.folder / "kept")
    await server.start()
    bus = past.bus = await jetstream.connect(server.url, name="second")
    await turns(10)
    await bus.close()
    server.stop()
    shutil.rmtree(kept)
    shutil.copytree(server.folder / "kept", kept)
    await server.start()
    bus = past.bus = await jetstream.connect(server.url, name="third")
    await turns(2)
    found = await repair.compare(bus, repair=False)
    assert found.missed == (30 if has_place else 0)
    assert found.compared == 66
    mended = await repair.compare(bus, repair=True)
    assert mended.repaired == found.missed
    again = await repair.compare(bus, repair=True)
    assert (again.missed, again.repaired, again.copies, again.lost) == (0, 0, 66, [])
    # the late copies count as copies: what they stand for can be swept, and is still told
    for version in past.versions["ann"][:-1]:
        await bus.delete_message(subjects.ACTORS, version.seq)
    for version in past.versions["ann"]:
        assert (await history.version_at(bus, ANN, version.seq)).digest == version.digest
    walked = [turn async for turn in replay.turns(bus, ANN)]
    assert [turn.version.seq for turn in walked] == [version.seq for version in past.versions["ann"]]
    assert all(turn.missing == 0 and len(turn.steps) == 1 and turn.arrival for turn in walked)
    await bus.close()


class Survivor:
    """A sweeper whose server dies and comes back, with a clock that can be moved on."""

    def __init__(self, server: NatsServer, bus: Bus) -> None:
        self.server = server
        self.bus = bus
        self.past = Past(bus, SYSTEM_CLOCK)
        self.clock = LaterClock()
        self._sweeper = Trimmer(bus, clock=self.clock, retention_s=RETENTION_S)
        self._reconnects = 0
        bus.on_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        self._reconnects += 1

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await self.past.send("ann")
            await self.past.handle("ann")
        await copied(self.bus)

    async def sweep(self, *, after_s: float = 0.0) -> TrimReport:
        self.clock.ahead_s += after_s
        number = ANN.partition(16)
        return await self._sweeper.trim("greeter", number, cursor=self.past.cursor(), dirty=self.past.taken())

    async def restart(self) -> None:
        count = self._reconnects
        await self.server.start()
        await eventually(lambda: self._reconnects > count, within_s=10)


async def test_the_sweeper_mends_the_copy_after_a_power_cut_before_it_sweeps(
    make_server: Callable[..., NatsServer],
) -> None:
    server = await make_server(sync_always=True).start()
    bus = await jetstream.connect(server.url, name="worker")
    await apply(bus, await plan(bus, declared(TopologySettings())))
    scene = Survivor(server, bus)
    versions = scene.past.versions
    await scene.turns(10)
    assert (await scene.sweep()).safe == 0
    assert (await scene.sweep(after_s=SETTLE_S + 1)).versions == 9
    mark = await bus.get_last(subjects.ACTORS, MARK)
    assert mark is not None
    assert cursors.decode(mark.data).upto == versions["ann"][-1].seq
    server.stop()
    messages = await _store_of(server) / "msgs"
    shutil.copytree(messages, server.folder / "kept")
    await scene.restart()
    await scene.turns(10)
    assert (await scene.sweep()).safe == 0
    server.stop()
    shutil.rmtree(messages)
    shutil.copytree(server.folder / "kept", messages)
    await scene.restart()
    await scene.turns(2)
    assert (await repair.compare(bus, repair=False)).missed == 30
    assert (await scene.sweep()).safe == 0
    assert (await repair.compare(bus, repair=False)).missed == 0
    assert (await scene.sweep(after_s=SETTLE_S + 1)).versions == 10
    report = await scene.sweep(after_s=RETENTION_S)
    assert (report.mails, report.versions) == (12, 2)
    for version in versions["ann"]:
        assert (await history.version_at(bus, ANN, version.seq)).digest == version.digest
    assert (await repair.compare(bus, repair=False)).lost == []
    await bus.close()


async def test_turns_that_are_in_neither_stream_are_named(make_server: Callable[..., NatsServer]) -> None:
    """What is swept and then lost from the copy is lost: its numbers tell."""
    server = await make_server().start()
    bus = await jetstream.connect(server.url, name="first")
    await apply(bus, await plan(bus, declared(TopologySettings())))
    past = Past(bus, SYSTEM_CLOCK)
    for _ in range(6):
        await past.send("ann")
        await past.handle("ann")
    # the copy is told to begin only now, as one that lost what came before would
    await bus.delete_stream(subjects.AUDIT)
    for version in past.versions["ann"][2:4]:
        await bus.delete_message(subjects.ACTORS, version.seq)
    await apply(bus, await plan(bus, declared(TopologySettings())))
    await copied(bus)

    async def is_whole() -> bool:
        return (await archive.extent(bus)).upto >= past.versions["ann"][-1].seq

    await eventually(is_whole)
    found = await repair.compare(bus, repair=True)
    assert found.missed == 0
    assert [(gap.actor, gap.first, gap.last) for gap in found.lost] == [("greeter/ann", 3, 4)]
    assert [turn.missing async for turn in replay.turns(bus, ANN)] == [0, 0, 2, 0]
    await bus.close()


async def test_a_swept_stream_lacks_nothing(callboard_world: World) -> None:
    past = await filled(callboard_world, mails=6, handled=5)
    await swept(callboard_world, past)
    found = await repair.compare(callboard_world.bus, repair=True)
    assert (found.missed, found.lost) == (0, [])
