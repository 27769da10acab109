"""What a host does with a turn that another one had begun and not finished."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.letter import decode_letter
from callboard.runtime.actor.record import decode
from callboard.runtime.actor.recovery import Begun, Choice, Recovery
from callboard.runtime.bus import header
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import letters
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

STEPS = 10
LIMITED = replace(QUICK, actor_rules=replace(QUICK.actor_rules, crash_limit=1))


class Go(Struct):
    pass


class Bench:
    """Counts what steps cost, and lets one of them hang until its host is killed."""

    def __init__(self, hang: Callable[[int], bool] = lambda number: number == 7) -> None:
        self.billed: Counter[str] = Counter()
        self.hang = hang
        self.is_hanging = asyncio.Event()

    def worker(self, recovery: Recovery = "resume") -> type[Actor]:
        bench = self

        class Biller(Actor, name="biller", recovery=recovery):
            class State(Struct):
                values: list[int] = []

            @on
            async def go(self, m: Go) -> None:
                values = [await self.step("dear", bench.bill, "dear", once=True)]
                values += [await self.step(f"step {n}", bench.one, n) for n in range(STEPS)]
                self.state.values = values

        return Biller

    async def one(self, number: int) -> int:
        if self.hang(number):
            self.is_hanging.set()
            await asyncio.Event().wait()
        return await self.bill(f"step {number}")

    async def bill(self, name: str) -> int:
        self.billed[name] += 1
        return self.billed[name]

    async def killed(self, world: World, recovery: Recovery = "resume", *, name: str, **options: Any) -> None:  # noqa: ANN401
        """Start a worker, and kill it when the step hangs."""
        self.is_hanging.clear()
        running = await world.start(self.worker(recovery), worker_id=name, **options)
        await asyncio.wait_for(self.is_hanging.wait(), 20.0)
        await running.kill()


async def values(world: World) -> list[int]:
    stored = await world.bus.get_last(subjects.ACTORS, subjects.state("biller", "ann"))
    if stored is None:
        return []
    state = decode(stored.data).state
    assert isinstance(state, msgspec.Raw)
    found: list[int] = msgspec.json.decode(state)["values"]
    return found


async def resumed(world: World) -> list[dict[str, Any]]:
    found = [stored async for stored in world.bus.read(subjects.ACTORS, subjects=("cb.event.biller.*",))]
    assert {(stored.headers or {}).get(header.TYPE) for stored in found} <= {"resumed"}
    return [msgspec.json.decode(stored.data) for stored in found]


async def finished(world: World) -> list[int]:
    async def has_values() -> bool:
        return bool(await values(world))

    await eventually(has_values, within_s=20.0)
    return await values(world)


async def buried(world: World) -> str:
    """Return the code of the dead letter of the only mail."""
    wildcard = subjects.dead_mail("biller", "ann", 0).removesuffix("0") + "*"

    async def is_there() -> bool:
        return bool(await world.bus.get_many(subjects.DEAD, [wildcard]))

    await eventually(is_there, within_s=20.0)
    (stored,) = await world.bus.get_many(subjects.DEAD, [wildcard])
    return decode_letter(stored.data).failure.code


async def test_seven_of_ten_steps_are_not_billed_again(callboard_world: World) -> None:
    bench = Bench()
    await callboard_world.client.actor("biller/ann").tell(Go())
    await bench.killed(callboard_world, name="first")
    bench.hang = lambda _: False
    await callboard_world.start(bench.worker(), worker_id="second")
    assert await finished(callboard_world) == [1] * (STEPS + 1)
    assert set(bench.billed.values()) == {1}
    (note,) = await resumed(callboard_world)
    assert (note["how"], note["cause"], note["steps"], note["last_step"]) == ("resume", "death", 8, "step 6")
    assert (note["from_worker"], note["worker"], note["deaths"]) == ("first", "second", 1)
    stats = callboard_world.workers[-1].worker.host.services.stats["biller"]  # type: ignore[union-attr]
    assert (stats.steps_replayed, stats.steps_run, stats.committed) == (8, 3, 1)


async def test_a_restart_runs_everything_again_but_what_must_run_once(callboard_world: World) -> None:
    bench = Bench()
    await callboard_world.client.actor("biller/ann").tell(Go())
    await bench.killed(callboard_world, "restart", name="first")
    bench.hang = lambda _: False
    await callboard_world.start(bench.worker("restart"), worker_id="second")
    assert await finished(callboard_world) == [1, *[2] * 7, *[1] * 3]
    assert bench.billed["dear"] == 1
    (note,) = await resumed(callboard_world)
    assert (note["how"], note["steps"]) == ("restart", 1)


async def test_a_function_decides(callboard_world: World) -> None:
    seen: list[Begun] = []

    def decide(begun: Begun) -> Choice:
        seen.append(begun)
        return "restart" if len(seen) == 1 else "resume"

    bench = Bench()
    await callboard_world.client.actor("biller/ann").tell(Go())
    await bench.killed(callboard_world, decide, name="first")
    bench.hang = lambda n: n == 3
    await bench.killed(callboard_world, decide, name="second")
    bench.hang = lambda _: False
    await callboard_world.start(bench.worker(decide), worker_id="third")
    # the second run began anew and came to step 3; the third goes on from there, and not from what the first had left
    assert await finished(callboard_world) == [1, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert [(begun.from_worker, len(begun.steps), begun.deaths) for begun in seen] == [
        ("first", 8, 1),
        ("second", 4, 2),
    ]
    assert [note["how"] for note in await resumed(callboard_world)] == ["restart", "resume"]


async def test_attempts_are_counted_from_one_again_by_the_host_that_takes_over(callboard_world: World) -> None:
    seen: list[tuple[str, int]] = []
    is_hanging = asyncio.Event()

    def counter(host: str) -> type[Actor]:
        class Counter(Actor, name="counter", retry=RetryPolicy(attempts=3, gaps_s=(0.02,))):
            @on
            async def go(self, m: Go) -> None:
                seen.append((host, self.attempt))
                if host == "first" and self.attempt == 2:
                    is_hanging.set()
                    await asyncio.Event().wait()
                raise ValueError

        return Counter

    await callboard_world.client.actor("counter/ann").tell(Go())
    first = await callboard_world.start(counter("first"), worker_id="first")
    await asyncio.wait_for(is_hanging.wait(), 20.0)
    await first.kill()
    await callboard_world.start(counter("second"), worker_id="second")

    async def is_buried() -> bool:
        return bool(await letters(callboard_world, "counter/ann"))

    await eventually(is_buried, within_s=20.0)
    # what the first host tried is not known here, and uses up nothing of the policy
    assert seen == [("first", 1), ("first", 2), ("second", 1), ("second", 2), ("second", 3)]
    assert [letter.attempts for letter in await letters(callboard_world, "counter/ann")] == [3]


async def test_a_function_may_give_a_turn_up(callboard_world: World) -> None:
    bench = Bench()
    await callboard_world.client.actor("biller/ann").tell(Go())
    await bench.killed(callboard_world, name="first")
    await callboard_world.start(bench.worker(lambda _: "bury"), worker_id="second")
    assert await buried(callboard_world) == "turn_abandoned"


@pytest.mark.parametrize("helps", [True, False])
async def test_over_the_limit_a_turn_is_restarted_once_and_then_given_up(callboard_world: World, helps: bool) -> None:
    bench = Bench(lambda number: number == 2)
    await callboard_world.client.actor("biller/ann").tell(Go())
    await bench.killed(callboard_world, name="first", options=LIMITED)
    await bench.killed(callboard_world, name="second", options=LIMITED)
    if helps:
        bench.hang = lambda _: False
    else:
        await bench.killed(callboard_world, name="third", options=LIMITED)
    await callboard_world.start(bench.worker(), worker_id="last", options=LIMITED)
    if helps:
        assert await finished(callboard_world) == [1, 2, 2, *[1] * 8]
    else:
        assert await buried(callboard_world) == "crash_limit"
    assert [note["how"] for note in await resumed(callboard_world)] == ["resume", "restart"]
