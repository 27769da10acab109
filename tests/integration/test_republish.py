"""History is sent again and nothing acts on it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from callboard import Actor, on
from callboard.runtime import republish, subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Message, Write
from callboard.runtime.capability import capability
from callboard.runtime.errors import InvalidNameError
from callboard.runtime.republish import Slice
from tests.support.eventually import eventually
from tests.support.world import World

effects: list[object] = []


@capability
async def pay(amount: int) -> int:
    effects.append(amount)
    return amount


class Note(msgspec.Struct):
    text: str


class Book(Actor, name="book"):
    @on
    async def note(self, m: Note) -> str:
        effects.append(m.text)
        return m.text


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


async def test_a_slice_is_sent_again_with_its_origin_and_has_no_effect(callboard_world: World) -> None:
    world = callboard_world
    await world.start(pay)
    for amount in range(5):
        await world.client.call(pay, amount, id=f"pay/{amount}")
    heard: list[Message] = []
    await world.bus.subscribe("shadow.>", heard.append)
    wanted = Slice(subjects=("cb.result.pay.*",), submitted=True)
    sent = await republish.republish(world.bus, world.bus, wanted, to="shadow.{subject}", rate=10_000)
    assert (sent.messages, sent.left_out) == (5, 0)
    await eventually(lambda: len(heard) == 5)
    assert [msgspec.json.decode(message.data) for message in heard] == [0, 1, 2, 3, 4]
    for message in heard:
        headers = dict(message.headers or {})
        assert headers.pop(header.REPLAY).startswith("CB_LEDGER/")
        assert message.subject == f"shadow.{headers.pop(header.REPLAY_SUBJECT)}"
        assert headers.keys() == {header.STORED_AT}
    assert effects == [0, 1, 2, 3, 4]


async def test_a_slice_ends_where_it_should(callboard_world: World) -> None:
    world = callboard_world
    await world.start(pay)
    for amount in range(4):
        await world.client.call(pay, amount)
    between = datetime.now(UTC)
    await world.client.call(pay, 4)
    heard: list[Message] = []
    await world.bus.subscribe("shadow", heard.append)
    for wanted, count in (
        (Slice(until=between), 4),
        (Slice(since=between), 1),
        (Slice(limit=2), 2),
        (Slice(subjects=("cb.result.other.*",)), 0),
    ):
        heard.clear()
        sent = await republish.republish(world.bus, world.bus, wanted, to="shadow", rate=10_000)
        assert sent.messages == count
        await eventually(lambda wanted=count: len(heard) == wanted)


@pytest.mark.parametrize(
    "to", ["cb.task.pay", "cb.mail.book.a", "$JS.API.STREAM.PURGE.CB_WORK", "_INBOX.x", "{subject}", "a.*", "a b", ""]
)
async def test_history_goes_nowhere_where_somebody_acts_on_it(callboard_world: World, to: str) -> None:
    with pytest.raises(InvalidNameError):
        await republish.republish(callboard_world.bus, callboard_world.bus, Slice(), to=to)


async def test_a_replayed_task_that_comes_back_is_a_dead_letter_and_runs_nothing(callboard_world: World) -> None:
    world = callboard_world
    await world.start(pay)
    await world.bus.store(Write(subjects.task("pay"), b"7", {header.REPLAY: "CB_LEDGER/1"}))
    await eventually(lambda: _letters(world, "cb.dead.task.pay.>"))
    assert effects == []


async def test_replayed_mail_that_comes_back_is_a_dead_letter_and_runs_nothing(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Book)
    await world.bus.store(Write(subjects.mail("book", "ann"), b'{"text":"x"}', {header.REPLAY: "CB_AUDIT/1"}))
    await eventually(lambda: _letters(world, "cb.dead.mail.book.>"))
    assert effects == []
    assert await world.client.actor("book/ann").ask(Note("after")) == "after"


async def _letters(world: World, pattern: str) -> int:
    return len(await world.bus.subject_counts(subjects.DEAD, pattern))
