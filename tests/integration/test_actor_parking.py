"""Turns that wait: for a message, for an answer of a person, for months; holding nothing meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import inspection
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.handler import on
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import TurnCancelledError, WaitTimeoutError
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import events_of, handled, letters, parked, record_of, state_of
from tests.support.eventually import eventually
from tests.support.world import World


class Order(Struct):
    item: str
    timeout: float | None = None
    hold: bool = False
    waits: int = 1


class Approval(Struct):
    item: str
    by: str = "ann"


class Note(Struct):
    text: str


runs: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    runs.clear()


class Desk(Actor, retry=RetryPolicy(attempts=3, gaps_s=(0.02,)), restart_budget=100):
    class State(Struct):
        notes: list[str] = []
        orders: list[str] = []

    @on
    async def order(self, m: Order) -> str:
        runs.append(m.item)
        self.state.orders.append(f"asked {m.item}")
        self.tell("log/main", Note(f"asked {m.item}"))
        price = await self.step("price", len, m.item)
        found = []
        for _ in range(m.waits):
            try:
                answer = await self.wait_for(Approval, timeout=m.timeout, where={"item": m.item}, hold=m.hold)
                found.append(answer.by)
            except WaitTimeoutError:
                found.append("nobody")
        self.state.orders.append(f"{m.item} {price} {found}")
        self.tell("log/main", Note(f"approved {m.item}"))
        return ",".join(found)

    @on
    async def note(self, m: Note) -> int:
        self.state.notes.append(m.text)
        return len(self.state.notes)


class Log(Actor):
    class State(Struct):
        lines: list[str] = []

    @on
    async def write(self, m: Note) -> None:
        self.state.lines.append(m.text)


def ask(world: World, order: Order, *, key: str | None = None, timeout_s: float = 40) -> asyncio.Task[Any]:
    desk = world.client.actor("desk/d")
    return asyncio.create_task(desk.ask(order, idempotency_key=key, timeout_s=timeout_s))


async def test_a_turn_waits_while_other_mail_is_handled(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    desk = world.client.actor("desk/d")
    waiting = ask(world, Order("pen"))
    await parked(world, "desk/d")
    assert await desk.ask(Note("one")) == 1
    await desk.tell(Approval("ink"))  # another item: nobody handles it
    await desk.tell(Approval("pen", by="bob"))
    assert await waiting == "bob"
    assert runs == ["pen", "pen"]
    # what it changed before it waited was thrown away and made again, on the state of the moment; its tells went once
    assert await state_of(world, "desk/d") == {"notes": ["one"], "orders": ["asked pen", "pen 3 ['bob']"]}
    await handled(world, "log/main", 2)
    assert await state_of(world, "log/main") == {"lines": ["asked pen", "approved pen"]}
    assert (await record_of(world, "desk/d")).parked == []
    assert [letter.failure.code for letter in await letters(world, "desk/d")] == ["unknown_message"]


async def test_two_waits_in_one_turn(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    desk = world.client.actor("desk/d")
    waiting = ask(world, Order("pen", waits=2))
    await parked(world, "desk/d")
    await desk.tell(Approval("pen", by="one"))
    await eventually(lambda: runs == ["pen", "pen"])
    await desk.tell(Approval("pen", by="two"))
    assert await waiting == "one,two"
    await handled(world, "log/main", 2)
    assert await state_of(world, "log/main") == {"lines": ["asked pen", "approved pen"]}


async def test_a_wait_ends_in_time_and_its_timer_goes_with_it(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    assert await ask(world, Order("pen", timeout=1.0)) == "nobody"
    waiting = ask(world, Order("ink", timeout=3600.0))
    await parked(world, "desk/d")

    async def timers() -> int:
        return len(await world.bus.subject_counts(subjects.ACTORS, "cb.timer.desk.d.>"))

    async def one() -> bool:
        return await timers() == 1

    await eventually(one)
    await world.client.actor("desk/d").tell(Approval("ink"))
    assert await waiting == "ann"

    async def gone() -> bool:
        return await timers() == 0

    await eventually(gone)


async def test_a_turn_that_holds_keeps_all_later_mail_behind_it(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    desk = world.client.actor("desk/d")
    waiting = ask(world, Order("pen", hold=True))
    await parked(world, "desk/d")
    for number in range(400):
        await desk.tell(Note(str(number)))
    assert await state_of(world, "desk/d") is None
    await desk.tell(Approval("pen"))
    assert await waiting == "ann"
    await handled(world, "desk/d", 401, within_s=30)
    assert (await state_of(world, "desk/d"))["notes"] == [str(number) for number in range(400)]
    view = await inspection.show(world.bus, parse("desk/d"))
    assert (view.mailbox.count, view.ahead) == (0, [])


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_parked_turn_goes_on_on_another_host(callboard_world: World, is_killed: bool) -> None:
    world = callboard_world
    first = await world.start(Desk, Log)
    waiting = ask(world, Order("pen"), key="order-1")
    await parked(world, "desk/d")
    await world.start(Desk, Log)
    await (first.kill() if is_killed else first.stop())
    await world.client.actor("desk/d").tell(Approval("pen"))
    assert await waiting == "ann"
    assert runs == ["pen", "pen"]
    await handled(world, "log/main", 2)


async def test_a_cancelled_parked_turn_answers_its_asker(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    waiting = ask(world, Order("pen", timeout=3600.0), key="k")
    await parked(world, "desk/d")
    await inspection.order(world.bus, parse("desk/d"), "cancel", reason="not now")
    with pytest.raises(TurnCancelledError, match="not now"):
        await waiting
    assert (await record_of(world, "desk/d")).parked == []
    assert [name for name, _ in await events_of(world, "desk/d")] == ["cancelled"]
    with pytest.raises(TurnCancelledError, match="not now"):
        await ask(world, Order("pen"), key="k")
    assert runs == ["pen"]


async def test_a_repeated_question_joins_the_parked_turn(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    first = ask(world, Order("pen"), key="order-1")
    await parked(world, "desk/d")
    second = ask(world, Order("pen"), key="order-1")

    async def joined() -> bool:
        return len((await record_of(world, "desk/d")).parked[0].askers) == 1

    await eventually(joined)
    await world.client.actor("desk/d").tell(Approval("pen"))
    assert [await first, await second] == ["ann", "ann"]
    assert runs == ["pen", "pen"]
    assert await ask(world, Order("pen"), key="order-1") == "ann"
    assert runs == ["pen", "pen"]


async def test_a_large_journal_is_kept_however_large(callboard_world: World) -> None:
    world = callboard_world
    made: list[int] = []

    def make(number: int) -> str:
        made.append(number)
        return str(number) * 250_000

    class Hoarder(Actor):
        @on
        async def order(self, m: Order) -> int:
            parts = [await self.step("part", make, number) for number in range(8)]
            await self.wait_for(Approval)
            return sum(map(len, parts)) + len(m.item)

    await world.start(Hoarder)
    hoarder = world.client.actor("hoarder/h")
    waiting = asyncio.create_task(hoarder.ask(Order("x" * 700_000), timeout_s=40))
    await parked(world, "hoarder/h")
    await hoarder.tell(Approval("y" * 700_000))
    assert await waiting == 8 * 250_000 + 700_000
    assert made == list(range(8))


async def test_the_awaited_message_may_come_in_an_envelope(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    waiting = ask(world, Order("pen"))
    await parked(world, "desk/d")
    body = b'{"type": "Approval", "data": {"item": "pen", "by": "shell"}}'
    await world.bus.store(Write(subjects.mail("desk", "d"), body))
    assert await waiting == "shell"


async def test_a_resumed_turn_that_fails_for_good_leaves_nothing_behind(callboard_world: World) -> None:
    world = callboard_world

    class Broken(Actor, retry=RetryPolicy(attempts=2, gaps_s=(0.02,)), restart_budget=100):
        @on
        async def order(self, m: Order) -> str:
            await self.wait_for(Approval)
            raise ValueError(m.item)

    await world.start(Broken)
    broken = world.client.actor("broken/b")
    waiting = asyncio.create_task(broken.ask(Order("pen"), timeout_s=30))
    await parked(world, "broken/b")
    await broken.tell(Approval("pen"))
    with pytest.raises(Exception, match="pen"):
        await waiting
    found = await record_of(world, "broken/b")
    assert found.parked == []
    assert found.failures == 1
    (letter,) = await letters(world, "broken/b")
    assert letter.attempts == 2
    assert b"pen" in letter.data


async def test_timers_set_before_a_wait_stand_after_it(callboard_world: World) -> None:
    world = callboard_world
    fired: list[str] = []

    class Timed(Actor):
        @on
        async def order(self, m: Order) -> None:
            self.remind("nudge", Note(m.item), delay_s=1.0)
            self.remind("gone", Note("gone"), delay_s=1.0)
            self.cancel_timer("gone")
            await self.wait_for(Approval)

        @on
        async def note(self, m: Note) -> None:
            fired.append(m.text)

    await world.start(Timed)
    timed = world.client.actor("timed/t")
    waiting = asyncio.create_task(timed.ask(Order("pen"), timeout_s=30))
    await parked(world, "timed/t")
    await timed.tell(Approval("pen"))
    await waiting
    assert list((await record_of(world, "timed/t")).timers) == ["nudge"]
    await eventually(lambda: fired == ["pen"])


async def test_a_bundle_that_is_gone_ends_the_turn_with_a_dead_letter(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    waiting = ask(world, Order("pen"))
    seq = (await parked(world, "desk/d")).parked[0].seq
    await world.bus.purge(subjects.ACTORS, subject=subjects.parked("desk", "d", seq))
    await world.client.actor("desk/d").tell(Approval("pen"))

    async def over() -> bool:
        return not (await record_of(world, "desk/d")).parked

    await eventually(over)
    (letter,) = await letters(world, "desk/d")
    assert "gone" in letter.failure.message
    waiting.cancel()


async def test_a_wait_without_an_end_outlives_hundreds_of_turns(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Log)
    waiting = [ask(world, Order(f"item-{number}"), timeout_s=60) for number in range(50)]
    await parked(world, "desk/d", 50)
    desk = world.client.actor("desk/d")
    await asyncio.gather(*(desk.tell(Note(str(number))) for number in range(100)))
    for number in reversed(range(50)):
        await desk.tell(Approval(f"item-{number}", by=str(number)))
    assert await asyncio.gather(*waiting) == [str(number) for number in range(50)]
    assert (await record_of(world, "desk/d")).parked == []
