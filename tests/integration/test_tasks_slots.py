"""Slot first, then pull: a worker holds no more than it can start, and every slot that is free is used."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter

import msgspec
import pytest
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.capability import capability
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.control import Order
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.subjects import LANES, Lane
from tests.support.eventually import eventually
from tests.support.world import QUICK, World


async def test_a_worker_with_two_slots_never_runs_more_and_holds_little_more(callboard_world: World) -> None:
    world = callboard_world
    running = most = held = 0

    @capability(concurrency=2)
    async def work(number: int) -> int:
        nonlocal running, most, held
        running += 1
        most = max(most, running)
        held = max(held, len(worker.worker.keeper.claims))
        await asyncio.sleep(0.001)
        running -= 1
        return number

    worker = await world.start(work)
    for lane in LANES:
        await world.client.submit_many(work, list(range(60)), lane=lane)
    await world.all_recorded("work", 180)
    assert most == 2
    # two running, two settling or parked per lane at the worst
    assert held <= 2 * 2 + 4
    await world.nothing_held()


async def test_what_a_busy_worker_got_beyond_its_slots_runs_elsewhere(callboard_world: World) -> None:
    world = callboard_world
    go = asyncio.Event()
    where: dict[int, str] = {}

    @capability(concurrency=1)
    async def stuck(number: int) -> None:
        await go.wait()

    @capability("stuck", concurrency=8)
    async def free(number: int) -> None:
        where[number] = "free"

    first = await world.start(stuck)
    await world.client.submit(stuck, 0)
    await eventually(lambda: bool(first.pool.running))
    for lane in LANES:
        await world.client.submit_many(stuck, [1, 2, 3], lane=lane)
    await world.start(free)
    # the credit that lies parked with the busy worker gives its tasks back; nobody waits for the stuck one
    await eventually(lambda: _recorded(world, "stuck", 9), within_s=8)
    go.set()
    records = await world.all_recorded("stuck", 10)
    assert all("crashes" not in msgspec.json.encode(r).decode() for r in records.values())


async def _recorded(world: World, name: str, count: int) -> bool:
    return len(await world.records(name)) >= count


async def test_high_overtakes_low_and_low_never_starves(callboard_world: World) -> None:
    world = callboard_world
    order: list[str] = []
    started = asyncio.Event()
    go = asyncio.Event()

    @capability(concurrency=1)
    async def note(lane: str) -> None:
        order.append(lane)
        started.set()
        if len(order) == 1:
            await go.wait()
        await asyncio.sleep(0)

    await world.client.submit_many(note, ["low"] * 1000, lane="low")
    await world.start(note)
    await started.wait()
    await world.client.submit_many(note, ["high"] * 10, lane="high")
    go.set()
    await world.all_recorded("note", 1010, timeout_s=30)
    last_high = max(index for index, lane in enumerate(order) if lane == "high")
    lows_before = order[:last_high].count("low")
    assert lows_before <= 20


async def test_three_full_lanes_are_served_by_weight(callboard_world: World) -> None:
    world = callboard_world
    order: list[str] = []

    @capability(concurrency=4)
    async def note(lane: str) -> None:
        order.append(lane)
        await asyncio.sleep(0.0005)

    for lane in LANES:
        await world.client.submit_many(note, [lane] * 240, lane=lane)
    await world.start(note)
    await world.all_recorded("note", 720, timeout_s=30)
    share = Counter(order[:240])
    assert share["low"] >= 12
    assert share["high"] > 1.6 * share["normal"] > 1.6 * share["low"]


async def test_a_lane_that_others_emptied_does_not_keep_the_slots_from_the_rest(callboard_world: World) -> None:
    world = callboard_world
    mine: list[str] = []

    @capability(concurrency=2)
    async def work(name: str) -> None:
        mine.append(name)

    worker = await world.start(work)
    await world.client.submit(work, "first", lane="low")
    await eventually(lambda: mine == ["first"])
    # what the pool heard last of the low lane is stale: somebody else took those tasks
    worker.pool._lanes.backlog["low"] = 50
    worker.pool._regrant()
    await world.client.submit_many(work, ["high"] * 6, lane="high")
    await world.client.submit_many(work, ["normal"] * 6)
    await eventually(lambda: len(mine) == 13, within_s=4)


async def test_long_tasks_on_one_lane_leave_free_slots_to_another(callboard_world: World) -> None:
    world = callboard_world
    go = asyncio.Event()
    quick: list[int] = []

    @capability(concurrency=8)
    async def work(number: int) -> None:
        if number < 5:
            await go.wait()
        else:
            quick.append(number)

    worker = await world.start(work)
    await world.client.submit_many(work, [0, 1, 2, 3, 4])
    await eventually(lambda: len(worker.pool.running) == 5)
    worker.pool._lanes.backlog["normal"] = 50
    worker.pool._regrant()
    await world.client.submit_many(work, list(range(5, 25)), lane="high")
    await eventually(lambda: len(quick) == 20, within_s=4)
    go.set()


async def test_slots_are_changed_while_it_runs(callboard_world: World) -> None:
    world = callboard_world
    go = threading.Event()
    lock = threading.Lock()
    inside = 0

    @capability(concurrency=1)
    def work(number: int) -> None:
        nonlocal inside
        with lock:
            inside += 1
        go.wait(20)
        with lock:
            inside -= 1

    worker = await world.start(work)
    try:
        await world.client.submit_many(work, list(range(12)))
        await eventually(lambda: inside == 1)
        subject = subjects.ctl_worker(worker.worker.id)
        answer = await world.bus.request(subject, msgspec.json.encode(Order(op="slots", capability="work", slots=5)))
        assert b'"ok":true' in answer.data
        await eventually(lambda: inside == 5)
        answer = await world.bus.request(subject, msgspec.json.encode(Order(op="slots", capability="none", slots=5)))
        assert b"error" in answer.data
    finally:
        go.set()
    await world.all_recorded("work", 12)


async def test_a_thread_that_blocks_stops_neither_the_loop_nor_other_threads(callboard_world: World) -> None:
    world = callboard_world
    go = threading.Event()

    @capability(concurrency=2)
    def work(number: int) -> str:
        if number == 0:
            go.wait(20)
        return threading.current_thread().name

    @capability
    async def quick() -> str:
        return threading.current_thread().name

    await world.start(work, quick)
    try:
        slow = await world.client.submit(work, 0)
        names = [await world.client.call(work, n, timeout_s=5) for n in range(1, 6)]
        assert all(name.startswith("cb-work") for name in names)
        assert not (await world.client.call(quick, timeout_s=5)).startswith("cb-work")
        assert await world.client.record("work", slow.id) is None
    finally:
        go.set()
    assert await world.client.wait(slow, timeout_s=5)


async def test_a_slot_stays_taken_until_its_timed_out_thread_ends_and_the_others_go_on(callboard_world: World) -> None:
    world = callboard_world
    go = threading.Event()

    @capability(concurrency=2, timeout_s=0.1, retry=RetryPolicy(attempts=1))
    def work(number: int) -> int:
        if number == 0:
            go.wait(20)
        return number

    worker = await world.start(work)
    try:
        stuck = await world.client.submit(work, 0)
        found = await world.client.wait_record(stuck, timeout_s=5)
        assert (found.status, found.error.code) == ("failed", "task_timeout")  # type: ignore[union-attr]
        assert len(worker.pool.lingering) == 1
        for number in range(1, 6):
            assert await world.client.call(work, number, timeout_s=2) == number
    finally:
        go.set()
    await eventually(lambda: len(worker.pool.lingering) == 0)


# Leases that a busy machine keeps: a claim that lapses before it began comes again, as if its worker had died.
PATIENT = replace(QUICK, ack_wait_s=30.0, extend_every_s=1.0)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_the_mix_every_task_is_finished(callboard_world: World, seed: int) -> None:
    world = callboard_world
    dice = random.Random(seed)
    failed: set[int] = set()

    @capability(concurrency=dice.choice([1, 2, 3, 8]), timeout_s=5, retry=RetryPolicy(gaps_s=(0.01,)))
    async def mixed(number: int) -> int:
        kind = number % 7
        if kind == 1 and number not in failed:
            failed.add(number)
            message = "once"
            raise ValueError(message)
        if kind == 2:
            await asyncio.sleep(dice.random() * 0.02)
        return number

    @capability(concurrency=dice.choice([1, 2, 5]))
    def threaded(number: int) -> int:
        return number

    for _ in range(2):
        await world.start(mixed, threaded, options=PATIENT)
    count = 0
    for step in range(25):
        lane: Lane = dice.choice(LANES)
        size = dice.choice([1, 1, 2, 5, 20])
        named = dice.random() < 0.4
        ids = [f"{step}/{n}" for n in range(size)] if named else None
        for target in (mixed, threaded):
            await world.client.submit_many(
                target,
                list(range(count, count + size)),
                lane=lane,
                task_ids=[f"{target.name}{i}" for i in ids] if ids else None,
            )
        count += size
        if dice.random() < 0.3:
            await SYSTEM_CLOCK.sleep(dice.random() * 0.05)
        if dice.random() < 0.1:
            await world.client.pause("mixed")
            await world.client.resume("mixed")
        if step == 12:
            await world.workers[0].stop()
            await world.start(mixed, threaded, options=PATIENT)
    for name in ("mixed", "threaded"):
        records = await world.all_recorded(name, count, timeout_s=20)
        assert {r.status for r in records.values()} == {"completed"}
        assert len(records) == count
        assert not any(r.crashes for r in records.values())
    await world.nothing_held()
