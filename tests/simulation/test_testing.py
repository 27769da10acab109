"""What users get for tests of their own: simulated runs, and a world inside the test's loop."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import Struct

from callboard import Actor, capability, on, testing
from callboard.runtime.errors import BusError, InputError, SimulationDeadlockError
from callboard.runtime.testing import FaultRates, World, simulate, world


class Hello(Struct, frozen=True):
    name: str


class Reply(Struct, frozen=True):
    text: str
    turn: int


class Greeter(Actor, name="greeter"):
    class State(Struct):
        turns: int = 0

    state: State

    @on
    async def hello(self, m: Hello) -> Reply:
        self.state.turns += 1
        return Reply(f"hi {m.name}", self.state.turns)


class Later(Actor, name="later"):
    class State(Struct):
        names: list[str] = []

    state: State

    @on
    async def hello(self, m: Hello) -> list[str]:
        if m.name:
            self.remind("again", Hello(""), delay_s=30)
        else:
            self.state.names.append("later")
        return self.state.names


@capability
async def double(number: int) -> int:
    return 2 * number


async def greet(w: World) -> list[int]:
    await w.start(Greeter, double, name="a")
    turns = [(await w.actor("greeter/ann").ask(Hello("bob"), returns=Reply)).turn]
    await w.start(Greeter, double, name="b")
    w.crash("a")
    turns.append((await w.actor("greeter/ann").ask(Hello("bob"), returns=Reply, idempotency_key="x")).turn)
    turns.append(await w.client.call(double, 21))
    w.pause("b")
    await w.clock.sleep(60)
    w.resume("b")
    w.cut("b")
    w.mend("b")
    await w.restart_server()
    turns.append((await w.actor("greeter/ann").ask(Hello("bob"), returns=Reply, idempotency_key="y")).turn)
    return turns


def test_a_simulated_run_survives_a_crash_and_repeats() -> None:
    outcomes = [simulate(greet, seed=seed) for seed in (1, 1, 2)]
    assert all(outcome.value == [1, 2, 42, 3] for outcome in outcomes)
    assert outcomes[0].history_hash == outcomes[1].history_hash != outcomes[2].history_hash
    assert all(outcome.took_s > 60 for outcome in outcomes)


def test_a_failure_bears_its_seed() -> None:
    async def fail(w: World) -> None:
        text = "of the test's own"
        raise ValueError(text)

    with pytest.raises(ValueError, match="own") as caught:
        simulate(fail, seed=17)
    assert any("seed 17" in note for note in caught.value.__notes__)
    assert testing.simulate is simulate
    assert issubclass(SimulationDeadlockError, Exception)


async def test_a_world_in_the_tests_own_loop() -> None:
    async with world() as w:
        await w.start(Greeter, double)
        reply = await w.actor("greeter/ann").ask(Hello("bob"), returns=Reply)
        assert reply == Reply("hi bob", 1)
        assert await w.client.call(double, 4) == 8
        with pytest.raises(InputError, match="living worker"):
            await w.start(Greeter)
        await w.stop("a")


async def test_time_passes_when_told() -> None:
    async with world() as w:
        await w.start(Later, Greeter)
        assert await w.actor("later/ann").ask(Hello("x")) == []
        await w.advance(35)
        assert await w.actor("later/ann").ask(Hello("")) == ["later", "later"]


async def test_another_worker_goes_on_with_a_dead_ones_actors() -> None:
    async with world() as w:
        await w.start(Greeter, name="a")
        await w.actor("greeter/ann").ask(Hello("bob"))
        await w.crash("a")
        await w.start(Greeter, name="b")
        await w.actor("greeter/ann").tell(Hello("bob"), id="second")
        await w.advance(8)
        reply = await w.actor("greeter/ann").ask(Hello("bob"), returns=Reply)
        assert reply.turn == 3


async def test_faults_are_the_seeds() -> None:
    async with world(seed=3) as w:
        await w.start(double, faults=FaultRates(lose_ack=0.2))
        handles = [await w.client.submit(double, n) for n in range(10)]
        await w.advance(60)
        assert [await w.client.wait(handle) for handle in handles] == [2 * n for n in range(10)]


async def put_out(w: World) -> int:
    await w.start(Greeter, name="a")
    await w.start(Greeter, name="b")
    nemesis = testing.Nemesis(w, w.simulation.dice("nemesis"))
    async with asyncio.TaskGroup() as group:
        group.create_task(nemesis.run(for_s=10))
        for number in range(5):
            group.create_task(_tell(w, f"n{number}"))
    await w.clock.sleep(30)
    reply = await w.actor("greeter/ann").ask(Hello("bob"), returns=Reply)
    return reply.turn


async def _tell(w: World, name: str) -> None:
    while True:
        try:
            await w.actor("greeter/ann").tell(Hello(name), id=name)
        except BusError:
            await w.clock.sleep(0.5)
        else:
            return


def test_a_users_nemesis_loses_nothing() -> None:
    assert {simulate(put_out, seed=seed).value for seed in range(20)} == {6}
