"""Turns: one at a time per key, in order, each once, with the state on disk wherever the actor runs next."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.errors import AskFailedError, DeadlineError
from tests.support.actors import handled, state_of
from tests.support.eventually import eventually
from tests.support.world import World


class Add(Struct):
    by: int = 1


class Slowly(Struct):
    pass


class Total(Struct):
    pass


class Blocking(Struct):
    text: str


class Countdown(Struct):
    start: int
    bad: bool = False


class Counter(Actor):
    class State(Struct):
        total: int = 0
        seen: list[int] = []

    inside = 0
    most = 0
    gate: asyncio.Event
    readers = 0

    @on
    async def add(self, m: Add) -> int:
        Counter.inside += 1
        Counter.most = max(Counter.most, Counter.inside)
        await asyncio.sleep(0)
        self.state.total += m.by
        if m.by > 1:
            self.state.seen.append(m.by)
        Counter.inside -= 1
        return int(self.state.total)

    @on
    async def slowly(self, _: Slowly) -> int:
        await Counter.gate.wait()
        self.state.total += 100
        return int(self.state.total)

    @on(read_only=True)
    async def total(self, _: Total) -> int:
        Counter.readers += 1
        return int(self.state.total)

    @on
    def blocking(self, m: Blocking) -> dict[str, object]:
        assert current_turn().key == self.key
        return {"thread": threading.current_thread() is threading.main_thread(), "text": m.text}

    @on
    async def countdown(self, m: Countdown) -> AsyncIterator[object]:
        for number in range(m.start, 0, -1):
            yield number
        if m.bad:
            yield object()


@pytest.fixture(autouse=True)
def fresh() -> None:
    Counter.inside = Counter.most = Counter.readers = 0
    Counter.gate = asyncio.Event()


async def test_many_senders_are_all_counted_one_at_a_time(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Counter)
    each = 1000 if world.kind == "memory" else 300

    async def send() -> None:
        counter = world.client.actor("counter/one")
        for _ in range(each):
            await counter.tell(Add())

    await asyncio.gather(*(send() for _ in range(8)))
    await handled(world, "counter/one", 8 * each, within_s=40)
    assert await state_of(world, "counter/one") == {"total": 8 * each, "seen": []}
    assert Counter.most == 1


async def test_mail_is_handled_in_the_order_in_which_it_was_stored(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Counter)
    keys = [f"counter/k{number}" for number in range(5)]
    for value in range(2, 62):
        await asyncio.gather(*(world.client.actor(key).tell(Add(value)) for key in keys))
    for key in keys:
        await handled(world, key, 60)
        assert (await state_of(world, key))["seen"] == list(range(2, 62))


async def test_an_answer_comes_after_the_commit(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Counter)
    counter = world.client.actor("counter/one")
    for expected in range(1, 20):
        assert await counter.ask(Add()) == expected
        assert (await state_of(world, "counter/one"))["total"] == expected


async def test_read_only_handlers_run_beside_a_turn_and_see_the_last_commit(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Counter)
    counter = world.client.actor("counter/one")
    assert await counter.ask(Add(7)) == 7
    slow = asyncio.create_task(counter.ask(Slowly()))
    assert await asyncio.gather(*(counter.ask(Total()) for _ in range(10))) == [7] * 10
    assert Counter.readers == 10
    assert not slow.done()
    Counter.gate.set()
    assert await slow == 107
    assert await counter.ask(Total()) == 107


async def test_synchronous_handlers_run_in_threads_and_do_not_hold_up_the_loop(callboard_world: World) -> None:
    world = callboard_world
    barrier = threading.Barrier(20, timeout=20)

    class Waiter(Actor):
        @on
        def meet(self, _: Blocking) -> bool:
            barrier.wait()
            return threading.current_thread() is threading.main_thread()

        @on(read_only=True)
        def look(self, _: Total) -> bool:
            return threading.current_thread() is threading.main_thread()

    await world.start(Waiter)
    asks = [world.client.actor(f"waiter/{number}").ask(Blocking("x")) for number in range(20)]
    assert await asyncio.gather(*asks) == [False] * 20
    assert await world.client.actor("waiter/1").ask(Total()) is False


async def test_parts_of_a_stream_come_in_order_and_then_the_end(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Counter)
    async with world.client.actor("counter/one").stream(Countdown(200)) as parts:
        assert [part async for part in parts] == list(range(200, 0, -1))
    await world.client.actor("counter/one").ask(Add())
    with pytest.raises(AskFailedError, match="encode"):
        async for _ in world.client.actor("counter/one").stream(Countdown(2, bad=True)):
            pass
    assert await world.client.actor("counter/one").ask(Add()) == 2


@pytest.mark.parametrize("is_killed", [False, True])
async def test_the_state_is_the_same_on_the_next_host(callboard_world: World, is_killed: bool) -> None:
    world = callboard_world
    first = await world.start(Counter)
    counter = world.client.actor("counter/one")
    for value in range(2, 12):
        await counter.ask(Add(value))
    before = await state_of(world, "counter/one")
    second = await world.start(Counter)
    await (first.kill() if is_killed else first.stop())
    assert await counter.ask(Add(50), idempotency_key="after", timeout_s=20) == before["total"] + 50
    after = await state_of(world, "counter/one")
    assert after == {"total": before["total"] + 50, "seen": [*before["seen"], 50]}
    assert second.worker.host is not None


async def test_an_idle_actor_is_forgotten_and_wakes_where_its_mail_is(callboard_world: World) -> None:
    world = callboard_world
    made: list[str] = []
    gone: list[str] = []

    class Sleeper(Actor, idle_s=0.05):
        class State(Struct):
            turns: int = 0

        def on_start(self) -> None:
            made.append(f"{self.key} {self.state.turns}")

        def on_stop(self) -> None:
            gone.append(self.key)

        @on
        async def add(self, _: Add) -> int:
            self.state.turns += 1
            return int(self.state.turns)

    running = await world.start(Sleeper)
    sleeper = world.client.actor("sleeper/a")
    assert await sleeper.ask(Add()) == 1
    await eventually(lambda: gone == ["a"], within_s=10)
    host = running.worker.host
    assert host is not None
    assert sum(len(partition.activations) for partition in host.partitions.values()) == 0
    assert await sleeper.ask(Add()) == 2
    assert made == ["a 0", "a 1"]


async def test_a_read_only_question_ends_with_its_deadline(callboard_world: World) -> None:
    world = callboard_world

    class Stuck(Actor):
        @on(read_only=True, timeout_s=0.2)
        async def look(self, _: Total) -> None:
            await asyncio.Event().wait()

        @on(read_only=True)
        async def leave(self, _: Add) -> None:
            raise SystemExit(3)

    await world.start(Stuck)
    with pytest.raises(DeadlineError):
        await world.client.actor("stuck/a").ask(Total(), timeout_s=5)
    with pytest.raises(AskFailedError, match="SystemExit"):
        await world.client.actor("stuck/a").ask(Add(), timeout_s=5)
