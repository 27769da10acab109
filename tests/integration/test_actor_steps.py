"""Steps, tasks and questions of a turn: recorded once, whatever happens to the turn around them."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.capability import capability
from callboard.runtime.errors import AskFailedError, RetryableError, TerminalError
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import mails_of, state_of, steps_of
from tests.support.eventually import eventually
from tests.support.world import World

FAST = RetryPolicy(attempts=4, gaps_s=(0.02,))


class Go(Struct):
    name: str = ""


class Question(Struct):
    text: str


class Later(Struct):
    pass


ran: Counter[str] = Counter()
gate: asyncio.Event


@pytest.fixture(autouse=True)
def fresh() -> None:
    global gate  # noqa: PLW0603 - one a test
    ran.clear()
    gate = asyncio.Event()


def step(name: str) -> str:
    ran[name] += 1
    return name.upper()


async def slow_step(name: str) -> str:
    ran[name] += 1
    await asyncio.sleep(0)
    return name.upper()


@capability("work")
async def work(name: str) -> str:
    ran[f"task {name}"] += 1
    await gate.wait()
    return f"done {name}"


class Oracle(Actor):
    @on
    async def answer(self, m: Question) -> str:
        ran[f"asked {m.text}"] += 1
        if m.text == "bad":
            text = "no answer"
            raise TerminalError(text)
        return m.text[::-1]


class Flaky(Actor, retry=FAST, restart_budget=100):
    """Fails twice after its steps, and then does what it is named for."""

    class State(Struct):
        got: list[str] = []

    @on
    async def go(self, m: Go) -> list[str]:
        one = await self.step("one", step, "one")
        both = await self.gather(self.step("two", step, "two"), self.step("three", slow_step, "three"))
        same = [await self.step("same", step, "same") for _ in range(2)]
        answer = await self.ask("oracle/o", Question(m.name))
        self.state.got += [one, *both, *same, answer]
        if self.attempt < 3:
            raise RetryableError
        return list(self.state.got)


async def test_steps_and_answers_are_kept_over_retries(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Flaky, Oracle)
    found = await world.client.actor("flaky/a").ask(Go("abc"))
    assert found == ["ONE", "TWO", "THREE", "SAME", "SAME", "cba"]
    assert ran == {"one": 1, "two": 1, "three": 1, "same": 2, "asked abc": 1}
    assert await state_of(world, "flaky/a") == {"got": found}
    assert await mails_of(world, "oracle/o") == 1


async def test_an_error_of_the_asked_is_the_same_on_every_run(callboard_world: World) -> None:
    world = callboard_world
    heard: list[str] = []

    class Asker(Actor, retry=FAST, restart_budget=100):
        @on
        async def go(self, _: Go) -> str:
            try:
                await self.ask("oracle/o", Question("bad"))
            except AskFailedError as error:
                heard.append(f"{error.cause_code} {error}")
            if self.attempt < 3:
                raise RetryableError
            return heard[0]

    await world.start(Asker, Oracle)
    found = await world.client.actor("asker/a").ask(Go())
    assert heard == [found] * 3
    assert found.startswith("terminal oracle/o answered")
    assert ran["asked bad"] == 1


async def test_a_killed_host_repeats_no_step(callboard_world: World) -> None:
    world = callboard_world
    begun: list[str] = []
    stay = asyncio.Event()

    class Long(Actor):
        @on
        async def go(self, _: Go) -> list[str]:
            begun.append("run")
            found = [await self.step(name, step, name) for name in ("a", "b", "c")]
            if len(begun) == 1:
                await stay.wait()
            found.append(await self.step("d", step, "d"))
            return found

    first = await world.start(Long)
    ask = asyncio.create_task(world.client.actor("long/a").ask(Go(), idempotency_key="k", timeout_s=40))
    await eventually(lambda: ran["c"] == 1)
    await world.start(Long)
    await first.kill()
    assert await ask == ["A", "B", "C", "D"]
    assert len(begun) == 2
    assert ran == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_a_task_of_a_turn_is_submitted_once_though_its_host_dies(callboard_world: World) -> None:
    world = callboard_world

    class Caller(Actor):
        @on
        async def go(self, m: Go) -> str:
            ran["turn"] += 1
            found: str = await self.call(work, m.name)
            return found

    await world.start(work)
    first = await world.start(Caller)
    ask = asyncio.create_task(world.client.actor("caller/a").ask(Go("x"), idempotency_key="k", timeout_s=40))
    await eventually(lambda: ran["task x"] == 1)
    await eventually(lambda: _has(world, "caller/a", "~submit work"))
    await world.start(Caller)
    await first.kill()
    await eventually(lambda: ran["turn"] == 2, within_s=15)
    gate.set()
    assert await ask == "done x"
    assert ran == {"turn": 2, "task x": 1}
    assert len(await world.records("work")) == 1


async def _has(world: World, address: str, name: str) -> bool:
    return name in await steps_of(world, address)


async def test_a_synchronous_handler_has_its_turn_and_its_steps(callboard_world: World) -> None:
    world = callboard_world

    class Plain(Actor, retry=FAST, restart_budget=100):
        @on
        def go(self, m: Go) -> list[str]:
            turn = current_turn()
            found = [self.wait(self.step("one", step, "one")), self.wait(self.ask("oracle/o", Question("xy")))]
            self.tell("flaky/told", Go("uv"))
            assert turn.progress(50, text="half")
            if self.attempt == 1:
                raise RetryableError
            return [*found, turn.key, m.name]

    await world.start(Plain, Oracle, Flaky)
    assert await world.client.actor("plain/k").ask(Go("n")) == ["ONE", "yx", "k", "n"]
    assert ran["one"] == 2 - 1 or ran["one"] == 2  # flaky/told has a step of that name too
    assert ran["asked xy"] == 1
    await eventually(lambda: ran["asked uv"] == 1)


async def test_what_a_turn_leaves_behind_can_do_nothing_any_more(callboard_world: World) -> None:
    world = callboard_world
    errors: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    class Careless(Actor):
        @on
        async def go(self, _: Go) -> None:
            async def late() -> None:
                await gate.wait()
                for act in (
                    lambda: self.tell("oracle/o", Question("late")),
                    lambda: self.step("late", step, "late"),
                    lambda: self.remind("late", Go(), delay_s=1),
                ):
                    try:
                        act()
                    except Exception as error:  # noqa: BLE001 - any
                        errors.append(type(error).__name__)
                try:
                    await self.ask("oracle/o", Question("late"))
                except Exception as error:  # noqa: BLE001 - any
                    errors.append(type(error).__name__)

            tasks.append(asyncio.create_task(late()))

    await world.start(Careless, Oracle)
    await world.client.actor("careless/a").ask(Go())
    gate.set()
    await asyncio.gather(*tasks)
    assert errors == ["ActorError"] * 4
    assert ran == {}


async def test_more_turns_than_places_may_wait_for_one_another(callboard_world: World) -> None:
    world = callboard_world

    class Deep(Actor):
        @on
        async def go(self, m: Go) -> str:
            number = int(m.name)
            found: str = "bottom" if not number else await self.ask(f"deep/{self.key}{number}", Go(str(number - 1)))
            return found

    from msgspec.structs import replace

    from callboard.runtime.actor.services import ActorRules
    from tests.support.world import QUICK

    await world.start(Deep, options=replace(QUICK, actor_rules=ActorRules(turns=2)))
    asks = [world.client.actor(f"deep/{name}").ask(Go("4"), timeout_s=20) for name in "abc"]
    assert await asyncio.gather(*asks) == ["bottom"] * 3
