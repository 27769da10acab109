"""One id, one task: whoever submits it again gets the first one's record, and nobody runs it beside the first."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.capability import capability
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.context import current_task
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

WINDOW_S = 0.2


async def shorten(world: World) -> None:
    """Make the broker forget ids soon."""
    for name in ("CB_WORK", "CB_LATER"):
        info = await world.bus.stream_info(name)
        assert info is not None
        await world.bus.update_stream(replace(info.config, duplicate_window_s=WINDOW_S))


async def forgotten(bus: Bus) -> None:
    """Wait until the broker has forgotten every id that it has seen so far."""
    limit_s = SYSTEM_CLOCK.monotonic() + WINDOW_S * 2
    await eventually(lambda: SYSTEM_CLOCK.monotonic() > limit_s)


async def test_a_thousand_submits_with_three_hundred_repeats_are_seven_hundred_runs(callboard_world: World) -> None:
    world = callboard_world
    runs: Counter[str] = Counter()

    @capability(concurrency=8)
    async def once(number: int) -> int:
        runs[current_task().id] += 1
        return number

    await world.start(once)
    await world.start(once)
    numbers = list(range(700)) + random.Random(7).sample(range(700), 300)
    random.Random(8).shuffle(numbers)
    handles = await world.client.submit_many(once, numbers, task_ids=[f"once/{n}" for n in numbers])
    assert sum(handle.is_duplicate for handle in handles) == 300  # type: ignore[union-attr]
    records = await world.all_recorded("once", 700, timeout_s=30)
    assert len(records) == len(runs) == runs.total() == 700
    await world.nothing_held()


async def test_the_same_id_after_the_end_gives_the_first_record(callboard_world: World) -> None:
    world = callboard_world
    await shorten(world)
    runs: list[int] = []

    @capability
    async def once(number: int) -> int:
        runs.append(number)
        return number

    await world.start(once)
    assert await world.client.call(once, 1, id="once/1", timeout_s=5) == 1
    await forgotten(world.bus)
    again = await world.client.submit(once, 2, id="once/1", notify=True)
    assert not again.is_duplicate
    assert await world.client.wait(again, timeout_s=5) == 1
    await eventually(lambda: _is_empty(world))
    assert runs == [1]


async def _is_empty(world: World) -> bool:
    return await world.waiting() == 0 and await world.waiting("CB_LATER") == 0


@pytest.mark.parametrize("where", ["same worker", "other worker", "worker that has just started"])
async def test_the_same_id_while_the_first_is_running_is_not_run_beside_it(callboard_world: World, where: str) -> None:
    world = callboard_world
    await shorten(world)
    go = asyncio.Event()
    runs: list[str] = []

    @capability(concurrency=1 if where != "same worker" else 2)
    async def once(number: int) -> int:
        runs.append(current_task().worker)
        await go.wait()
        return number

    first = await world.start(once)
    if where == "other worker":
        other = await world.start(once)
        await eventually(lambda: bool(other.worker.peers()), within_s=5)
    handle = await world.client.submit(once, 1, id="once/1")
    await eventually(lambda: len(runs) == 1)
    await forgotten(world.bus)
    again = await world.client.submit(once, 2, id="once/1")
    assert again.seq > handle.seq
    if where == "worker that has just started":
        await world.start(once)
    seen = SYSTEM_CLOCK.monotonic()
    await eventually(lambda: SYSTEM_CLOCK.monotonic() > seen + 1.6, within_s=5)
    assert len(runs) == 1
    go.set()
    assert await world.client.wait(again, timeout_s=5) == 1
    await eventually(lambda: _is_empty(world), within_s=8)
    assert len(runs) == 1
    assert first.worker.id


async def test_two_copies_of_one_id_that_wait_for_their_retry_are_not_both_run(callboard_world: World) -> None:
    world = callboard_world
    await shorten(world)
    runs: Counter[int] = Counter()
    inside = most = 0

    @capability(concurrency=4, retry=RetryPolicy(attempts=2, gaps_s=(1.0,)))
    async def once(number: int) -> int:
        nonlocal inside, most
        runs[current_task().attempt] += 1
        inside += 1
        most = max(most, inside)
        try:
            if current_task().attempt == 1:
                raise ValueError(number)
            await asyncio.sleep(0.3)
        finally:
            inside -= 1
        return number

    for _ in range(2):
        await world.start(once)
    handle = await world.client.submit(once, 1, id="once/1")
    await eventually(lambda: runs[1] == 1)
    await forgotten(world.bus)
    await world.client.submit(once, 1, id="once/1")
    assert await world.client.wait(handle, timeout_s=8) == 1
    await eventually(lambda: _is_empty(world), within_s=8)
    assert most == 1
    assert runs == {1: 1, 2: 1}


async def test_a_redelivery_without_a_free_slot_does_not_start_what_another_worker_runs(callboard_world: World) -> None:
    world = callboard_world
    await shorten(world)
    go = asyncio.Event()
    runs: Counter[str] = Counter()

    @capability(concurrency=1)
    async def work(name: str) -> str:
        runs[name] += 1
        if name != "quick":
            await go.wait()
        return name

    first = await world.start(work)
    await world.client.submit(work, "a", id="a")
    await eventually(lambda: runs["a"] == 1)
    second = await world.start(work)
    await world.client.submit(work, "b", id="b")
    await eventually(lambda: runs["b"] == 1)
    await forgotten(world.bus)
    # both are busy; the copies wait with parked credit of whoever has some
    for lane in subjects.LANES:
        await world.bus.store(Write(subjects.task("work", lane), b'"a"', {"Nats-Msg-Id": "a"}))
        await forgotten(world.bus)
    await world.start(work)
    seen = SYSTEM_CLOCK.monotonic()
    await eventually(lambda: SYSTEM_CLOCK.monotonic() > seen + 2, within_s=5)
    assert runs == {"a": 1, "b": 1}
    go.set()
    await world.all_recorded("work", 2)
    assert runs == {"a": 1, "b": 1}
    await world.nothing_held(first, second)


async def test_the_worker_that_died_is_replaced_and_the_attempt_is_the_same(callboard_world: World) -> None:
    world = callboard_world
    seen: list[tuple[str, int]] = []

    @capability(concurrency=1)
    async def work() -> str:
        task = current_task()
        seen.append((task.worker, task.attempt))
        if len(seen) == 1:
            await asyncio.Event().wait()
        return task.worker

    options = replace(QUICK, pool_rules=replace(QUICK.pool_rules, quarantine_s=0.2))
    first = await world.start(work, options=options)
    handle = await world.client.submit(work)
    await eventually(lambda: len(seen) == 1)
    await first.kill()
    second = await world.start(work, options=options)
    began_s = SYSTEM_CLOCK.monotonic()
    assert await world.client.wait(handle, timeout_s=10) == second.worker.id
    assert SYSTEM_CLOCK.monotonic() - began_s < 6
    found = await world.client.record("work", handle.id)
    assert found is not None
    assert (found.attempts, found.crashes) == (1, 1)
    assert seen == [(first.worker.id, 1), (second.worker.id, 1)]
    assert [note.kind for note in await world.attempts("work", handle.id)] == ["started"]


async def test_a_task_that_kills_its_workers_is_buried(callboard_world: World) -> None:
    world = callboard_world
    runs = 0

    @capability(concurrency=2)
    async def poison(number: int) -> int:
        nonlocal runs
        runs += 1
        await asyncio.Event().wait()
        return number

    rules = replace(QUICK.pool_rules, quarantine_s=0.1, crash_limit=2)
    options = replace(QUICK, pool_rules=rules, ack_wait_s=0.6, extend_every_s=0.2, holds_wait_s=0.1)
    handle = await world.client.submit(poison, 1)
    for number in (1, 2):
        running = await world.start(poison, options=options)
        await eventually(lambda number=number: runs == number, within_s=8)
        await running.kill()
    await world.start(poison, options=options)
    found = await world.client.wait_record(handle, timeout_s=10)
    assert (found.status, found.error.code, found.crashes) == ("failed", "crash_limit", 2)  # type: ignore[union-attr]
    (letter,) = await world.dead("poison")
    assert (letter.crashes, [note.kind for note in letter.history]) == (2, ["started"])
    assert runs == 2
