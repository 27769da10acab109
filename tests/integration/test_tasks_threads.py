"""Synchronous handlers run in threads, which nothing can interrupt: they must not run twice side by side for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import msgspec
import pytest

from callboard.runtime.capability import capability
from callboard.runtime.errors import CallboardError
from callboard.runtime.retry import RetryPolicy
from tests.support.waiting import eventually
from tests.support.world import QUICK, World

FAST = RetryPolicy(attempts=3, gaps_s=(0.05,), jitter=0)


class Gate:
    """Lets a test say when a thread may end, and counts how many are inside."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = 0
        self.most = 0
        self.starts = 0
        self._lock = threading.Lock()

    def pass_through(self) -> str:
        with self._lock:
            self.starts += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.open.wait(30)
        with self._lock:
            self.inside -= 1
        return "paid for"


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    found = Gate()
    yield found
    found.open.set()
    await eventually(lambda: found.inside == 0)


async def test_a_result_that_comes_after_the_timeout_counts_and_nothing_runs_twice(
    callboard_world: World, gate: Gate
) -> None:
    world = callboard_world

    @capability("late", concurrency=4, timeout_s=0.2, retry=FAST)
    def late() -> str:
        return gate.pass_through()

    worker = await world.start(late)
    handle = await world.client.submit(late)
    await eventually(lambda: len(worker.pool.lingering) == 1)
    # longer than the lease: it must be extended for the thread that goes on
    await asyncio.sleep(QUICK.ack_wait_s + 0.3)
    assert gate.starts == 1
    gate.open.set()
    assert await world.client.wait(handle, timeout_s=10) == "paid for"
    assert (gate.starts, gate.most) == (1, 1)


async def test_a_drain_does_not_hand_back_what_a_thread_still_runs(callboard_world: World, gate: Gate) -> None:
    world = callboard_world

    @capability("steady", concurrency=2)
    def steady() -> str:
        return gate.pass_through()

    first = await world.start(steady, options=msgspec.structs.replace(QUICK, drain_grace_s=0.3))
    handle = await world.client.submit(steady)
    await eventually(lambda: gate.inside == 1)
    second = await world.start(steady)
    first.worker.stop()
    await eventually(lambda: len(first.pool.lingering) == 1)
    await asyncio.sleep(0.5)
    assert gate.most == 1
    gate.open.set()
    await first.task
    assert await world.client.wait(handle, timeout_s=10) == "paid for"
    assert gate.starts == 1
    assert not second.task.done()


async def test_a_worker_with_a_thread_that_never_ends_drains_and_says_why(callboard_world: World, gate: Gate) -> None:
    world = callboard_world

    @capability("hung", concurrency=2, timeout_s=0.1, retry=FAST)
    def hung() -> str:
        return gate.pass_through()

    worker = await world.start(hung, options=msgspec.structs.replace(QUICK, max_block_s=0.5, drain_grace_s=0.2))
    await world.client.submit(hung)
    with pytest.raises(CallboardError, match="synchronous handler"):
        await worker.task
    world.workers.remove(worker)
    assert gate.starts == 1
