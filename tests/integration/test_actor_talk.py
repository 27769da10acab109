"""Asking actors that real hosts run: hosts that die, answers that are large, questions that are repeated."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from msgspec import Struct

from callboard import Actor, on
from callboard.runtime.actor import inspection
from callboard.runtime.actor import ref as refs
from callboard.runtime.actor.parts import Gap
from tests.support.eventually import eventually
from tests.support.hand_host import GREETER
from tests.support.world import World


class Ask(Struct):
    text: str


class Large(Struct):
    size: int


class Draft(Struct):
    count: int


class Held(Struct):
    text: str


class Approval(Struct):
    text: str


class Stage:
    """What the actors of a test did."""

    runs: int
    gate: asyncio.Event


@pytest.fixture(autouse=True)
def stage() -> Iterator[None]:
    Stage.runs = 0
    Stage.gate = asyncio.Event()
    yield
    Stage.gate.set()


class Greeter(Actor, name="greeter"):
    class State(Struct):
        turns: int = 0

    state: State

    @on
    async def hello(self, m: Ask) -> int:
        self.state.turns += 1
        return self.state.turns

    @on
    async def large(self, m: Large) -> str:
        return "x" * m.size

    @on
    async def draft(self, m: Draft) -> AsyncIterator[int]:
        Stage.runs += 1
        for number in range(m.count):
            yield number
            if number == 1 and Stage.runs == 1:
                # the first host dies here
                await Stage.gate.wait()

    @on
    async def held(self, m: Held) -> int:
        Stage.runs += 1
        if Stage.runs == 1:
            await Stage.gate.wait()
        self.state.turns += 1
        return self.state.turns

    @on(name="Order")
    async def order(self, m: dict[str, str]) -> str:
        found = await self.wait_for(Approval, timeout="1h")
        self.state.turns += 1
        return found.text


async def test_a_named_ask_outlives_its_host_and_has_one_effect(
    callboard_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "REPEAT_FIRST_S", 0.5)
    first = await callboard_world.start(Greeter)
    ann = callboard_world.client.actor(GREETER)
    asking = asyncio.create_task(ann.ask(Held("x"), idempotency_key="k", timeout_s=30))
    await eventually(lambda: Stage.runs == 1)
    await callboard_world.start(Greeter)
    await first.kill()
    assert await asking == 1
    assert await ann.ask(Held("x"), idempotency_key="k") == 1
    assert await ann.ask(Ask("x")) == 2


async def test_parts_go_on_after_a_takeover_without_repeats(callboard_world: World) -> None:
    first = await callboard_world.start(Greeter)
    async with callboard_world.client.actor(GREETER).stream(Draft(4)) as parts:
        found = [await anext(parts), await anext(parts)]
        await callboard_world.start(Greeter)
        await first.kill()
        found += [part async for part in parts]
    assert found == [0, 1, 2, 3]
    assert not any(isinstance(part, Gap) for part in found)
    assert Stage.runs == 2


async def test_who_asks_a_streaming_handler_for_one_answer_gets_all_parts_in_it(callboard_world: World) -> None:
    await callboard_world.start(Greeter)
    Stage.gate.set()
    assert await callboard_world.client.actor(GREETER).ask(Draft(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [100_000, 600_000, 1_500_000])
@pytest.mark.parametrize("key", [None, "k"])
async def test_a_large_answer_arrives_and_is_given_again(callboard_world: World, size: int, key: str | None) -> None:
    await callboard_world.start(Greeter)
    ann = callboard_world.client.actor(GREETER)
    for _ in range(2):
        assert len(await ann.ask(Large(size), idempotency_key=key, timeout_s=5)) == size


async def test_a_named_ask_repeated_while_its_turn_is_parked_is_one_turn(
    callboard_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "REPEAT_FIRST_S", 0.1)
    await callboard_world.start(Greeter)
    ann = callboard_world.client.actor(GREETER)
    asking = asyncio.create_task(ann.ask({}, type="Order", idempotency_key="k", timeout_s=20))

    await eventually(lambda: mails_at_least(callboard_world, 3))
    again = asyncio.create_task(ann.ask({}, type="Order", idempotency_key="k", timeout_s=20))
    await eventually(lambda: mails_at_least(callboard_world, 5))
    assert len((await inspection.state_of(callboard_world.bus, GREETER)).parked) == 1
    await ann.tell(Approval("granted"))
    assert (await asking, await again) == ("granted", "granted")
    assert await ann.ask(Ask("x")) == 2


async def mails_at_least(world: World, count: int) -> bool:
    return sum(line.stored for line in await inspection.actors(world.bus)) >= count
