"""The virtual loop and its hosts: time jumps, orders vary by seed and repeat, and a dead process does nothing more."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from callboard.runtime.bus.base import StreamConfig, Write
from callboard.runtime.errors import (
    BusClosedError,
    BusTimeoutError,
    NoRespondersError,
    SimulationDeadlockError,
    SimulationError,
    SimulationStuckError,
)
from callboard.runtime.simulation.host import Host
from callboard.runtime.simulation.run import Simulation, run

ROOT = Path(__file__).parents[2]
LOG = StreamConfig(name="L", subjects=("l.>",))


def test_hours_pass_in_no_time_and_in_order() -> None:
    async def main(simulation: Simulation) -> list[str]:
        seen: list[str] = []

        async def wait(name: str, delay_s: float) -> None:
            await simulation.clock.sleep(delay_s)
            seen.append(name)

        async with asyncio.TaskGroup() as group:
            for name, delay_s in (("c", 7200.0), ("a", 1.0), ("b", 3600.0)):
                group.create_task(wait(name, delay_s))
        return seen

    outcome = run(main, 1)
    assert outcome.value == ["a", "b", "c"]
    assert 7200 <= outcome.took_s < 7201


async def _ring(simulation: Simulation) -> str:
    seen: list[str] = []

    async def step(name: str) -> None:
        for _ in range(3):
            seen.append(name)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for name in "abcd":
            group.create_task(step(name))
    return "".join(seen)


def test_the_seed_decides_the_order_of_tasks() -> None:
    orders = {run(_ring, seed).value for seed in range(20)}
    assert len(orders) > 10
    assert [run(_ring, seed).value for seed in range(5)] == [run(_ring, seed).value for seed in range(5)]


def test_plain_callbacks_of_a_process_keep_their_order() -> None:
    async def main(simulation: Simulation) -> list[int]:
        seen: list[int] = []
        loop = asyncio.get_running_loop()
        for number in range(20):
            loop.call_soon(seen.append, number)
        for number in range(20, 40):
            loop.call_at(5.0, seen.append, number)
        await simulation.clock.sleep(6)
        return seen

    for seed in range(10):
        assert run(main, seed).value == list(range(40))


def test_a_deadlock_names_who_waits_where() -> None:
    async def main(simulation: Simulation) -> None:
        async def forever() -> None:
            await asyncio.Event().wait()

        host = simulation.host("a")
        host.main(forever())
        await host.ended.wait()

    with pytest.raises(SimulationDeadlockError, match=r"a: main-a at locks.py:\d+ in Event.wait") as caught:
        run(main, 3)
    assert any("seed 3" in note for note in caught.value.__notes__)


def test_a_loop_without_end_is_stuck() -> None:
    async def main(simulation: Simulation) -> None:
        while True:
            await simulation.clock.sleep(0)

    with pytest.raises(SimulationStuckError, match="not done after"):
        run(main, 1, max_steps=1000)


def test_an_error_that_nobody_took_fails_the_run() -> None:
    async def main(simulation: Simulation) -> None:
        async def fail() -> None:
            raise ValueError

        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await simulation.clock.sleep(1)

    with pytest.raises(SimulationError, match="ZeroDivisionError"):
        run(main, 1)


def _with_host(program: Callable[[Host, list[str]], Awaitable[None]]) -> Callable[[Simulation], Awaitable[list[str]]]:
    async def main(simulation: Simulation) -> list[str]:
        bus = simulation.broker.connect(name="world")
        await bus.create_stream(LOG)
        host = simulation.host("a")
        seen: list[str] = []

        async def body() -> None:
            await program(host, seen)

        host.main(body())
        await simulation.clock.sleep(5)
        host.crash()
        seen.append("crash")
        await simulation.clock.sleep(60)
        seen += [found.data.decode() async for found in bus.read("L")]
        return seen

    return main


def test_a_crashed_host_runs_nothing_any_more_and_writes_nothing() -> None:
    async def program(host: Host, seen: list[str]) -> None:
        bus = await host.connect("a")
        await bus.store(Write("l.a", b"before"))
        try:
            await host.clock.sleep(10)
            seen.append("woke")
        finally:
            # only when the simulation is thrown away, and then in vain
            with pytest.raises(BusClosedError):
                await bus.store(Write("l.a", b"after"))

    for seed in range(5):
        assert run(_with_host(program), seed).value == ["crash", "before"]


def test_what_was_under_way_at_the_crash_may_arrive_or_not() -> None:
    async def program(host: Host, seen: list[str]) -> None:
        bus = await host.connect("a")
        while True:
            await bus.store(Write("l.a", b"x"))
            seen.append("stored")

    counts = [run(_with_host(program), seed).value for seed in range(12)]
    unanswered = {seen.count("x") - seen.count("stored") for seen in counts}
    assert unanswered == {0, 1}


def test_a_paused_host_stands_still_and_its_timers_wait() -> None:
    async def main(simulation: Simulation) -> list[int]:
        host = simulation.host("a")
        ticks: list[int] = []

        async def tick() -> None:
            while True:
                await host.clock.sleep(1)
                ticks.append(int(simulation.loop.time()))

        host.main(tick())
        await simulation.clock.sleep(3.5)
        host.pause()
        await simulation.clock.sleep(10)
        host.resume()
        await simulation.clock.sleep(2.5)
        return ticks

    assert run(main, 1).value == [1, 2, 3, 13, 14, 15]


def test_a_host_that_is_cut_off_goes_on_and_its_calls_time_out() -> None:
    async def main(simulation: Simulation) -> str:
        bus = simulation.broker.connect(name="world")
        await bus.create_stream(LOG)
        host = simulation.host("a")
        ends: list[str] = []

        async def body() -> None:
            link = await host.connect("a")
            host.cut()
            with pytest.raises(BusTimeoutError):
                await link.store(Write("l.a", b"x"), timeout_s=2)
            host.mend()
            await link.store(Write("l.a", b"y"))
            ends.append("done")

        host.main(body())
        await host.ended.wait()
        assert host.error is None
        return ",".join([*ends, *[found.data.decode() async for found in bus.read("L")]])

    assert run(main, 1).value == "done,y"


def test_without_a_leader_nothing_is_stored_and_plain_messages_pass() -> None:
    async def main(simulation: Simulation) -> list[str]:
        bus, other = simulation.broker.connect(), simulation.broker.connect()
        await bus.create_stream(LOG)
        heard: list[str] = []
        await other.subscribe("plain", lambda message: heard.append(message.subject))
        gap = asyncio.ensure_future(simulation.broker.lose_leader(4.0, "refused"))
        await simulation.clock.sleep(0.1)
        with pytest.raises(NoRespondersError):
            await bus.store(Write("l.a", b"x"))
        await bus.publish("plain")
        await gap
        await bus.store(Write("l.a", b"y"))
        return [*heard, *[found.data.decode() async for found in bus.read("L")]]

    assert run(main, 1).value == ["plain", "y"]


@pytest.mark.parametrize("scenario", ["actors", "tasks"])
def test_a_seed_has_one_history_in_every_process(scenario: str) -> None:
    def history_hash(hash_seed: str, seed: int) -> str:
        command = [sys.executable, "-m", "tests.simulation.replay", "--scenario", scenario, "--seed", str(seed)]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run(
            [*command, "--brief"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout.splitlines()[-1]

    hashes = {seed: {history_hash(hash_seed, seed) for hash_seed in ("0", "1", "4242")} for seed in (5, 6)}
    assert all(len(found) == 1 for found in hashes.values())
    assert hashes[5] != hashes[6]
