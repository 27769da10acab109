"""A task ends with record, ack, notice, in this order: a crash anywhere between leaves one record and loses nothing.

Time is a fake clock's, so that leases run out at once and a run repeats exactly.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import UNSET

from callboard.runtime.bus.base import Bus, PubAck, Write
from callboard.runtime.bus.memory import MemoryBus
from callboard.runtime.capability import capability
from callboard.runtime.context import current_task
from callboard.runtime.errors import BusError, CallboardError
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.testing import FakeClock
from callboard.runtime.worker import WorkerOptions
from tests.support.world import World, open_world

STEP_S = 0.05
DEFAULTS = WorkerOptions(hosts_registry=False)


class DoomedBus:
    """A connection that dies at the ``count``-th passage of a gap, and everything behind it with it."""

    def __init__(self, bus: MemoryBus, gap: str, *, count: int = 1) -> None:
        self._bus = bus
        self._gap = gap
        self._left = count
        self.is_dead = asyncio.Event()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the real connection's
        return getattr(self._bus, name)

    async def store_many(self, writes: Sequence[Write], **options: Any) -> list[PubAck | BusError]:  # noqa: ANN401
        await self._pass("before record")
        answers = await self._bus.store_many(writes, **options)
        await self._pass("after record")
        return answers

    async def store_batch(self, writes: Sequence[Write], **options: Any) -> PubAck:  # noqa: ANN401
        await self._pass("before record")
        answer = await self._bus.store_batch(writes, **options)
        await self._pass("after record")
        return answer

    async def ack(self, tokens: Sequence[str], **options: Any) -> None:  # noqa: ANN401
        await self._bus.ack(tokens, **options)
        await self._pass("after ack")

    async def _pass(self, gap: str) -> None:
        if gap == self._gap:
            self._left -= 1
            if self._left == 0:
                self._bus.cut()
                self.is_dead.set()
        if self.is_dead.is_set():
            await asyncio.Event().wait()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def world(clock: FakeClock, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world("memory", tmp_path, clock=clock) as world:
        yield world
        for running in world.workers:
            running.worker.stop(now=True)
        await until(clock, lambda: all(running.task.done() for running in world.workers))


async def until(clock: FakeClock, holds: Callable[[], bool], *, within_s: float = 30.0) -> float:
    """Move the clock until ``holds``; return the seconds it took."""
    took_s = 0.0
    while not holds():
        assert took_s < within_s, f"not within {within_s} s of the clock"
        await clock.advance(STEP_S)
        took_s += STEP_S
    return took_s


async def doomed(world: World, work: Any, gap: str, *, count: int = 1) -> tuple[Any, DoomedBus]:  # noqa: ANN401
    made: list[DoomedBus] = []

    def wrap(bus: Bus) -> Bus:
        assert isinstance(bus, MemoryBus)
        made.append(DoomedBus(bus, gap, count=count))
        return cast("Bus", made[-1])

    running = await world.start(work, options=DEFAULTS, wrap=wrap)
    return running, made[0]


@pytest.mark.parametrize(
    ("gap", "runs_wanted", "notices_wanted"), [("before record", 2, 1), ("after record", 1, 0), ("after ack", 1, 0)]
)
async def test_a_crash_in_any_gap_leaves_one_record(
    world: World, clock: FakeClock, gap: str, runs_wanted: int, notices_wanted: int
) -> None:
    runs: list[str] = []
    notices: list[bytes] = []

    @capability
    async def work(number: int) -> int:
        runs.append(current_task().worker)
        return number

    await world.bus.subscribe("my.inbox", lambda message: notices.append(message.data))
    first, bus = await doomed(world, work, gap)
    handle = await world.client.submit(work, 7, headers={"Cb-Reply-To": "my.inbox"})
    await until(clock, bus.is_dead.is_set)
    await first.kill()
    await world.start(work, options=DEFAULTS)
    await clock.advance(12)
    records = await world.records("work")
    assert list(records) == [handle.id]
    found = records[handle.id]
    assert (found.status, found.attempts) == ("completed", 1)
    assert found.crashes == (1 if gap == "before record" else UNSET)
    assert found.worker == runs[-1]
    assert await world.waiting() == 0
    assert (len(runs), len(notices)) == (runs_wanted, notices_wanted)
    # a waiter needs no notice
    assert await world.client.wait(handle) == 7
    assert not world.workers[-1].worker.keeper.claims


async def test_the_other_worker_takes_over_when_the_lease_has_run_out(world: World, clock: FakeClock) -> None:
    seen: list[tuple[str, int]] = []

    @capability(concurrency=1, retry=RetryPolicy(gaps_s=(1.0,), jitter=0))
    async def work() -> str:
        seen.append((current_task().worker, current_task().attempt))
        if len(seen) == 1:
            raise ValueError
        if len(seen) == 2:
            await asyncio.Event().wait()
        return current_task().worker

    first = await world.start(work, options=DEFAULTS, worker_id="first")
    handle = await world.client.submit(work)
    await until(clock, lambda: len(seen) == 2)
    await first.kill()
    second = await world.start(work, options=DEFAULTS, worker_id="second")
    took_s = await until(clock, lambda: len(seen) == 3)
    assert took_s < DEFAULTS.ack_wait_s + 2
    await clock.advance(1)
    found = (await world.records("work"))[handle.id]
    assert seen == [("first", 1), ("first", 2), ("second", 2)]
    assert (found.attempts, found.crashes, found.worker) == (2, 1, second.worker.id)
    notes = await world.attempts("work", handle.id)
    assert [(note.kind, note.attempt) for note in notes] == [("failed", 1), ("started", 2), ("started", 2)]


async def test_a_worker_that_lives_keeps_a_long_task_whatever_is_redelivered(world: World, clock: FakeClock) -> None:
    runs: list[str] = []
    go = asyncio.Event()

    @capability(concurrency=2)
    async def long() -> str:
        runs.append(current_task().worker)
        await go.wait()
        return "done"

    await world.start(long, options=DEFAULTS)
    await world.start(long, options=DEFAULTS)
    handle = await world.client.submit(long)
    await clock.advance(DEFAULTS.ack_wait_s * 5)
    assert len(runs) == 1
    go.set()
    await clock.advance(1)
    assert await world.client.wait(handle) == "done"


class ForgetfulBus(DoomedBus):
    """Says that records are stored and stores none."""

    async def store_many(self, writes: Sequence[Write], **options: Any) -> list[PubAck | BusError]:  # noqa: ANN401
        return [PubAck("CB_LEDGER", 1) for _ in writes]


async def test_the_check_sees_a_lost_record(world: World, clock: FakeClock) -> None:
    """Negative control."""

    @capability
    async def work(number: int) -> int:
        return number

    def wrap(bus: Bus) -> Bus:
        assert isinstance(bus, MemoryBus)
        return cast("Bus", ForgetfulBus(bus, "never"))

    await world.start(work, options=DEFAULTS, wrap=wrap)
    await world.client.submit(work, 7)
    await clock.advance(2)
    assert await world.waiting() == 0
    assert await world.records("work") == {}


@pytest.mark.property
@pytest.mark.parametrize("seed", range(12))
async def test_crashes_at_chance_lose_nothing_and_record_nothing_twice(
    world: World, clock: FakeClock, seed: int
) -> None:
    dice = random.Random(seed)
    runs: Counter[str] = Counter()

    @capability(concurrency=dice.choice([1, 3, 8]))
    async def work(number: int) -> int:
        runs[current_task().id] += 1
        await clock.sleep(dice.choice([0, 0, 0.2, 3.0]))
        return number

    names = [f"work/{number}" if dice.random() < 0.5 else None for number in range(24)]
    handles = [await world.client.submit(work, number, id=name) for number, name in enumerate(names)]
    crashes = 0
    for _ in range(3):
        gap = dice.choice(["before record", "after record", "after ack"])
        running, bus = await doomed(world, work, gap, count=dice.randint(1, 4))
        for _ in range(dice.randint(60, 200)):
            if bus.is_dead.is_set():
                break
            await clock.advance(STEP_S)
        crashes += 1
        await running.kill()
    await world.start(work, options=DEFAULTS)
    await clock.advance(60)
    records = await world.records("work")
    assert set(records) == {handle.id for handle in handles}
    assert {found.status for found in records.values()} <= {"completed", "failed"}
    assert all(found.error.code == "crash_limit" for found in records.values() if found.status == "failed")  # type: ignore[union-attr]
    assert await world.waiting() == 0
    # a task is run again only where a worker died with it
    assert max(runs.values()) <= crashes + 1
    assert not world.workers[-1].worker.keeper.claims


class Dumb:
    """A connection that stays up, on which the broker answers no pull any more."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the real connection's
        return getattr(self.bus, name)

    @property
    def is_connected(self) -> bool:
        """What the client believes."""
        return True


@pytest.mark.parametrize("is_deaf", [False, True])
async def test_an_idle_worker_outlasts_a_long_outage_and_control_one_that_is_connected_and_deaf_ends(
    world: World, clock: FakeClock, is_deaf: bool
) -> None:
    @capability
    async def work(number: int) -> int:
        return number

    made: list[MemoryBus] = []

    def wrap(bus: Bus) -> Bus:
        assert isinstance(bus, MemoryBus)
        made.append(bus)
        return cast("Bus", Dumb(bus)) if is_deaf else bus

    running = await world.start(work, options=DEFAULTS, wrap=wrap)
    for bus in made:
        bus.cut()
    await clock.advance(120)
    if is_deaf:
        await until(clock, running.task.done)
        with pytest.raises(CallboardError, match="not answered a pull"):
            await running.task
        world.workers.remove(running)
        return
    assert not running.task.done()
    for bus in made:
        bus.mend()
    _ = await world.client.submit(work, 7)
    await clock.advance(5)
    assert [record.status for record in (await world.records("work")).values()] == ["completed"]
