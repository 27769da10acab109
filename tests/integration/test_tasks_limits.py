"""Large values travel as claim checks; what is full says so and loses nothing."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.capability import capability
from callboard.runtime.errors import BackpressureError
from tests.support.eventually import eventually
from tests.support.world import World


async def test_five_megabytes_go_both_ways(callboard_world: World) -> None:
    world = callboard_world

    @capability
    async def echo(text: str) -> str:
        return text[::-1]

    await world.start(echo)
    text = "callboard " * 500_000
    handle = await world.client.submit(echo, text, id="echo/1")
    assert await world.client.wait(handle, timeout_s=20) == text[::-1]
    found = await world.client.record("echo", handle.id)
    assert found is not None
    assert found.result is msgspec.UNSET
    assert found.result_blob.size_bytes == len(text) + 2  # type: ignore[union-attr]
    body = msgspec.json.encode(text)
    name, digest, size = found.submitted.claim_check.split()  # type: ignore[union-attr]
    assert (digest, int(size)) == (hashlib.sha256(body).hexdigest(), len(body))
    assert name
    stored = await world.bus.get_last("CB_LEDGER", subjects.result("echo", handle.id))
    assert stored is not None
    assert len(stored.data) < 2_000
    await world.nothing_held()


@pytest.mark.parametrize("size", [255 * 1024, 262_144 - 2, 262_144, 600_000])
async def test_results_around_the_limit_come_back_whole(callboard_world: World, size: int) -> None:
    world = callboard_world

    @capability
    async def grow(size: int) -> str:
        return "x" * size

    await world.start(grow)
    handle = await world.client.submit(grow, size)
    assert await world.client.wait(handle, timeout_s=10) == "x" * size
    found = await world.client.record("grow", handle.id)
    assert found is not None
    assert bool(found.result_blob) == (size + 2 > 262_144)


async def test_a_large_argument_of_a_failed_task_is_kept_for_its_dead_letter(callboard_world: World) -> None:
    world = callboard_world

    @capability
    async def count(numbers: list[int]) -> int:
        return len(numbers)

    await world.start(count)
    handle = await world.client.submit(count, "x" * 300_000)
    found = await world.client.wait_record(handle, timeout_s=10)
    assert (found.status, found.error.code) == ("failed", "decode")  # type: ignore[union-attr]
    (letter,) = await world.dead("count")
    assert letter.submitted.claim_check


async def test_a_full_queue_refuses_the_submitter_and_loses_nothing(callboard_world: World) -> None:
    world = callboard_world
    info = await world.bus.stream_info("CB_WORK")
    assert info is not None
    await world.bus.update_stream(replace(info.config, max_bytes=200_000))
    accepted: list[int] = []

    async def fill() -> None:
        for number in range(1000):
            await world.client.submit("work", [number, "x" * 2000], id=f"work/{number}")
            accepted.append(number)

    with pytest.raises(BackpressureError):
        await fill()
    assert 50 < len(accepted) < 100
    results = await world.client.submit_many("work", [[n, "x" * 2000] for n in range(1000, 1005)])
    assert all(isinstance(result, BackpressureError) for result in results)
    assert await world.waiting() == len(accepted)
    seen: list[int] = []

    @capability("work")
    async def pair(value: tuple[int, str]) -> None:
        seen.append(value[0])

    await world.start(pair)
    await world.all_recorded("work", len(accepted))
    assert sorted(seen) == accepted
    await world.client.submit("work", [1000, ""])
    await world.all_recorded("work", len(accepted) + 1)


async def test_a_full_ledger_holds_the_finished_task_and_does_not_run_it_again(callboard_world: World) -> None:
    world = callboard_world
    runs: list[int] = []

    @capability
    async def work(number: int) -> str:
        runs.append(number)
        return "x" * 1000

    await world.start(work)
    info = await world.bus.stream_info("CB_LEDGER")
    assert info is not None
    await world.client.call(work, 0, timeout_s=5)
    await world.bus.update_stream(replace(info.config, max_bytes=1000))
    handles = [await world.client.submit(work, number) for number in (1, 2, 3)]
    await eventually(lambda: len(runs) == 4)
    committer = world.workers[0].worker._committer
    await eventually(lambda: "backpressure" in (committer.last_problem or ""))
    await world.bus.update_stream(info.config)
    for handle in handles:
        assert await world.client.wait(handle, timeout_s=10) == "x" * 1000
    assert sorted(runs) == [0, 1, 2, 3]
    await world.nothing_held()
