"""A worker that has just begun: what it is handed as new may be running elsewhere, if its server has forgotten that."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.bus.base import Delivery, Write
from callboard.runtime.bus.topology import task_consumers
from callboard.runtime.capability import capability
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import WorkSettings
from callboard.runtime.doubt import FIRST_S, Doubt
from callboard.runtime.lease import HoldsQuestion
from tests.support.eventually import eventually
from tests.support.world import QUICK, World


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


async def test_a_redelivery_under_question_yields_to_the_first_one_that_asks_late(callboard_world: World) -> None:
    """The first lay in the socket of a worker that stood still: not seen there when the second was asked about."""
    world = callboard_world
    begun: list[int] = []

    @capability("work")
    async def work(n: int) -> None:
        begun.append(n)

    for config in task_consumers("work", QUICK):
        await world.bus.create_consumer("CB_WORK", config)
    await world.bus.store(Write("cb.task.work", b"1", {"Nats-Msg-Id": "work/1"}))
    taken: list[Delivery] = []
    pull = await world.bus.pull("CB_WORK", "work-normal", taken.append)
    pull.grant(1)
    await eventually(lambda: len(taken) == 1)
    running = await world.start(work, options=replace(QUICK, holds_wait_s=1.0))
    asked = running.pool._admission.claims
    await eventually(lambda: any(claim.delivery.delivered == 2 for claim in asked.values()), within_s=20)
    question = HoldsQuestion(["work/1"], [taken[0].seq], [1], "a")
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    inbox = world.bus.inbox()
    await world.bus.subscribe(inbox, lambda message: answers.put_nowait(message.data))
    await world.bus.publish(subjects.CTL_HOLDS, msgspec.json.encode(question), reply=inbox)
    assert b"work/1" not in await answers.get(), "the first one goes before it"
    await eventually(lambda: not asked)
    assert not begun
    await world.bus.ack([taken[0].token])
    await pull.close()
