"""Orders about one actor: pause, resume, kill, restart, cancel, show; they overtake all mail."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, Literal

import pytest
from msgspec import Struct

from callboard.runtime.actor import inspection
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import parse
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import ActorStoppedError, CallboardError, InputError, RetryableError, TurnCancelledError
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import events_of, handled, letters, record_of, state_of, steps_of
from tests.support.eventually import eventually
from tests.support.world import World

WHO = parse("bench/b")


class Job(Struct):
    name: str
    how: str = "wait"


running: list[str] = []
hooks: list[str] = []
gate: asyncio.Event


@pytest.fixture(autouse=True)
def fresh() -> None:
    global gate  # noqa: PLW0603 - one a test
    running.clear()
    hooks.clear()
    gate = asyncio.Event()


class Bench(Actor, retry=RetryPolicy(attempts=5, gaps_s=(30.0,)), restart_budget=100):
    class State(Struct):
        done: list[str] = []

    @on
    async def job(self, m: Job) -> str:
        if m.how == "retry" and not gate.is_set():
            running.append(m.name)
            raise RetryableError
        await self.step("first", str, m.name)
        # an order that comes from here on meets what follows, not the step
        running.append(m.name)
        if m.how == "partial":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.state.done.append(f"half of {m.name}")
                return "half"
        while m.how == "swallow" and not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                hooks.append("swallowed")
        if m.how == "wait":
            await gate.wait()
        self.state.done.append(m.name)
        return m.name

    def on_pause(self) -> None:
        hooks.append(f"pause after {len(self.state.done)}")

    async def on_resume(self) -> None:
        hooks.append("resume")

    def on_health(self) -> dict[str, Any]:
        return {"done": len(self.state.done)}


async def order(world: World, op: inspection.Op, reason: str = "") -> dict[str, object]:
    return await inspection.order(world.bus, WHO, op, reason=reason)


async def test_a_paused_actor_keeps_its_mail_until_it_is_resumed(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    bench = world.client.actor(WHO)
    await bench.ask(Job("a", "now"))
    await order(world, "pause", "for lunch")
    for number in range(300):
        await bench.tell(Job(str(number), "now"))
    asking = asyncio.create_task(bench.ask(Job("asked", "now")))
    view = await inspection.show(world.bus, WHO)
    assert (view.status, view.reason) == ("paused", "for lunch")

    async def grown() -> bool:
        return (await inspection.show(world.bus, WHO)).mailbox.count == 301

    await eventually(grown)
    assert running == ["a"]
    await order(world, "resume")
    assert await asking == "asked"
    assert running == ["a", *map(str, range(300)), "asked"]
    assert hooks == ["pause after 1", "resume"]


async def test_a_pause_lets_the_running_turn_end_first(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    bench = world.client.actor(WHO)
    asking = asyncio.create_task(bench.ask(Job("a")))
    await eventually(lambda: running == ["a"])
    await bench.tell(Job("b", "now"))
    await order(world, "pause")
    assert hooks == []
    gate.set()
    assert await asking == "a"
    await eventually(lambda: hooks == ["pause after 1"])
    assert (await record_of(world, "bench/b")).status == "paused"
    assert running == ["a"]


async def test_a_second_pause_keeps_the_first_reason_and_says_so(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    await world.client.actor(WHO).ask(Job("a", "now"))
    assert await order(world, "pause", "for lunch") == {"ok": True, "status": "paused", "reason": "for lunch"}
    again = await order(world, "pause", "just because")
    assert again == {"ok": True, "status": "paused", "reason": "for lunch", "already": True}
    assert (await inspection.show(world.bus, WHO)).reason == "for lunch"
    assert hooks == ["pause after 1"]
    await order(world, "resume")
    assert (await order(world, "pause", "for tea"))["reason"] == "for tea"


async def test_a_synchronous_handler_that_is_stopped_goes_on_and_nothing_comes_of_it(callboard_world: World) -> None:
    world = callboard_world
    goes_on, has_ended = threading.Event(), threading.Event()
    refused: list[str] = []

    class Thread(Actor, name="bench"):
        class State(Struct):
            done: list[str] = []

        @on
        def job(self, m: Job) -> str:
            running.append(m.name)
            if m.how != "now":
                assert goes_on.wait(20)
                self.state.done.append(m.name)
                try:
                    self.tell(WHO, Job("told", "now"))
                except CallboardError as error:
                    refused.append(error.code)
                has_ended.set()
            return m.name

    await world.start(Thread)
    bench = world.client.actor(WHO)
    asking = asyncio.create_task(bench.ask(Job("a")))
    await eventually(lambda: running == ["a"])
    await order(world, "cancel", "enough")
    with pytest.raises(TurnCancelledError, match="enough"):
        await asking
    # the next mail does not wait for the thread
    assert await bench.ask(Job("b", "now")) == "b"
    goes_on.set()
    await eventually(has_ended.is_set)
    assert await bench.ask(Job("c", "now")) == "c"
    assert running == ["a", "b", "c"]
    assert await state_of(world, "bench/b") == {"done": []}
    assert refused == ["actor"]


async def test_show_tells_what_runs_and_how_it_is(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    bench = world.client.actor(WHO)
    await bench.ask(Job("a", "now"))
    idle = await order(world, "show")
    assert (idle["status"], idle["running"], idle["health"]) == ("active", None, {"done": 1})
    asking = asyncio.create_task(bench.ask(Job("b")))
    await eventually(lambda: running == ["a", "b"])
    await bench.tell(Job("c", "now"))
    busy = await order(world, "show")
    assert isinstance(busy["running"], dict)
    assert (busy["running"]["type"], busy["running"]["attempt"]) == ("Job", 1)
    gate.set()
    await asking
    view = await inspection.show(world.bus, WHO)
    assert view.is_answering


async def test_a_long_turn_is_cancelled_within_a_second(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    bench = world.client.actor(WHO)
    asking = asyncio.create_task(bench.ask(Job("a"), idempotency_key="k", timeout_s=600))
    await eventually(lambda: running == ["a"])

    async def stepped() -> bool:
        return await steps_of(world, "bench/b") == ["first"]

    await eventually(stepped)
    began_s = time.monotonic()
    await order(world, "cancel", "took too long")
    with pytest.raises(TurnCancelledError, match="took too long"):
        await asking
    assert time.monotonic() - began_s < 5
    ((name, facts),) = await events_of(world, "bench/b")
    assert (name, facts["reason"], facts["partial"], facts["steps"]) == ("cancelled", "took too long", False, 1)
    assert await state_of(world, "bench/b") is None
    with pytest.raises(TurnCancelledError):
        await bench.ask(Job("a"), idempotency_key="k")
    assert await bench.ask(Job("b", "now")) == "b"


async def test_what_a_cancelled_turn_still_returns_is_kept(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    asking = asyncio.create_task(world.client.actor(WHO).ask(Job("a", "partial")))
    await eventually(lambda: running == ["a"])
    await order(world, "cancel", "enough")
    assert await asking == "half"
    assert await state_of(world, "bench/b") == {"done": ["half of a"]}
    ((name, facts),) = await events_of(world, "bench/b")
    assert (name, facts["reason"], facts["partial"]) == ("cancelled", "enough", True)


async def test_a_handler_that_swallows_its_cancellation_is_let_go_of(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    bench = world.client.actor(WHO)
    asking = asyncio.create_task(bench.ask(Job("a", "swallow")))
    await eventually(lambda: running == ["a"])
    await order(world, "cancel", "stop it")
    with pytest.raises(TurnCancelledError, match="stop it"):
        await asking
    assert len(hooks) > 2
    gate.set()
    assert await bench.ask(Job("b", "now")) == "b"


async def test_a_turn_between_two_attempts_is_cancelled_too(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    asking = asyncio.create_task(world.client.actor(WHO).ask(Job("a", "retry")))
    await eventually(lambda: running == ["a"])

    async def waits() -> bool:
        found = (await order(world, "show"))["running"]
        return isinstance(found, dict) and "waits_for_retry" in found

    await eventually(waits)
    await order(world, "cancel")
    with pytest.raises(TurnCancelledError):
        await asking
    assert running == ["a"]
    with pytest.raises(InputError, match="no turn"):
        await order(world, "cancel")


async def test_a_pause_between_two_attempts_keeps_the_mail(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    bench = world.client.actor(WHO)
    await bench.tell(Job("a", "retry"))
    await eventually(lambda: running == ["a"])
    await order(world, "pause")
    gate.set()
    await order(world, "resume")
    await handled(world, "bench/b", 1)
    assert await state_of(world, "bench/b") == {"done": ["a"]}


async def test_a_killed_actor_answers_with_why_and_lives_again_after_a_restart(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    bench = world.client.actor(WHO)
    asking = asyncio.create_task(bench.ask(Job("a")))
    await eventually(lambda: running == ["a"])
    await bench.tell(Job("told", "now"))
    await order(world, "kill", "gone wild")
    with pytest.raises(TurnCancelledError, match="gone wild"):
        await asking
    with pytest.raises(ActorStoppedError, match="killed: gone wild"):
        await bench.ask(Job("b", "now"))
    await order(world, "restart")
    await handled(world, "bench/b", 2)
    assert await state_of(world, "bench/b") == {"done": ["told"]}


async def test_a_restart_ends_the_running_turn_and_harms_no_later_one(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Bench)
    bench = world.client.actor(WHO)
    asking = asyncio.create_task(bench.ask(Job("a")))
    await eventually(lambda: running == ["a"])
    await order(world, "restart")
    with pytest.raises(TurnCancelledError, match="restarted"):
        await asking
    for name in ("b", "c"):
        await order(world, "restart")
        assert await bench.ask(Job(name, "now")) == name


async def test_a_turn_that_was_left_between_two_attempts_repeats_no_step(callboard_world: World) -> None:
    world = callboard_world
    paid: list[str] = []

    class Payer(Actor, retry=RetryPolicy(attempts=5, gaps_s=(30.0,)), restart_budget=100):
        @on
        async def job(self, m: Job) -> str:
            running.append(m.name)
            await self.step("pay", paid.append, m.name)
            if not gate.is_set():
                raise RetryableError
            return m.name

    await world.start(Payer)
    asking = asyncio.create_task(world.client.actor("payer/p").ask(Job("a")))
    await eventually(lambda: running == ["a"])
    await inspection.order(world.bus, parse("payer/p"), "pause")
    gate.set()
    await inspection.order(world.bus, parse("payer/p"), "resume")
    assert await asking == "a"
    assert paid == ["a"]


@pytest.mark.parametrize("op", ["cancel", "kill", "restart"])
async def test_what_was_told_and_is_stopped_can_be_put_back(
    callboard_world: World, op: Literal["cancel", "kill", "restart"]
) -> None:
    await callboard_world.start(Bench)
    await callboard_world.client.actor(str(WHO)).tell(Job("told"))
    await eventually(lambda: running == ["told"])
    await inspection.order(callboard_world.bus, WHO, op, reason="no more of it")

    async def stands() -> bool:
        return len(await letters(callboard_world, str(WHO))) == 1

    await eventually(stands)
    gate.set()
    await inspection.order(callboard_world.bus, WHO, "requeue")
    await eventually(lambda: running == ["told", "told"])
    await handled(callboard_world, str(WHO), 2)
    assert await state_of(callboard_world, str(WHO)) == {"done": ["told"]}
