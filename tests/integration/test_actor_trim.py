"""Sweeping behind the audit copy, on both adapters."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import archive, repair, trim
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.trim import Trimmer, TrimReport
from callboard.runtime.bus.base import Bus, Source, Stored
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import BusTimeoutError, NotFoundError
from tests.support.eventually import eventually
from tests.support.past import Past
from tests.support.world import World

RETENTION_S = 7 * 86_400.0
ANN = Address("greeter", "ann")


class LaterClock:
    """The machine's clock, some time ahead: what was stored just now is old."""

    def __init__(self, ahead_s: float = 2 * RETENTION_S) -> None:
        self.ahead_s = ahead_s

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic() + self.ahead_s

    def now(self) -> datetime:
        return SYSTEM_CLOCK.now() + timedelta(seconds=self.ahead_s)

    async def sleep(self, delay_s: float) -> None:
        await SYSTEM_CLOCK.sleep(delay_s)


async def standing(bus: Bus, *filters: str) -> list[Stored]:
    return [stored async for stored in bus.read(subjects.ACTORS, subjects=filters)]


async def copied(bus: Bus) -> None:
    """Wait until the audit has all that is stored."""
    last = max(stored.seq for stored in await standing(bus, *subjects.AUDITED))

    async def is_there() -> bool:
        return (await archive.extent(bus)).upto >= last

    await eventually(is_there)


async def swept(world: World, past: Past, trimmer: Trimmer | None = None) -> TrimReport:
    sweeper = trimmer or Trimmer(world.bus, clock=LaterClock(), retention_s=RETENTION_S, settle_s=0.0)
    number = ANN.partition(16)
    return await sweeper.trim("greeter", number, cursor=past.cursor(), dirty=past.taken())


async def filled(world: World, *, mails: int, handled: int) -> Past:
    past = Past(world.bus, SYSTEM_CLOCK)
    for _ in range(mails):
        await past.send("ann")
    for _ in range(handled):
        await past.handle("ann")
    await copied(world.bus)
    return past


async def test_old_versions_and_handled_mail_go_and_the_rest_stays(callboard_world: World) -> None:
    bus = callboard_world.bus
    past = await filled(callboard_world, mails=5, handled=3)
    report = await swept(callboard_world, past)
    assert (report.mails, report.versions, report.waiting, report.problem) == (3, 2, 0, "")
    assert [stored.seq for stored in await standing(bus, "cb.state.>")] == [past.versions["ann"][-1].seq]
    assert [stored.seq for stored in await standing(bus, "cb.mbox.>")] == past.pending["ann"]
    assert len([stored async for stored in bus.read(subjects.AUDIT)]) == 5 + 3 + 3


async def test_young_mail_stays(callboard_world: World) -> None:
    past = await filled(callboard_world, mails=3, handled=3)
    sweeper = Trimmer(callboard_world.bus, clock=SYSTEM_CLOCK, retention_s=RETENTION_S, settle_s=0.0)
    report = await swept(callboard_world, past, sweeper)
    assert (report.mails, report.versions) == (0, 2)


async def test_a_long_backlog_is_swept_in_several_calls(
    callboard_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trim, "MAX_MAILS", 4)
    past = await filled(callboard_world, mails=11, handled=10)
    clock = LaterClock()
    sweeper = Trimmer(callboard_world.bus, clock=clock, retention_s=RETENTION_S, settle_s=0.0)
    assert [(await swept(callboard_world, past, sweeper)).mails for _ in range(4)] == [4, 4, 2, 0]
    await past.handle("ann")
    await copied(callboard_world.bus)
    # the pass is over; the next one begins after its share of the retention
    assert (await swept(callboard_world, past, sweeper)).mails == 0
    clock.ahead_s += RETENTION_S
    assert (await swept(callboard_world, past, sweeper)).mails == 1


async def test_what_was_not_copied_stays_until_it_is(callboard_world: World) -> None:
    bus = callboard_world.bus
    info = await bus.stream_info(subjects.AUDIT)
    assert info is not None
    past = await filled(callboard_world, mails=2, handled=1)
    # the source goes away: nothing is copied any more
    await bus.update_stream(replace(info.config, sources=(Source("CB_DEAD", ("cb.dead.>",)),)))
    await past.send("ann")
    await past.handle("ann")
    await past.handle("ann")
    report = await swept(callboard_world, past)
    assert (report.mails, report.versions, report.waiting) == (2, 0, 1)
    assert len(await standing(bus, "cb.state.greeter.ann")) == 3


async def test_nothing_goes_without_an_audit_unless_it_is_switched_off(callboard_world: World) -> None:
    past = await filled(callboard_world, mails=3, handled=3)
    await callboard_world.bus.delete_stream(subjects.AUDIT)
    dirty = dict(past.dirty)
    report = await swept(callboard_world, past)
    assert (report.mails, report.versions, report.safe) == (0, 0, 0)
    assert "does not exist" in report.problem
    past.dirty = dirty
    sweeper = Trimmer(callboard_world.bus, clock=LaterClock(), retention_s=RETENTION_S, audit=False)
    report = await swept(callboard_world, past, sweeper)
    assert (report.mails, report.versions, report.problem) == (3, 2, "")


async def test_a_copy_with_separate_sources_does_not_say_how_far_it_is(callboard_world: World) -> None:
    bus = callboard_world.bus
    info = await bus.stream_info(subjects.AUDIT)
    assert info is not None
    await bus.update_stream(replace(info.config, sources=(Source(subjects.ACTORS, ("cb.mbox.>",)),)))
    past = Past(bus, SYSTEM_CLOCK)
    await past.send("ann")

    async def is_told() -> bool:
        return "cb.state.>" in (await archive.extent(bus)).problem

    await eventually(is_told)
    await past.handle("ann")
    assert (await swept(callboard_world, past)).mails == 0


async def test_a_look_that_was_cut_short_is_no_leave_to_sweep(
    callboard_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def compare(*_: object, **__: object) -> None:
        text = "the broker does not answer"
        raise BusTimeoutError(text)

    past = await filled(callboard_world, mails=3, handled=3)
    clock = LaterClock()
    sweeper = Trimmer(callboard_world.bus, clock=clock, retention_s=RETENTION_S, settle_s=100.0)
    with monkeypatch.context() as patch:
        patch.setattr(repair, "compare", compare)
        with pytest.raises(BusTimeoutError):
            await swept(callboard_world, past, sweeper)
        report = await swept(callboard_world, past, sweeper)
        assert (report.mails, report.versions, report.safe) == (0, 0, 0)
    for _ in range(3):
        clock.ahead_s += 100.0
        report = await swept(callboard_world, past, sweeper)
    assert (report.mails, report.versions, report.waiting) != (0, 0, 1)


async def test_nothing_goes_before_the_copy_has_settled(callboard_world: World) -> None:
    past = await filled(callboard_world, mails=3, handled=3)
    clock = LaterClock()
    sweeper = Trimmer(callboard_world.bus, clock=clock, retention_s=RETENTION_S)
    assert (await swept(callboard_world, past, sweeper)).safe == 0
    clock.ahead_s += trim.SETTLE_S - 10
    report = await swept(callboard_world, past, sweeper)
    assert (report.mails, report.versions, report.waiting) == (0, 0, 1)
    clock.ahead_s += 20
    report = await swept(callboard_world, past, sweeper)
    assert (report.mails, report.versions, report.waiting) == (3, 2, 0)


async def test_an_actor_that_never_rests_is_swept_behind_its_latest_state(callboard_world: World) -> None:
    past = await filled(callboard_world, mails=9, handled=3)
    clock = LaterClock()
    sweeper = Trimmer(callboard_world.bus, clock=clock, retention_s=RETENTION_S)
    removed = 0
    for _ in range(3):
        removed += (await swept(callboard_world, past, sweeper)).versions
        clock.ahead_s += trim.SETTLE_S / 2 + 10
        await past.handle("ann")
        await copied(callboard_world.bus)
    for _ in range(4):
        removed += (await swept(callboard_world, past, sweeper)).versions
        clock.ahead_s += trim.SETTLE_S + 10
    assert removed == 5
    assert [stored.seq for stored in await standing(callboard_world.bus, "cb.state.>")] == [
        past.versions["ann"][-1].seq
    ]


async def test_a_missing_stream_of_actors_is_an_error(callboard_world: World) -> None:
    past = await filled(callboard_world, mails=2, handled=2)
    await callboard_world.bus.delete_stream(subjects.ACTORS)
    with pytest.raises(NotFoundError):
        await swept(callboard_world, past)
