"""Full mailboxes by each policy, and how deep and how old they are."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import Struct

from callboard.runtime.actor import inspection
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import MailboxFullError
from tests.support.actors import handled, letters, record_of, state_of
from tests.support.eventually import eventually
from tests.support.world import World


class Item(Struct):
    number: int


class Hint(Struct):
    number: int


gate: asyncio.Event


@pytest.fixture(autouse=True)
def fresh() -> None:
    global gate  # noqa: PLW0603 - one a test
    gate = asyncio.Event()


class Base(Actor, abstract=True):
    class State(Struct):
        got: list[int] = []

    @on
    async def item(self, m: Item) -> int:
        await gate.wait()
        self.state.got.append(m.number)
        return m.number

    @on(droppable=True)
    async def hint(self, m: Hint) -> None:
        await gate.wait()
        self.state.got.append(-m.number)


class Rejecting(Base, mailbox_cap=5, mailbox_policy="reject"):
    pass


class Parking(Base, mailbox_cap=5, mailbox_policy="park"):
    pass


class Dropping(Base, mailbox_cap=5, mailbox_policy="drop"):
    pass


async def begun(world: World, address: str) -> None:
    """Send the mail whose turn holds the gate, and wait for its turn."""
    await world.client.actor(address).tell(Item(0))

    async def runs() -> bool:
        found = await inspection.order(world.bus, parse(address), "show")
        return found["running"] is not None

    await eventually(runs)


async def test_a_rejecting_mailbox_answers_asks_and_buries_tells(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Rejecting)
    await begun(world, "rejecting/r")
    box = world.client.actor("rejecting/r")
    for number in range(1, 9):
        await box.tell(Item(number))

    async def buried() -> bool:
        return len(await letters(world, "rejecting/r")) == 4

    await eventually(buried)
    with pytest.raises(MailboxFullError, match="cap is 5"):
        await box.ask(Item(99))
    gate.set()
    await handled(world, "rejecting/r", 5)
    assert await state_of(world, "rejecting/r") == {"got": [0, 1, 2, 3, 4]}
    assert {letter.failure.code for letter in await letters(world, "rejecting/r")} == {"mailbox_full"}
    assert await box.ask(Item(100)) == 100
    found = await record_of(world, "rejecting/r")
    assert (found.ahead, found.status) == ([], "active")


async def test_a_parking_mailbox_keeps_all(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Parking)
    await begun(world, "parking/p")
    box = world.client.actor("parking/p")
    for number in range(1, 20):
        await box.tell(Item(number))
    gate.set()
    await handled(world, "parking/p", 20)
    assert await state_of(world, "parking/p") == {"got": list(range(20))}
    assert await letters(world, "parking/p") == []


async def test_a_dropping_mailbox_drops_the_oldest_that_may_go(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Dropping)
    await begun(world, "dropping/d")
    box = world.client.actor("dropping/d")
    for number in (1, 2):
        await box.tell(Hint(number))
    for number in (3, 4, 5, 6):
        await box.tell(Item(number))

    async def dropped() -> bool:
        return len((await record_of(world, "dropping/d")).ahead) == 2

    await eventually(dropped)
    await box.tell(Item(7))

    async def buried() -> bool:
        return len(await letters(world, "dropping/d")) == 1

    await eventually(buried)
    gate.set()
    await handled(world, "dropping/d", 5)
    assert await state_of(world, "dropping/d") == {"got": [0, 3, 4, 5, 6]}


async def test_depth_and_age_are_seen_from_outside(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Parking)
    await begun(world, "parking/p")
    first = await record_of(world, "parking/p")
    for number in range(1, 300):
        await world.client.actor("parking/p").tell(Item(number))
    view = await inspection.show(world.bus, parse("parking/p"))
    # the one that runs does not wait
    assert (view.mailbox.count, view.mailbox.is_more) == (299, False)
    assert view.mailbox.oldest is not None
    assert view.mailbox.oldest.seq > first.applied

    async def seen() -> bool:
        return (await inspection.order(world.bus, parse("parking/p"), "show"))["depth"] == 300

    await eventually(seen)
    gate.set()
    await handled(world, "parking/p", 300)
    assert (await inspection.order(world.bus, parse("parking/p"), "show"))["depth"] == 0
