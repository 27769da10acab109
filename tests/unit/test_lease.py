"""A lease that was once overdue is lost, whatever was extended since; and how a keeper shows its worker's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from callboard.runtime import subjects
from callboard.runtime.bus.base import Delivery
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.claim import Claim, Stage
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.testing import FakeClock

ACK_WAIT_S = 4.0


def keeper_and_claim(clock: FakeClock, stage: Stage) -> tuple[LeaseKeeper, Claim]:
    keeper = LeaseKeeper("w", ack_wait_s=ACK_WAIT_S, extend_every_s=1.0, max_block_s=60.0, clock=clock)
    delivery = Delivery("cb.task.plot", b"{}", None, "token", 7, 1, 0, 0)
    claim = Claim(delivery, capability="plot", lane="normal", now_s=clock.monotonic(), now=clock.now())
    claim.stage = stage
    keeper.add(claim)
    return keeper, claim


async def extend_after(keeper: LeaseKeeper, clock: FakeClock, pause_s: float) -> None:
    await clock.advance(pause_s)
    keeper.loop_ticked_at = clock.monotonic()
    bus = MemoryBroker().connect(name="keeper")
    try:
        await keeper._extend(bus, clock.monotonic())
    finally:
        await bus.close()


@pytest.mark.parametrize(("pause_s", "is_lost"), [(ACK_WAIT_S - 0.5, False), (ACK_WAIT_S + 0.5, True)])
async def test_a_late_extension_does_not_bring_a_lapsed_lease_back(pause_s: float, is_lost: bool) -> None:
    clock = FakeClock()
    keeper, claim = keeper_and_claim(clock, Stage.RUNNING)
    await asyncio.wait_for(extend_after(keeper, clock, pause_s), 5)
    assert claim.extended_at == clock.monotonic(), "a run that is under way is kept in any case"
    assert keeper.has_lapsed(claim) is is_lost


async def test_a_lapsed_claim_that_has_not_begun_is_neither_kept_nor_claimed_to_be_held() -> None:
    clock = FakeClock()
    keeper, claim = keeper_and_claim(clock, Stage.READY)
    assert keeper.holds("~7")
    await asyncio.wait_for(extend_after(keeper, clock, ACK_WAIT_S + 0.5), 5)
    assert keeper.has_lapsed(claim)
    assert not keeper.holds("~7")
    assert claim.extended_at < clock.monotonic()


@pytest.mark.parametrize(
    ("turn", "asker", "must_yield"),
    [(1, "a", True), (1, "z", True), (2, "a", True), (2, "z", False), (3, "a", False), (1, "w", False)],
)
def test_a_claim_yields_to_who_goes_first_and_asks_after_it_has_asked(turn: int, asker: str, must_yield: bool) -> None:
    """The other's delivery lay in a socket when we asked, so that it did not say that it has one."""
    keeper, claim = keeper_and_claim(FakeClock(), Stage.SCREENING)
    claim.delivery = Delivery("cb.task.plot", b"{}", None, "token", 7, 2, 0, 0)
    assert keeper.holds("~7", seq=7, turn=turn, worker=asker) is (turn == 3 or (turn == 2 and asker == "z"))
    assert claim.must_yield is must_yield
    claim.is_chosen = True
    assert keeper.holds("~7", seq=7, turn=1, worker="a"), "it is decided: who asks from now on yields"


class SilentBus(MemoryBus):
    """Its server takes everything and passes nothing on once ``is_silent``; ``forced`` counts reconnects."""

    is_silent = False
    forced = 0

    async def publish(self, subject: str, data: bytes = b"", **options: object) -> None:
        if not self.is_silent:
            await super().publish(subject, data)

    async def reconnect(self) -> None:
        self.forced += 1
        await super().reconnect()


@asynccontextmanager
async def serving(clock: FakeClock) -> AsyncIterator[tuple[SilentBus, list[float]]]:
    """A keeper at work for worker ``w``; gives its bus and the times of the beats that others hear."""
    broker = MemoryBroker(clock)
    bus, other = SilentBus(broker, name="keeper"), broker.connect(name="other")
    heard: list[float] = []
    await other.subscribe(subjects.beat("w"), lambda _: heard.append(clock.monotonic()))
    keeper = LeaseKeeper(
        "w", ack_wait_s=ACK_WAIT_S, extend_every_s=1.0, max_block_s=60.0, clock=clock, beat=lambda: b"beat"
    )
    task = asyncio.create_task(keeper.serve(bus, stop=lambda: False))
    await clock.settle()
    yield bus, heard
    task.cancel()
    await asyncio.wait([task])


async def test_the_keeper_answers_pings_at_once() -> None:
    clock = FakeClock()
    async with serving(clock) as (bus, _):
        answer = await bus.broker.connect(name="asker").request(subjects.ping("w"))  # type: ignore[attr-defined] # MemoryBroker
        assert answer.data == b"memory", "the server that it is on, for those who have not heard a beat yet"


async def test_beats_that_come_back_force_nothing() -> None:
    clock = FakeClock()
    async with serving(clock) as (bus, heard):
        await clock.advance(10)
        assert bus.forced == 0
        assert len(heard) >= 9


async def test_beats_that_stay_away_force_a_reconnect_after_1_6_s_and_then_every_four() -> None:
    clock = FakeClock()
    async with serving(clock) as (bus, _):
        await clock.advance(2.0)
        bus.is_silent = True
        await clock.advance(0.4)
        assert bus.forced == 0
        await clock.advance(1.4)
        assert bus.forced == 1
        await clock.advance(2.4)
        assert bus.forced == 1
        await clock.advance(1.2)
        assert bus.forced == 2


async def test_a_beat_goes_out_right_after_a_reconnect() -> None:
    clock = FakeClock()
    async with serving(clock) as (bus, heard):
        await clock.advance(0.3)
        await bus.reconnect()
        await clock.advance(0.2)
        assert len(heard) == 2


async def test_a_keeper_that_was_stopped_itself_does_not_blame_the_server() -> None:
    clock = FakeClock()
    async with serving(clock) as (bus, _):
        await clock.advance(1.0)
        clock._time += 30.0
        await clock.advance(1.0)
        assert bus.forced == 0


async def test_without_a_link_nothing_is_forced() -> None:
    clock = FakeClock()
    async with serving(clock) as (bus, _):
        bus.cut()
        await clock.advance(10)
        assert bus.forced == 0


async def test_messages_on_the_ping_subject_without_a_reply_are_harmless() -> None:
    clock = FakeClock()
    async with serving(clock) as (bus, heard):
        await bus.publish(subjects.ping("w"), b"")
        await clock.advance(2.5)
        assert len(heard) == 3
