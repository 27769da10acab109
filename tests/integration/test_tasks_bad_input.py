"""What cannot be run becomes a dead letter with its cause; the worker goes on."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.capability import capability
from callboard.runtime.errors import RetryableError
from callboard.runtime.record import TaskRecord
from tests.support.world import World

BIG = b'"' + b"x" * 900_000 + b'"'
AGO = (datetime.now(UTC) - timedelta(hours=1)).isoformat()


class Point(msgspec.Struct):
    x: int


@capability(concurrency=2)
async def plot(point: Point) -> int:
    return point.x


@capability(concurrency=2)
async def echo(value: dict[str, Any] | str) -> dict[str, Any] | str:
    return value


@pytest.fixture
async def world(callboard_world: World) -> AsyncIterator[World]:
    yield callboard_world
    # whatever came in, the worker still works and holds nothing
    assert await callboard_world.client.call(plot, {"x": 1}, timeout_s=5) == 1
    await callboard_world.nothing_held()


async def only(world: World, name: str) -> TaskRecord:
    (found,) = (await world.all_recorded(name, 1)).values()
    return found


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b'{"x":"one"}', b"", b"[" * 50_000, b'{"x":1} trailing'])
async def test_an_undecodable_payload_is_buried_with_cause_and_payload(world: World, body: bytes) -> None:
    await world.start(plot)
    await world.bus.publish(subjects.task("plot"), body)
    found = await only(world, "plot")
    assert (found.status, found.error.code) == ("failed", "decode")  # type: ignore[union-attr]
    (letter,) = await world.dead("plot")
    assert letter.task == found.task
    assert letter.cause.code == "decode"
    submitted = letter.submitted
    kept = base64.b64decode(submitted.payload_b64) if submitted.payload_b64 else bytes(submitted.payload or b"")
    assert kept == body


async def test_a_field_with_broken_utf_8_that_nobody_reads_does_not_break_the_record(world: World) -> None:
    await world.start(plot)
    await world.bus.publish(subjects.task("plot"), b'{"x":1,"note":"\xff"}')
    found = await only(world, "plot")
    assert found.status == "completed"
    stored = await world.bus.get_last("CB_LEDGER", subjects.result("plot", found.task))
    assert stored is not None
    assert "x" in msgspec.json.decode(stored.data.decode())["submitted"].get("payload_b64", "x")


async def test_an_unknown_content_type_is_buried(world: World) -> None:
    await world.start(plot)
    await world.bus.publish(subjects.task("plot"), b"x: 1", headers={"Content-Type": "application/yaml"})
    assert (await only(world, "plot")).error.code == "decode"  # type: ignore[union-attr]


@pytest.mark.parametrize("deadline", ["tomorrow", "2026-11-21T09:30:00", ""])
async def test_a_deadline_that_is_no_time_is_buried(world: World, deadline: str) -> None:
    await world.start(plot)
    await world.bus.publish(subjects.task("plot"), b'{"x":1}', headers={"Cb-Deadline": deadline})
    found = await only(world, "plot")
    assert (found.status, found.attempts) == ("failed", 0)
    assert "Cb-Deadline" in found.error.message  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["Nats-Msg-Id", "Cb-Task-Id"])
async def test_an_id_that_is_too_long_is_buried_under_the_number_of_its_message(world: World, name: str) -> None:
    await world.start(plot)
    await world.bus.publish(subjects.task("plot"), b'{"x":1}', headers={name: "x" * 300})
    found = await only(world, "plot")
    assert found.task.startswith("~")
    assert found.error.code == "invalid_name"  # type: ignore[union-attr]
    assert len(await world.dead("plot")) == 1


@pytest.mark.parametrize("value", ["nonsense", "name " + "0" * 64 + " 5", f"{'0' * 64} {'0' * 64} 5"])
async def test_a_claim_check_without_its_object_is_buried(world: World, value: str) -> None:
    await world.start(plot)
    await world.bus.publish(subjects.task("plot"), b"", headers={"Cb-Claim-Check": value})
    found = await only(world, "plot")
    assert (found.status, found.attempts) == ("failed", 0)
    assert found.error.code in {"decode", "not_found"}  # type: ignore[union-attr]


async def test_a_result_that_cannot_be_encoded_is_buried_without_a_second_run(world: World) -> None:
    runs: list[int] = []

    @capability
    async def strange(kind: str) -> object:
        runs.append(1)
        return {"object": object(), "nan": float("nan"), "surrogate": "\ud800"}[kind]

    await world.start(plot, strange)
    for kind in ("object", "nan", "surrogate"):
        await world.client.submit(strange, kind)
    records = await world.all_recorded("strange", 3)
    assert {r.error.code for r in records.values()} == {"encode"}  # type: ignore[union-attr]
    assert len(runs) == len(await world.dead("strange")) == 3


async def test_a_handler_that_tries_to_exit_is_buried(world: World) -> None:
    @capability
    async def leave(how: str) -> None:
        raise {"exit": SystemExit(1), "interrupt": KeyboardInterrupt(), "stop": StopAsyncIteration()}[how]

    @capability
    def leave_thread(how: str) -> None:
        raise {"exit": SystemExit(1), "interrupt": KeyboardInterrupt(), "stop": StopIteration()}[how]

    await world.start(plot, leave, leave_thread)
    for how in ("exit", "interrupt"):
        await world.client.submit(leave, how)
        await world.client.submit(leave_thread, how)
    for name in ("leave", "leave_thread"):
        records = await world.all_recorded(name, 2)
        assert {r.error.code for r in records.values()} == {"handler_exit"}  # type: ignore[union-attr]


async def test_a_handler_that_recurses_for_ever_is_retried_and_buried(world: World) -> None:
    from callboard.runtime.retry import RetryPolicy

    @capability(retry=RetryPolicy(attempts=2, gaps_s=(0.02,)))
    async def deep() -> int:
        def down(n: int) -> int:
            return down(n + 1)

        return down(0)

    await world.start(plot, deep)
    await world.client.submit(deep)
    found = await only(world, "deep")
    assert (found.status, found.attempts, found.error.type) == ("failed", 2, "RecursionError")  # type: ignore[union-attr]


async def test_a_large_inline_payload_fits_its_record_whatever_the_ending(world: World) -> None:
    @capability(concurrency=1)
    async def fail(value: dict[str, Any] | str) -> None:
        raise ValueError(str(value)[:10])

    @capability(concurrency=1)
    async def later(value: dict[str, Any] | str) -> None:
        message = "much later"
        raise RetryableError(message, after_s=3600)

    from callboard.runtime.retry import RetryPolicy

    fail.retry = RetryPolicy(attempts=1)
    await world.start(plot, echo, fail, later)
    await world.bus.publish(subjects.task("echo"), BIG)
    await world.bus.publish(subjects.task("fail"), BIG)
    await world.bus.publish(subjects.task("later"), BIG)
    await world.bus.publish(subjects.task("plot"), BIG)
    await world.bus.publish(subjects.task("plot"), BIG, headers={"Cb-Deadline": AGO})
    assert (await only(world, "echo")).result_blob
    assert (await only(world, "fail")).submitted.claim_check  # type: ignore[union-attr]
    plots = await world.all_recorded("plot", 2)
    assert sorted(r.status for r in plots.values()) == ["expired", "failed"]
    assert all(r.submitted.claim_check for r in plots.values())  # type: ignore[union-attr]
    assert await world.bus.subject_counts("CB_LATER", "cb.later.>") != {}


async def test_as_many_headers_as_the_broker_takes_fit_into_the_record(world: World) -> None:
    await world.start(plot)
    headers = {f"X-{n}": "y" * 6_000 for n in range(9)}
    await world.bus.publish(subjects.task("plot"), b'{"x":1}' + b" " * 250_000, headers=headers)
    await world.bus.publish(subjects.task("plot"), b"{" + b" " * 250_000, headers=headers | {"Nats-Msg-Id": "bad"})
    records = await world.all_recorded("plot", 2)
    assert sorted(r.status for r in records.values()) == ["completed", "failed"]
