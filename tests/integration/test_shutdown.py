"""Draining a worker under load, by each strategy: nothing is lost, and no recorded step runs again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import shutdown, step
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.record import decode
from callboard.runtime.actor.recovery import Recovery
from callboard.runtime.actor.shutdown import Decision, Work
from callboard.runtime.bus import header
from callboard.runtime.capability import capability
from callboard.runtime.context import TaskContext
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

KEYS = [f"k{number}" for number in range(6)]
MAILS = 3
STEPS = 4


class Job(Struct):
    n: int


class Diary:
    """What the handlers of one test did."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, int, int]] = Counter()
        self.repeated: list[str] = []
        self.told: list[str] = []
        self.drained: list[str] = []
        self.step_s = 0.05
        self.gate: asyncio.Event | None = None


def labourer(world: World, diary: Diary, *, recovery: Recovery = "resume") -> type[Actor]:
    class Labourer(Actor, name="labourer", recovery=recovery):
        class State(Struct):
            done: list[int] = []

        @on
        async def job(self, m: Job) -> None:
            for number in range(STEPS):
                await self.step(f"step {number}", self.one, m.n, number)
                if self.is_stopping:
                    diary.told.append(self.key)
            self.state.done.append(m.n)

        async def one(self, n: int, number: int) -> int:
            diary.begun[self.key, n, number] += 1
            if f"step {number}" in await steps_of(world, self.key, self.mail.seq):
                diary.repeated.append(f"{self.key} {n} {number}")
            if diary.gate is not None:
                await diary.gate.wait()
            await asyncio.sleep(diary.step_s)
            return number

        def on_drain(self) -> None:
            diary.drained.append(self.key)

    return Labourer


async def load(world: World) -> None:
    for n in range(MAILS):
        for key in KEYS:
            await world.client.actor(f"labourer/{key}").tell(Job(n))


async def done(world: World, key: str) -> list[int]:
    stored = await world.bus.get_last(subjects.ACTORS, subjects.state("labourer", key))
    if stored is None:
        return []
    found = decode(stored.data).state
    assert isinstance(found, msgspec.Raw)
    numbers: list[int] = msgspec.json.decode(found)["done"]
    return numbers


async def all_done(world: World) -> bool:
    return all([await done(world, key) == list(range(MAILS)) for key in KEYS])


async def events(world: World, name: str) -> list[dict[str, Any]]:
    found = [stored async for stored in world.bus.read(subjects.ACTORS, subjects=("cb.event.labourer.*",))]
    return [msgspec.json.decode(s.data) for s in found if (s.headers or {}).get(header.TYPE) == name]


async def steps_of(world: World, key: str, seq: int) -> list[str]:
    """Return the names of a turn's recorded steps."""
    found = await world.bus.get_many(subjects.ACTORS, [subjects.steps("labourer", key, seq)], from_leader=True)
    return [step.decode(stored.data).name for stored in found]


async def recorded(world: World) -> Counter[str]:
    """Return how often each step has been recorded, by its subject."""
    found = world.bus.read(subjects.ACTORS, subjects=("cb.step.>",))
    return Counter([stored.subject async for stored in found if not step.is_note(step.entry_of(stored.subject))])


async def drained(world: World, diary: Diary, name: str, *, recovery: Recovery = "resume") -> None:
    """Load one worker, drain it in the middle by a strategy, and let another finish."""
    kind = labourer(world, diary, recovery=recovery)
    await load(world)
    options = replace(QUICK, shutdown=shutdown.named(name))
    first = await world.start(kind, options=options, worker_id="first")
    await eventually(lambda: len({key for key, _, _ in diary.begun}) == len(KEYS))
    await world.start(kind, worker_id="second")
    await first.stop()
    diary.step_s = 0.0
    await eventually(lambda: all_done(world), within_s=20.0, what="a mail was lost")


@pytest.mark.parametrize("name", sorted(shutdown.BUILT_IN))
async def test_nothing_is_lost_and_no_recorded_step_runs_again(callboard_world: World, name: str) -> None:
    diary = Diary()
    await drained(callboard_world, diary, name)
    assert diary.repeated == []
    assert set((await recorded(callboard_world)).values()) == {1}
    again = sum(diary.begun.values()) - len(KEYS) * MAILS * STEPS
    if name in ("finish-step", "checkpoint", "cooperative"):
        assert again == 0
    else:
        # what was cancelled in its middle had no record, and one step of a key runs at a time
        assert 0 <= again <= len(KEYS)


async def test_the_check_of_repeated_steps_sees_one(callboard_world: World) -> None:
    """Negative control."""
    diary = Diary()
    await drained(callboard_world, diary, "finish-step", recovery="restart")
    assert diary.repeated


async def test_a_cooperative_drain_tells_handlers_and_lets_them_finish(callboard_world: World) -> None:
    diary = Diary()
    kind = labourer(callboard_world, diary)
    # the turn is held in a step until the drain has begun
    diary.gate = asyncio.Event()
    await callboard_world.client.actor("labourer/ann").tell(Job(0))
    running = await callboard_world.start(kind, worker_id="first")
    await eventually(lambda: diary.begun)
    async with asyncio.TaskGroup() as group:
        group.create_task(running.stop())
        await eventually(lambda: diary.drained)
        diary.gate.set()
    assert await done(callboard_world, "ann") == [0]
    assert diary.drained == ["ann"]
    assert "ann" in diary.told


async def test_an_immediate_stop_waits_for_nothing(callboard_world: World) -> None:
    diary = Diary()
    diary.gate = asyncio.Event()
    kind = labourer(callboard_world, diary)
    await callboard_world.client.actor("labourer/ann").tell(Job(0))
    options = replace(QUICK, drain_grace_s=600.0, shutdown=shutdown.named("immediate"))
    running = await callboard_world.start(kind, options=options)
    await eventually(lambda: diary.begun)
    await asyncio.wait_for(running.stop(), 10.0)
    assert await done(callboard_world, "ann") == []
    diary.gate.set()
    await callboard_world.start(kind)
    await eventually(lambda: done(callboard_world, "ann"))


@pytest.mark.parametrize("name", ["finish-step", "checkpoint"])
async def test_a_turn_stops_before_its_next_step(callboard_world: World, name: str) -> None:
    diary = Diary()
    diary.gate = asyncio.Event()
    kind = labourer(callboard_world, diary)
    await callboard_world.client.actor("labourer/ann").tell(Job(0))
    options = replace(QUICK, shutdown=shutdown.named(name))
    running = await callboard_world.start(kind, options=options, worker_id="first")
    await eventually(lambda: diary.begun)
    running.worker.stop()
    await eventually(lambda: diary.drained)
    diary.gate.set()
    await running.task
    assert list(diary.begun) == [("ann", 0, 0)]
    assert len(await recorded(callboard_world)) == 1
    interrupted = await events(callboard_world, "interrupted")
    assert len(interrupted) == (name == "checkpoint")
    if interrupted:
        (note,) = interrupted
        assert (note["steps"], note["last_step"], note["worker"], note["cause"]) == (1, "step 0", "first", "drain")
    await callboard_world.start(kind, worker_id="second")
    await eventually(lambda: done(callboard_world, "ann"))
    assert set(diary.begun.values()) == {1}
    (resumed,) = await events(callboard_world, "resumed")
    assert (resumed["steps"], resumed["from_worker"], resumed["worker"]) == (1, "first", "second")
    assert (resumed["how"], resumed["cause"]) == ("resume", "drain")


async def test_a_turn_that_wants_no_further_step_is_committed(callboard_world: World) -> None:
    begun = asyncio.Event()
    gate = asyncio.Event()

    class Single(Actor, name="single"):
        State = dict

        @on
        async def job(self, m: Job) -> int:
            n = await self.step("only", self.one, m.n)
            self.tell("other/x", Job(n))
            return n

        async def one(self, n: int) -> int:
            begun.set()
            await gate.wait()
            return n

    options = replace(QUICK, shutdown=shutdown.named("finish-step"))
    running = await callboard_world.start(Single, options=options)
    asked = asyncio.create_task(callboard_world.client.actor("single/ann").ask(Job(3)))
    await begun.wait()
    running.worker.stop()
    await eventually(lambda: running.worker.status == "draining")
    gate.set()
    assert await asked == 3
    await running.task


async def test_steps_side_by_side_all_finish_before_the_stop(callboard_world: World) -> None:
    begun: list[str] = []
    gate = asyncio.Event()

    class Pair(Actor, name="pair"):
        @on
        async def job(self, m: Job) -> list[str]:
            first = await self.gather(self.step("a", self.one, "a"), self.step("b", self.outer))
            second = await self.step("c", self.one, "c")
            return [*first, second]

        async def outer(self) -> str:
            await gate.wait()
            # inside of a step that is under way: it must not wait for the gate, nor the gate for it
            return await self.step("inner", self.one, "inner")

        async def one(self, name: str) -> str:
            begun.append(name)
            return name

    options = replace(QUICK, shutdown=shutdown.named("finish-step"))
    running = await callboard_world.start(Pair, options=options)
    await callboard_world.client.actor("pair/ann").tell(Job(0))
    await eventually(lambda: begun)
    running.worker.stop()
    await eventually(lambda: running.worker.status == "draining")
    gate.set()
    await running.task
    assert begun == ["a", "inner"]
    await callboard_world.start(Pair)
    await eventually(lambda: begun == ["a", "inner", "c"])


async def test_a_synchronous_handler_is_stopped_before_its_next_step(callboard_world: World) -> None:
    begun: list[int] = []
    ended = asyncio.Event()
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Threaded(Actor, name="threaded"):
        @on
        def job(self, m: Job) -> None:
            try:
                for number in range(3):
                    self.wait(self.step(f"step {number}", self.one, number))
            finally:
                loop.call_soon_threadsafe(ended.set)

        async def one(self, number: int) -> None:
            begun.append(number)
            await gate.wait()

    options = replace(QUICK, shutdown=shutdown.named("finish-step"))
    running = await callboard_world.start(Threaded, options=options)
    await callboard_world.client.actor("threaded/ann").tell(Job(0))
    await eventually(lambda: begun)
    running.worker.stop()
    await eventually(lambda: running.worker.status == "draining")
    gate.set()
    await running.task
    await asyncio.wait_for(ended.wait(), 5.0)
    assert begun == [0]


class Picky:
    """Cancels one actor at once and lets all else finish."""

    name = "picky"
    leaves_note = True

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def grace_s(self, configured_s: float) -> float:
        return configured_s

    def decide(self, work: Work) -> Decision:
        self.seen.add(f"{work.what} {work.kind}")
        if work.id.startswith("labourer/bad"):
            return "cancel"
        if work.what == "task":
            raise ValueError(work.id)
        return "go_on"


async def test_a_strategy_of_ones_own_sees_every_turn_and_task(callboard_world: World) -> None:
    diary = Diary()
    diary.gate = asyncio.Event()
    started = asyncio.Event()

    @capability("long")
    async def long(context: TaskContext) -> bool:
        started.set()
        await eventually(lambda: context.is_stopping)
        return context.is_stopping

    strategy = Picky()
    kind = labourer(callboard_world, diary)
    for key in ("good", "bad"):
        await callboard_world.client.actor(f"labourer/{key}").tell(Job(0))
    running = await callboard_world.start(kind, long, options=replace(QUICK, shutdown=strategy), worker_id="first")
    task = await callboard_world.client.submit("long")
    await started.wait()
    await eventually(lambda: len(diary.begun) == 2)
    running.worker.stop()
    await eventually(lambda: events(callboard_world, "interrupted"))
    diary.gate.set()
    await running.task
    assert await done(callboard_world, "good") == [0]
    assert await done(callboard_world, "bad") == []
    assert await callboard_world.client.wait(task) is True
    assert strategy.seen == {"turn labourer", "task long"}


async def test_a_strategy_is_asked_before_a_task_can_end_because_it_was_told(callboard_world: World) -> None:
    started = asyncio.Event()

    @capability("long")
    async def long(context: TaskContext) -> bool:
        started.set()
        while not context.is_stopping:  # noqa: ASYNC110 - until the very next turn of the loop
            await asyncio.sleep(0)
        return True

    strategy = Picky()
    running = await callboard_world.start(long, options=replace(QUICK, shutdown=strategy))
    task = await callboard_world.client.submit("long")
    await started.wait()
    await running.stop()
    assert await callboard_world.client.wait(task) is True
    assert strategy.seen == {"task long"}


async def test_a_second_signal_ends_the_wait(callboard_world: World) -> None:
    diary = Diary()
    diary.gate = asyncio.Event()
    await callboard_world.client.actor("labourer/ann").tell(Job(0))
    running = await callboard_world.start(labourer(callboard_world, diary), options=replace(QUICK, drain_grace_s=600.0))
    await eventually(lambda: diary.begun)
    running.worker.stop()
    await eventually(lambda: diary.drained)
    await asyncio.wait_for(running.stop(now=True), 10.0)
    assert await done(callboard_world, "ann") == []


async def test_a_retired_worker_takes_its_time_until_it_is_told_to_stop(callboard_world: World) -> None:
    world = callboard_world
    go, ended = asyncio.Event(), Counter[str]()

    @capability
    async def slow(name: str) -> None:
        await go.wait()
        ended[name] += 1

    # no grace at all: a drain would hand it back at once
    options = replace(QUICK, drain_grace_s=0.0)
    patient = await world.start(slow, options=options)
    first = await world.client.submit(slow, "first", notify=True)
    await eventually(lambda: patient.pool.running)
    patient.worker.retire()
    second = await world.client.submit(slow, "second", notify=True)
    await eventually(lambda: patient.worker.status == "draining")
    assert not patient.task.done()
    hurried = await world.start(slow, options=options)
    await eventually(lambda: hurried.pool.running)
    hurried.worker.retire()
    await hurried.stop()
    go.set()
    await patient.task
    assert ended == {"first": 1}
    await world.start(slow)
    assert await world.client.wait(first, timeout_s=20) is None
    assert await world.client.wait(second, timeout_s=20) is None
    assert ended == {"first": 1, "second": 1}
