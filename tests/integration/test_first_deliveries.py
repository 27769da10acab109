"""A worker that has just begun: what it is handed as new may be running elsewhere, if its server has forgotten that."""

from __future__ import annotations

from callboard.runtime.bus.base import Delivery, Write
from callboard.runtime.bus.topology import task_consumers
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import WorkSettings
from callboard.runtime.doubt import FIRST_S, Doubt
from tests.support.eventually import eventually
from tests.support.world import World


async def _doubt(world: World) -> Doubt:
    found = Doubt(world.bus, "work", clock=SYSTEM_CLOCK, spawn=lambda work, _: work.close())
    await found.begin()
    return found


async def _queue(world: World, *, count: int) -> None:
    for config in task_consumers("work", WorkSettings()):
        await world.bus.create_consumer("CB_WORK", config)
    for _ in range(count):
        await world.bus.store(Write("cb.task.work", b"1"))


async def test_what_stood_in_a_used_queue_is_asked_about_for_seconds(callboard_world: World) -> None:
    world = callboard_world
    await _queue(world, count=2)
    taken: list[Delivery] = []
    pull = await world.bus.pull("CB_WORK", "work-normal", taken.append)
    pull.grant(1)
    await eventually(lambda: len(taken) == 1)
    await pull.close()
    found = await _doubt(world)
    now_s = world.bus.connected_at
    assert [found.is_early("normal", seq, now_s) for seq in (1, 2, 3)] == [True, True, False]
    assert not found.is_early("high", 1, now_s)
    assert not found.is_early("normal", 1, now_s + FIRST_S + 0.1)


async def test_nothing_is_asked_about_where_nobody_was_handed_anything(callboard_world: World) -> None:
    await _queue(callboard_world, count=2)
    found = await _doubt(callboard_world)
    assert not found.is_early("normal", 1, callboard_world.bus.connected_at)
