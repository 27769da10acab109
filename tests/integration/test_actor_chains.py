"""Chains of messages: re-entry, circles that are cut, deadlines that travel, questions asked twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime

import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.mail import Link, mail_headers
from callboard.runtime.errors import (
    AskTimeoutError,
    MailLoopError,
    ReplyGoneError,
    RetryableError,
)
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import handled, letters, mails_of, record_of, state_of
from tests.support.eventually import eventually
from tests.support.world import World


class Start(Struct):
    via: str = ""
    hops: int = 1


class Inner(Struct):
    text: str = "x"


class Bounce(Struct):
    count: int = 0


class Nap(Struct):
    to: str = ""


ran: Counter[str] = Counter()
deadlines: dict[str, datetime | None] = {}
gate: asyncio.Event


@pytest.fixture(autouse=True)
def fresh() -> None:
    global gate  # noqa: PLW0603 - one a test
    ran.clear()
    deadlines.clear()
    gate = asyncio.Event()


class Alpha(Actor, retry=RetryPolicy(attempts=3, gaps_s=(0.02,)), restart_budget=100):
    class State(Struct):
        seen: list[str] = []

    @on
    async def start(self, m: Start) -> str:
        ran[f"start {self.key}"] += 1
        self.state.seen.append("begun")
        found = await self.ask(m.via or "beta/b", Start(str(self.address), m.hops))
        if m.hops == 3 and self.attempt < 2:
            raise RetryableError
        self.state.seen.append("done")
        return str(found)

    @on
    async def inner(self, m: Inner) -> str:
        ran[f"inner {self.key}"] += 1
        self.state.seen.append(m.text)
        self.tell("beta/sink", Inner(m.text))
        self.remind("later", Inner("later"), delay_s=500)
        return f"{m.text} after {len(self.state.seen)}"


class Beta(Actor):
    class State(Struct):
        seen: list[str] = []

    @on
    async def start(self, m: Start) -> str:
        ran[f"start {self.key}"] += 1
        answers = [str(await self.ask(m.via, Inner(f"n{number}"))) for number in range(m.hops)]
        return ", ".join(answers)

    @on
    async def inner(self, m: Inner) -> None:
        self.state.seen.append(m.text)


async def test_a_asks_b_asks_a(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Alpha, Beta)
    found = await world.client.actor("alpha/a").ask(Start(hops=2), timeout_s=20)
    assert found == "n0 after 2, n1 after 3"
    assert await state_of(world, "alpha/a") == {"seen": ["begun", "n0", "n1", "done"]}
    record = await record_of(world, "alpha/a")
    assert (record.turns, record.ahead, list(record.timers)) == (1, [], ["later"])
    await handled(world, "beta/sink", 2)
    assert await state_of(world, "beta/sink") == {"seen": ["n0", "n1"]}


async def test_an_actor_asks_itself(callboard_world: World) -> None:
    world = callboard_world

    class Selfish(Actor):
        class State(Struct):
            seen: list[int] = []

        @on
        async def bounce(self, m: Bounce) -> int:
            self.state.seen.append(m.count)
            if m.count < 5:
                return int(await self.ask(self.address, Bounce(m.count + 1))) + 1
            return 0

    await world.start(Selfish)
    assert await world.client.actor("selfish/s").ask(Bounce(), timeout_s=20) == 5
    assert await state_of(world, "selfish/s") == {"seen": [0, 1, 2, 3, 4, 5]}
    with pytest.raises(MailLoopError, match="10 of them selfish/s's"):
        await world.client.actor("selfish/s").ask(Bounce(-50), timeout_s=20)


async def test_what_came_inside_a_failed_attempt_is_made_again_with_the_next(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Alpha, Beta)
    await world.client.actor("alpha/a").ask(Start(hops=3), timeout_s=20)
    await handled(world, "beta/sink", 3)
    assert await state_of(world, "beta/sink") == {"seen": ["n0", "n1", "n2"]}
    seen = (await state_of(world, "alpha/a"))["seen"]
    assert sorted(seen) == ["begun", "done", "n0", "n1", "n2"]
    assert ran["start b"] == 1


async def test_a_tell_of_its_own_chain_waits_its_turn(callboard_world: World) -> None:
    world = callboard_world

    class Teller(Actor):
        @on
        async def start(self, m: Start) -> str:
            self.tell(m.via, Inner("told"))
            return "ok"

    await world.start(Alpha, Teller)
    assert await world.client.actor("alpha/a").ask(Start("teller/t"), timeout_s=20) == "ok"
    await handled(world, "alpha/a", 2)
    assert await state_of(world, "alpha/a") == {"seen": ["begun", "done", "told"]}


async def test_two_echo_actors_are_stopped_with_a_dead_letter_that_names_the_chain(callboard_world: World) -> None:
    world = callboard_world

    class Echo(Actor):
        @on
        async def bounce(self, m: Bounce) -> None:
            ran["bounce"] += 1
            self.tell("echo/b" if self.key == "a" else "echo/a", Bounce(m.count + 1))

    class Counting(Actor, max_chain=5):
        @on
        async def bounce(self, m: Bounce) -> None:
            ran["counting"] += 1
            self.tell(f"counting/{m.count + 1}", Bounce(m.count + 1))

    await world.start(Echo, Counting)
    await world.client.actor("echo/a").tell(Bounce())
    await world.client.actor("counting/0").tell(Bounce())

    async def cut() -> bool:
        return bool(await letters(world, "echo/a")) and bool(await letters(world, "counting/5"))

    await eventually(cut)
    (letter,) = await letters(world, "echo/a")
    assert letter.failure.code == "mail_loop"
    assert "20 turns led to one another, 10 of them echo/a's" in letter.failure.message
    assert "echo/a -> echo/b -> echo/a" in letter.failure.message
    assert ran == {"bounce": 20, "counting": 5}
    assert (await record_of(world, "echo/a")).status == "active"


async def test_work_in_rounds_is_no_circle(callboard_world: World) -> None:
    world = callboard_world

    class Rounds(Actor):
        class State(Struct):
            count: int = 0

        @on
        async def bounce(self, m: Bounce) -> None:
            assert self.mail.chain == ()
            self.state.count = m.count
            if m.count < 2:
                self.tell(self.address, Bounce(m.count + 1), delay_s=1.0)

    await world.start(Rounds)
    await world.client.actor("rounds/r").tell(Bounce())
    await handled(world, "rounds/r", 3)
    assert await state_of(world, "rounds/r") == {"count": 2}


class Sleepy(Actor):
    @on
    async def nap(self, m: Nap) -> str:
        ran[f"nap {self.key}"] += 1
        deadlines[self.key] = self.deadline
        if m.to:
            return str(await self.ask(m.to, Nap(), timeout_s=500))
        await gate.wait()
        return "awake"


async def test_a_question_that_waited_beyond_its_deadline_costs_no_run(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Sleepy)
    first = asyncio.create_task(world.client.actor("sleepy/s").ask(Nap(), timeout_s=30))
    await eventually(lambda: ran["nap s"] == 1)
    with pytest.raises(AskTimeoutError):
        await world.client.actor("sleepy/s").ask(Nap(), timeout_s=0.3)
    gate.set()
    assert await first == "awake"

    async def passed() -> bool:
        record = await record_of(world, "sleepy/s")
        return record.applied > record.mail - 1 and await mails_of(world, "sleepy/s") == 2 and record.turns == 1

    await eventually(passed)
    assert await world.client.actor("sleepy/s").ask(Nap()) == "awake"
    assert ran["nap s"] == 2


async def test_a_deadline_goes_down_the_chain_and_ends_all_of_it(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Sleepy)
    with pytest.raises(AskTimeoutError):
        await world.client.actor("sleepy/top").ask(Nap("sleepy/bottom"), timeout_s=1.5)
    assert deadlines["top"] is not None
    assert deadlines["bottom"] is not None
    assert deadlines["bottom"] <= deadlines["top"]

    async def over() -> bool:
        return all([(await record_of(world, f"sleepy/{key}")).turns == 1 for key in ("top", "bottom")])

    await eventually(over)
    gate.set()
    assert await world.client.actor("sleepy/bottom").ask(Nap()) == "awake"


class Once(Actor):
    class State(Struct):
        total: int = 0

    @on
    async def bounce(self, m: Bounce) -> int:
        self.state.total += m.count
        return int(self.state.total)


async def test_a_repeated_question_gets_the_stored_answer_and_has_no_second_effect(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Once)
    once = world.client.actor("once/o")
    assert await once.ask(Bounce(5), idempotency_key="five") == 5
    for number in range(15):
        assert await once.ask(Bounce(1), idempotency_key=f"k{number}") == 6 + number
    assert await once.ask(Bounce(5), idempotency_key="five") == 5
    assert await once.ask(Bounce(1), idempotency_key="k99") == 21
    with pytest.raises(ReplyGoneError):
        await once.ask(Bounce(5), idempotency_key="five")
    assert await state_of(world, "once/o") == {"total": 21}


async def test_mail_told_twice_under_one_id_is_handled_once(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Once)
    once = world.client.actor("once/o")
    assert await once.tell(Bounce(5), id="five") == await once.tell(Bounce(5), id="five")
    await once.ask(Bounce(1))
    # another door, which the broker does not watch for repeats
    from callboard.runtime import subjects
    from callboard.runtime.bus.base import Write

    await world.bus.store(Write(subjects.mail("once", "o"), b'{"count": 5}', mail_headers(type="Bounce", id="five")))
    assert await once.ask(Bounce(1)) == 7


async def test_a_forged_chain_is_bounded_as_well(callboard_world: World) -> None:
    world = callboard_world
    from callboard.runtime.actor.address import Address

    await world.start(Once)
    chain = tuple(Link(Address("other", str(number)), number) for number in range(60))
    with pytest.raises(MailLoopError, match="60 turns"):
        await world.client.actor("once/o").ask(Bounce(), headers=mail_headers(chain=chain))
