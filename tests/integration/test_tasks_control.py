"""Cancel, pause, drain, plan: what an operator does to tasks and workers."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import msgspec
import pytest
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor.shutdown import END_WAIT_S
from callboard.runtime.bus.base import Message
from callboard.runtime.capability import capability
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.context import TaskContext, current_task
from callboard.runtime.control import Order
from callboard.runtime.errors import InputError
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.world import QUICK, Running, World


async def is_empty(world: World) -> bool:
    return await world.waiting() == 0 and await world.waiting("CB_LATER") == 0


async def a_moment(seconds: float) -> None:
    """Give what must not happen the time to happen."""
    until = SYSTEM_CLOCK.monotonic() + seconds
    await eventually(lambda: SYSTEM_CLOCK.monotonic() >= until, within_s=seconds + 5)


# --- cancel


@pytest.mark.parametrize("named", [True, False])
async def test_a_waiting_task_is_cancelled_and_never_runs(callboard_world: World, named: bool) -> None:
    world = callboard_world
    runs: list[int] = []

    @capability
    async def work(number: int) -> None:
        runs.append(number)

    handle = await world.client.submit(work, 1, id="work/1" if named else None)
    done = await world.client.cancel("work", handle.id, reason="not needed")
    assert done.found == "waiting"
    await world.start(work)
    await world.client.call(work, 2, timeout_s=5)
    await eventually(lambda: is_empty(world))
    found = await world.client.record("work", handle.id)
    assert found is not None
    assert (found.status, found.error.message) == ("cancelled", "not needed")  # type: ignore[union-attr]
    assert runs == [2]


async def test_a_scheduled_task_is_cancelled_and_its_schedule_is_gone(callboard_world: World) -> None:
    world = callboard_world
    handle = await world.client.submit("work", 1, delay_s=3600)
    assert await world.waiting("CB_LATER") == 1
    assert (await world.client.cancel("work", handle.id)).found == "waiting"
    assert await world.waiting("CB_LATER") == 0


async def test_a_running_task_is_cancelled_where_it_runs(callboard_world: World) -> None:
    world = callboard_world
    started = asyncio.Event()
    ended: list[str] = []

    @capability
    async def endless() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(current_task().id)

    await world.start(endless)
    await world.start(endless)
    handle = await world.client.submit(endless)
    await started.wait()
    done = await world.client.cancel("endless", handle.id, reason="stop it")
    assert done.found == "running"
    assert done.record is not None
    assert (done.record.status, done.record.attempts) == ("cancelled", 1)
    assert done.record.error.message == "stop it"  # type: ignore[union-attr]
    assert ended == [handle.id]
    assert (await world.client.cancel("endless", handle.id)).found == "finished"
    await eventually(lambda: is_empty(world))
    await world.nothing_held()


async def test_a_running_thread_is_written_off_and_its_result_thrown_away(callboard_world: World) -> None:
    world = callboard_world
    go = threading.Event()
    started = threading.Event()

    @capability(concurrency=2)
    def blocked() -> str:
        started.set()
        go.wait(20)
        return "too late"

    running = await world.start(blocked)
    handle = await world.client.submit(blocked)
    try:
        await eventually(started.is_set)
        done = await world.client.cancel("blocked", handle.id)
        assert (done.found, done.record.status) == ("running", "cancelled")  # type: ignore[union-attr]
        assert len(running.pool.lingering) == 1
    finally:
        go.set()
    await eventually(lambda: len(running.pool.lingering) == 0)
    found = await world.client.record("blocked", handle.id)
    assert found is not None
    assert found.status == "cancelled"


# --- pause


async def test_a_paused_capability_waits_on_workers_old_and_new_and_goes_on(callboard_world: World) -> None:
    world = callboard_world
    done: list[int] = []
    go = asyncio.Event()

    @capability(concurrency=2)
    async def work(number: int) -> None:
        if number == 0:
            await go.wait()
        done.append(number)

    @capability
    async def other() -> str:
        return "runs"

    first = await world.start(work, other)
    await world.client.submit(work, 0)
    await eventually(lambda: len(first.worker.pools["work"].running) == 1)
    await world.client.pause("work", reason="upgrade")
    await eventually(lambda: first.worker.pools["work"].is_paused)
    second = await world.start(work, other)
    assert second.worker.pools["work"].is_paused
    await world.client.submit_many(work, [1, 2, 3, 4, 5])
    go.set()
    await eventually(lambda: done == [0])
    assert await world.client.call(other, timeout_s=5) == "runs"
    await a_moment(0.3)
    assert done == [0]
    await world.client.resume("work")
    await world.all_recorded("work", 6)
    assert sorted(done) == [0, 1, 2, 3, 4, 5]


async def test_orders_to_pause_and_resume_in_quick_succession_end_as_the_last_one_says(callboard_world: World) -> None:
    world = callboard_world

    @capability(concurrency=3)
    async def work(number: int) -> int:
        return number

    await world.start(work)
    for step in range(12):
        await world.client.submit_many(work, list(range(10)))
        await world.client.pause("work")
        if step % 3:
            await asyncio.sleep(0)
        await world.client.resume("work")
    await world.all_recorded("work", 120)
    await world.client.pause("work")
    await eventually(lambda: world.workers[0].pool.is_paused)
    await world.client.submit(work, 1)
    await a_moment(0.2)
    assert await world.waiting() == 1
    assert len(await world.records("work")) == 120
    await world.client.resume("work")
    await world.all_recorded("work", 121)


# --- drain


async def test_a_drained_worker_finishes_what_runs_and_hands_back_the_rest(callboard_world: World) -> None:
    world = callboard_world
    go = asyncio.Event()
    by: dict[int, str] = {}

    @capability(concurrency=3)
    async def work(number: int) -> None:
        await go.wait()
        by[number] = current_task().worker

    first = await world.start(work)
    await world.client.submit_many(work, list(range(20)))
    await eventually(lambda: len(first.pool.running) == 3)
    body = msgspec.json.encode(Order(op="drain"))
    answer = await world.bus.request(subjects.ctl_worker(first.worker.id), body)
    assert b"ok" in answer.data
    await eventually(lambda: first.worker.status == "draining")
    second = await world.start(work)
    go.set()
    await asyncio.wait_for(first.task, 5)
    assert first.worker.status == "stopped"
    assert not first.worker.keeper.claims
    records = await world.all_recorded("work", 20)
    assert sum(worker == first.worker.id for worker in by.values()) == 3
    assert sum(worker == second.worker.id for worker in by.values()) == 17
    assert not any(found.crashes for found in records.values())


async def test_what_will_not_end_in_the_grace_is_handed_back_and_is_no_crash(callboard_world: World) -> None:
    world = callboard_world
    seen: list[tuple[str, int]] = []

    @capability(concurrency=1)
    async def slow() -> str:
        seen.append((current_task().worker, current_task().attempt))
        if len(seen) == 1:
            await asyncio.Event().wait()
        return "done"

    first = await world.start(slow, options=replace(QUICK, drain_grace_s=0.1))
    handle = await world.client.submit(slow)
    await eventually(lambda: len(seen) == 1)
    await asyncio.wait_for(first.stop(), 5)
    await world.start(slow)
    assert await world.client.wait(handle, timeout_s=5) == "done"
    assert [attempt for _, attempt in seen] == [1, 1]
    found = await world.client.record("slow", handle.id)
    assert found is not None
    assert (found.attempts, found.crashes) == (1, msgspec.UNSET)
    assert [note.kind for note in await world.attempts("slow", handle.id)] == ["returned", "started"]


async def test_a_thread_that_never_ends_does_not_keep_the_worker(callboard_world: World) -> None:
    world = callboard_world
    go = threading.Event()

    @capability(concurrency=1)
    def blocked() -> None:
        go.wait(20)

    try:
        running = await world.start(blocked, options=replace(QUICK, drain_grace_s=0.1))
        await world.client.submit(blocked)
        await eventually(lambda: bool(running.pool.running))
        # a moment is given to the thread: its result would be worth having
        await asyncio.wait_for(running.stop(), 2 * END_WAIT_S)
    finally:
        go.set()
    assert await world.waiting() == 1


async def test_a_stubborn_handler_does_not_keep_the_worker(callboard_world: World) -> None:
    world = callboard_world
    stop = False

    @capability(concurrency=1)
    async def stubborn() -> None:
        while not stop:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    running = await world.start(stubborn, options=replace(QUICK, drain_grace_s=0.1))
    await world.client.submit(stubborn)
    await eventually(lambda: bool(running.pool.running))
    running.worker.stop()
    await eventually(lambda: running.worker.status in {"draining", "stopped"})
    await a_moment(0.3)
    stop = True
    await asyncio.wait_for(running.task, 10)


async def test_draining_while_tasks_are_being_asked_about_loses_none(callboard_world: World) -> None:
    world = callboard_world

    @capability(concurrency=4)
    async def work(number: int) -> int:
        return number

    for step in range(4):
        running: Running = await world.start(work)
        await world.client.submit_many(work, list(range(30)), task_ids=[f"{step}/{n}" for n in range(30)])
        await running.stop()
        assert not running.worker.keeper.claims
    await world.start(work)
    records = await world.all_recorded("work", 120)
    assert not any(found.crashes for found in records.values())


# --- plans


async def test_a_delayed_task_comes_no_sooner_than_asked(callboard_world: World) -> None:
    world = callboard_world
    seen: list[tuple[float, str, str]] = []

    @capability
    async def work(number: int) -> int:
        seen.append((SYSTEM_CLOCK.monotonic(), current_task().id, current_task().lane))
        return number

    await world.start(work)
    began_s = SYSTEM_CLOCK.monotonic()
    handle = await world.client.submit(work, 5, delay_s=1.2, id="work/5", lane="low")
    assert await world.client.wait(handle, timeout_s=8) == 5
    assert seen[0][0] - began_s >= 1.15
    assert seen[0][1:] == ("work/5", "low")
    await eventually(lambda: is_empty(world))
    again = await world.client.submit(work, 6, id="work/5")
    assert await world.client.wait(again, timeout_s=5) == 5


async def test_a_recurring_task_fires_is_replaced_and_is_removed(callboard_world: World) -> None:
    world = callboard_world
    seen: list[tuple[str, str]] = []

    @capability
    async def tick(name: str) -> None:
        seen.append((name, current_task().id))

    await world.start(tick)
    await world.client.schedule("heart", tick, "one", rule="@every 1s")
    await eventually(lambda: len(seen) >= 2, within_s=6)
    assert len({task_id for _, task_id in seen}) == len(seen)
    assert all(task_id.startswith("~d") for _, task_id in seen)
    await world.client.schedule("heart", tick, "two", rule="@every 1s")
    await eventually(lambda: seen[-1][0] == "two", within_s=6)
    assert await world.client.unschedule("heart")
    assert not await world.client.unschedule("heart")
    await eventually(lambda: is_empty(world))
    count = len(seen)
    await a_moment(1.3)
    assert len(seen) == count
    assert {found.status for found in (await world.records("tick")).values()} == {"completed"}


@pytest.mark.parametrize("rule", ["every monday", "@every 10ms", "* * *", "@at yesterday"])
async def test_a_rule_that_is_none_is_refused(callboard_world: World, rule: str) -> None:
    with pytest.raises(InputError, match="rule"):
        await callboard_world.client.schedule("x", "work", rule=rule)


# --- progress


async def test_progress_is_heard_while_it_runs_and_limited(callboard_world: World) -> None:
    world = callboard_world
    heard: list[dict[str, object]] = []
    sent: list[bool] = []

    @capability
    async def work(task: TaskContext) -> None:
        sent.append(task.progress(0, stage="load", text="begin"))
        sent.extend(task.progress(percent) for percent in range(1, 50))
        sent.append(task.progress(50, stage="compute"))
        sent.append(task.progress(100))

    @capability
    def in_thread() -> None:
        current_task().progress(10, stage="thread")

    await world.bus.subscribe(subjects.task_event("w"), lambda m: heard.append(_event(m)))
    await world.bus.subscribe(subjects.task_event("t"), lambda m: heard.append(_event(m)))
    await world.bus.flush()
    await world.start(work, in_thread)
    await world.client.call(work, id="w", timeout_s=5)
    assert sum(sent) == 3
    await eventually(lambda: len(heard) == 3)
    assert [(e["percent"], e.get("stage")) for e in heard] == [(0, "load"), (50, "compute"), (100, None)]
    assert heard[0]["text"] == "begin"
    await world.client.call(in_thread, id="t", timeout_s=5)
    await eventually(lambda: len(heard) == 4)
    kept = [event async for event in world.bus.read("CB_ACTORS", subjects=("cb.event.task.*",))]
    assert len(kept) == 4


def _event(message: Message) -> dict[str, object]:
    found: dict[str, object] = msgspec.json.decode(message.data)
    return found


async def test_a_failed_attempt_says_so_in_its_progress(callboard_world: World) -> None:
    world = callboard_world
    heard: list[dict[str, object]] = []

    @capability(retry=RetryPolicy(gaps_s=(0.02,)))
    async def work(task: TaskContext) -> None:
        task.progress(1)
        if task.attempt == 1:
            raise ValueError

    await world.bus.subscribe(subjects.task_event("w"), lambda m: heard.append(_event(m)))
    await world.start(work)
    await world.client.call(work, id="w", timeout_s=5)
    await eventually(lambda: [e["attempt"] for e in heard] == [1, 2])
