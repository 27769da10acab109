"""Timers, periodic handlers and delayed mail: held by the server, and never fired once they are replaced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import inspection
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.handler import every, on
from callboard.runtime.actor.mail import KIND_TIMER
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import handled, letters, mails_of, record_of
from tests.support.eventually import eventually
from tests.support.world import World


class Set(Struct):
    name: str
    text: str
    delay_s: float = 1.0
    every_s: float | None = None
    at: datetime | None = None


class Cancel(Struct):
    name: str


class Ring(Struct):
    text: str


class Ping(Struct):
    pass


rung: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    rung.clear()


class Clock(Actor):
    @on
    async def set(self, m: Set) -> None:
        if m.every_s is not None:
            self.remind(m.name, Ring(m.text), every=m.every_s)
        elif m.at is not None:
            self.remind(m.name, Ring(m.text), at=m.at)
        else:
            self.remind(m.name, Ring(m.text), delay_s=m.delay_s)

    @on
    async def cancel(self, m: Cancel) -> None:
        self.cancel_timer(m.name)

    @on
    async def ring(self, m: Ring) -> None:
        rung.append(m.text)

    @on
    async def ping(self, _: Ping) -> list[str]:
        return rung


async def test_a_reminder_fires_once_and_is_gone(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Clock)
    clock = world.client.actor("clock/c")
    await clock.ask(Set("one", "by delay"))
    await clock.ask(Set("two", "by time", at=datetime.now(UTC) + timedelta(seconds=1)))
    assert sorted((await record_of(world, "clock/c")).timers) == ["one", "two"]
    await eventually(lambda: sorted(rung) == ["by delay", "by time"])
    await handled(world, "clock/c", 4)
    assert (await record_of(world, "clock/c")).timers == {}


async def test_a_recurring_reminder_fires_until_it_is_cancelled(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Clock)
    clock = world.client.actor("clock/c")
    await clock.ask(Set("tick", "tick", every_s=1.0))
    await eventually(lambda: len(rung) >= 2)
    await clock.ask(Cancel("tick"))
    count = len(rung)
    assert (await record_of(world, "clock/c")).timers == {}
    await clock.ask(Set("after", "after", delay_s=2.0))
    await eventually(lambda: "after" in rung, within_s=10)
    assert rung == ["tick"] * count + ["after"]


async def test_a_replaced_reminder_fires_as_its_successor_only(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Clock)
    clock = world.client.actor("clock/c")
    await clock.ask(Set("one", "old"))
    await clock.ask(Set("one", "new", delay_s=1.5))
    await eventually(lambda: rung == ["new"])
    assert await clock.ask(Ping()) == ["new"]


async def test_a_firing_of_an_old_generation_is_dropped(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Clock)
    clock = world.client.actor("clock/c")
    await clock.ask(Set("one", "new", delay_s=100))
    generation = (await record_of(world, "clock/c")).timers["one"].generation
    # only the broker's schedules make mail of this kind
    for number, stale in enumerate((generation - 1, generation, generation)):
        headers = header.at(datetime.now(UTC), subjects.mail("clock", "c")) | {
            header.MAIL_KIND: KIND_TIMER,
            header.TIMER: "one",
            header.TIMER_GENERATION: str(stale),
            header.TYPE: "Ring",
        }
        place = subjects.timer("clock", "c", f"forged{number}")
        await world.bus.store(Write(place, f'{{"text": "{stale}"}}'.encode(), headers))

    async def have_come() -> bool:
        return await mails_of(world, "clock/c") == 4

    await eventually(have_come)
    assert await clock.ask(Ping()) == [str(generation)]
    assert await letters(world, "clock/c") == []


async def test_the_last_word_of_a_turn_about_a_timer_counts(callboard_world: World) -> None:
    world = callboard_world

    class Fickle(Actor):
        @on
        async def set(self, m: Set) -> None:
            self.remind("a", Ring("first"), delay_s=1.0)
            self.remind("a", Ring("second"), delay_s=1.0)
            self.remind("b", Ring("never"), delay_s=1.0)
            self.cancel_timer("b")
            self.cancel_timer("c")
            self.remind("c", Ring(m.text), delay_s=1.0)

        @on
        async def ring(self, m: Ring) -> None:
            rung.append(m.text)

    await world.start(Fickle)
    await world.client.actor("fickle/f").ask(Set("", "third"))
    await eventually(lambda: len(rung) >= 2)
    await handled(world, "fickle/f", 3)
    assert sorted(rung) == ["second", "third"]


async def test_delayed_mail_comes_later_and_not_before_the_commit(callboard_world: World) -> None:
    world = callboard_world

    class Slow(Actor):
        @on
        async def set(self, m: Set) -> None:
            self.tell("clock/c", Ring(f"{m.text} 1"), delay_s=1.0)
            self.tell("clock/c", Ring(f"{m.text} 2"), delay_s=1.0)
            self.tell("clock/c", Ring(f"{m.text} 2"), delay_s=1.0)

    await world.start(Slow, Clock)
    await world.client.actor("slow/s").ask(Set("", "told"))
    assert await mails_of(world, "clock/c") == 0
    await eventually(lambda: sorted(rung) == ["told 1", "told 2", "told 2"])


async def test_periodic_handlers_begin_with_the_first_turn_and_follow_their_rule(callboard_world: World) -> None:
    world = callboard_world

    class First(Actor, name="beats"):
        @every(1.0)
        async def beat(self) -> None:
            rung.append("first")

        @every("1h")
        async def rare(self) -> None:
            rung.append("rare")

        @on
        async def ping(self, _: Ping) -> None:
            return None

    class Second(Actor, name="beats"):
        @every(cron="0 0 7 * * *", time_zone="Europe/Berlin")
        async def beat(self) -> None:
            rung.append("second")

        @on
        async def ping(self, _: Ping) -> None:
            return None

    first = await world.start(First)
    beats = world.client.actor("beats/b")
    assert rung == []
    await beats.ask(Ping())
    await eventually(lambda: rung.count("first") >= 2)
    assert {name: timer.rule for name, timer in (await record_of(world, "beats/b")).timers.items()} == {
        "every:beat": "@every 1s",
        "every:rare": "@every 3600s",
    }
    await first.stop()
    await world.start(Second)
    await beats.ask(Ping())
    assert {name: timer.rule for name, timer in (await record_of(world, "beats/b")).timers.items()} == {
        "every:beat": "0 0 7 * * * TZ=Europe/Berlin"
    }
    await handled(world, "beats/b", 1)
    assert await world.bus.subject_counts(subjects.ACTORS, "cb.timer.beats.b.>")
    assert await letters(world, "beats/b") == []


async def test_a_firing_for_a_handler_that_is_gone_ends_its_timer(callboard_world: World) -> None:
    world = callboard_world

    class Old(Actor, name="beats"):
        @every(1.0)
        async def beat(self) -> None:
            rung.append("beat")

        @on
        async def ping(self, _: Ping) -> None:
            return None

    class New(Actor, name="beats"):
        @on
        async def ping(self, _: Ping) -> None:
            return None

    first = await world.start(Old)
    await world.client.actor("beats/b").ask(Ping())
    await first.stop()
    await world.start(New)

    async def gone() -> bool:
        return not (await record_of(world, "beats/b")).timers

    await eventually(gone)
    assert await letters(world, "beats/b") == []


@pytest.mark.parametrize("every_s", [None, 1.0])
async def test_the_dead_letter_of_a_reminder_can_be_put_back(callboard_world: World, every_s: float | None) -> None:
    world = callboard_world
    is_broken = True

    class Brittle(Actor, name="brittle", retry=RetryPolicy(attempts=1), poison_limit=100):
        @on
        async def set(self, m: Set) -> None:
            if m.every_s is not None:
                self.remind(m.name, Ring(m.text), every=m.every_s)
            else:
                self.remind(m.name, Ring(m.text), delay_s=m.delay_s)

        @on
        async def cancel(self, m: Cancel) -> None:
            self.cancel_timer(m.name)

        @on
        async def ring(self, m: Ring) -> None:
            if is_broken:
                raise ValueError
            rung.append(m.text)

    await world.start(Brittle)
    brittle = world.client.actor("brittle/b")
    await brittle.ask(Set("tick", "tick", every_s=every_s))

    async def is_buried() -> bool:
        return [letter.failure.code for letter in await letters(world, "brittle/b")][:1] == ["handler"]

    await eventually(is_buried)
    # a timer that has fired for the last time is over, whatever came of its mail
    assert ("tick" in (await record_of(world, "brittle/b")).timers) == (every_s is not None)
    await brittle.ask(Cancel("tick"))
    is_broken = False
    count = len(await letters(world, "brittle/b"))
    assert await inspection.order(world.bus, parse("brittle/b"), "requeue") == {"ok": True, "requeued": count}
    await eventually(lambda: rung == ["tick"] * count)
    assert await letters(world, "brittle/b") == []
