"""Handlers and messages that break the rules end themselves; neither their worker nor a neighbour suffers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.capability import capability
from callboard.runtime.errors import RetryableError
from callboard.runtime.record import TaskRecord
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.world import World

TWICE = RetryPolicy(attempts=2, gaps_s=(0.02,))


class PanicError(BaseException):
    """What extension modules in Rust raise: no `Exception`."""


class MuteError(Exception):
    def __str__(self) -> str:
        raise PanicError


class BareError(RetryableError):
    def __init__(self) -> None:
        """Leave out what the base class sets."""


class Picky(msgspec.Struct):
    x: int

    def __post_init__(self) -> None:
        raise PanicError(self.x)


@capability(concurrency=1)
async def neighbour(number: int) -> int:
    await asyncio.sleep(0.3)
    return number


@pytest.fixture
async def world(callboard_world: World) -> AsyncIterator[World]:
    yield callboard_world
    assert await callboard_world.client.call(neighbour, 1, timeout_s=5) == 1
    await callboard_world.nothing_held()


async def only(world: World, name: str) -> TaskRecord:
    (found,) = (await world.all_recorded(name, 1)).values()
    return found


@pytest.mark.parametrize(
    "error",
    [
        PanicError("boo"),
        GeneratorExit(),
        BaseExceptionGroup("several", [PanicError("boo")]),
        MuteError(),
        BareError(),
        ValueError("no file named \udcff"),
        RetryableError("later", after_s="5"),  # type: ignore[arg-type]
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
async def test_whatever_a_handler_raises_ends_its_task_alone(
    world: World, error: BaseException, *, in_thread: bool
) -> None:
    @capability("wild", retry=TWICE)
    async def wild() -> None:
        raise error

    @capability("wild", retry=TWICE)
    def wild_thread() -> None:
        raise error

    worker = await world.start(neighbour, wild_thread if in_thread else wild)
    beside = await world.client.submit(neighbour, 7)
    await world.client.submit("wild")
    found = await only(world, "wild")
    assert (found.status, found.attempts, found.crashes or 0) == ("failed", 2, 0)
    assert await world.client.wait(beside, timeout_s=5) == 7
    assert not worker.task.done()


async def test_a_type_that_panics_over_a_payload_ends_the_task_alone(world: World) -> None:
    @capability("wild", retry=TWICE)
    async def wild(value: Picky) -> None: ...

    await world.start(neighbour, wild)
    await world.bus.publish(subjects.task("wild"), b'{"x":1}')
    assert (await only(world, "wild")).error.code == "decode"  # type: ignore[union-attr]


@pytest.mark.parametrize("after_s", [float("inf"), 1e13, 1e300, float("nan")])
async def test_a_gap_beyond_all_calendars_does_not_end_the_worker(world: World, after_s: float) -> None:
    @capability("wild", retry=TWICE)
    async def wild() -> None:
        message = "later"
        raise RetryableError(message, after_s=after_s)

    worker = await world.start(neighbour, wild)
    handle = await world.client.submit(wild)

    async def is_decided() -> bool:
        return bool(await world.attempts("wild", handle.id))

    await eventually(is_decided)
    assert not worker.task.done()
    assert (await world.attempts("wild", handle.id))[0].kind == "failed"


async def test_a_handler_that_cancels_its_own_task_is_retried_and_buried(world: World) -> None:
    runs: list[int] = []

    @capability("wild", retry=TWICE)
    async def wild() -> None:
        runs.append(1)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    await world.start(neighbour, wild)
    await world.client.submit(wild)
    found = await only(world, "wild")
    assert (found.status, found.attempts, len(runs)) == ("failed", 2, 2)


async def test_a_cancellation_that_a_handler_leaves_behind_does_not_hit_the_next_task(world: World) -> None:
    @capability("wild", concurrency=1, retry=RetryPolicy(attempts=1))
    async def wild(number: int) -> int:
        if number == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return number
        await asyncio.sleep(0.01)
        return number

    for number in range(3):
        await world.client.submit(wild, number)
    await world.start(neighbour, wild)
    records = await world.all_recorded("wild", 3)
    assert [r.status for r in records.values()] == ["completed"] * 3


async def test_a_cancelled_handler_that_raises_something_else_is_cancelled(world: World) -> None:
    started = asyncio.Event()

    @capability("wild", retry=TWICE)
    async def wild() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            message = "clean-up failed"
            raise ValueError(message) from None

    await world.start(neighbour, wild)
    handle = await world.client.submit(wild)
    await asyncio.wait_for(started.wait(), 5)
    await world.client.cancel("wild", handle.id)
    assert (await only(world, "wild")).status == "cancelled"


@pytest.mark.parametrize("attempt", ["²", "0", "-1", "99999999", "one"])
async def test_an_attempt_that_is_no_number_counts_as_the_first(world: World, attempt: str) -> None:
    await world.start(neighbour)
    await world.bus.publish(subjects.task("neighbour"), b"3", headers={"Cb-Attempt": attempt})
    found = await only(world, "neighbour")
    assert (found.status, found.attempts) == ("completed", 1)


async def test_a_name_that_belongs_to_another_message_is_refused_and_takes_nobody_s_record(world: World) -> None:
    await world.start(neighbour)
    for headers in ({"Nats-Msg-Id": "~2"}, None, {"Cb-Task-Id": "~2"}):
        await world.bus.publish(subjects.task("neighbour"), b"5", headers=headers)
    records = await world.all_recorded("neighbour", 3)
    assert {task: found.status for task, found in records.items()} == {
        "~1": "failed",
        "~2": "completed",
        "~3": "failed",
    }
    assert records["~1"].error.code == "invalid_name"  # type: ignore[union-attr]


async def test_ids_that_are_no_text_do_not_become_one(world: World) -> None:
    await world.start(neighbour)
    await world.bus.publish(subjects.task("neighbour"), b"5", headers={"Nats-Msg-Id": "a\ufffd"})
    assert (await only(world, "neighbour")).error.code == "invalid_name"  # type: ignore[union-attr]


async def test_a_long_history_of_long_errors_fits_its_dead_letter(world: World) -> None:
    @capability("wild", retry=RetryPolicy(attempts=40, gaps_s=(0.001,)))
    async def wild() -> None:
        raise ValueError("\x01" * 5_000)

    await world.start(neighbour, wild)
    await world.client.submit(wild)
    found = await only(world, "wild")
    assert (found.status, found.attempts) == ("failed", 40)
    assert len(await world.dead("wild")) == 1


async def test_an_order_for_endless_slots_is_refused(world: World) -> None:
    running = await world.start(neighbour)
    order = b'{"op":"slots","capability":"neighbour","slots":99999999999999999999999}'
    answer = await world.bus.request(subjects.ctl_worker(running.worker.id), order, timeout_s=2)
    assert b"error" in answer.data
    assert running.pool.slots == 1


@pytest.mark.parametrize("prefix", ["cb.result.neighbour", "cb.attempt.neighbour.x", "$KV.CB_CONFIG", "cb.later"])
async def test_nobody_writes_what_only_workers_write_through_a_notice(world: World, prefix: str) -> None:
    await world.start(neighbour)
    headers = {"Cb-Reply-To": f"{prefix}.forged", "Nats-Msg-Id": "neighbour/forger"}
    await world.bus.publish(subjects.task("neighbour"), b"1", headers=headers)
    await only(world, "neighbour")
    handle = await world.client.submit(neighbour, 2, id="forged")
    assert await world.client.wait(handle, timeout_s=5) == 2
    assert set(await world.records("neighbour")) == {"neighbour/forger", "forged"}
