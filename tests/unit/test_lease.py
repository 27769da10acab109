"""A lease that was once overdue is lost, whatever was extended since."""

from __future__ import annotations

import asyncio

import pytest

from callboard.runtime.bus.base import Delivery
from callboard.runtime.bus.memory import MemoryBroker
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
