"""Give work, have it done, read the record."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.bus.base import Write
from callboard.runtime.capability import capability
from callboard.runtime.context import TaskContext, current_task
from callboard.runtime.errors import InputError, NotFoundError, TaskFailedError, TaskTimeoutError
from tests.support.eventually import eventually
from tests.support.world import World


class Query(msgspec.Struct):
    text: str
    top: int = 3


@capability
async def search(query: Query) -> dict[str, object]:
    return {"text": query.text, "top": query.top}


@capability
async def join(left: str, right: str = "!", *, task: TaskContext) -> str:
    return f"{left}{right}{task.attempt}"


@capability
async def nothing() -> None:
    return None


async def test_a_task_is_submitted_run_and_recorded(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(search)
    before = datetime.now(UTC)
    handle = await world.client.submit(search, {"text": "x"}, id="search/7")
    assert await world.client.wait(handle, timeout_s=5) == {"text": "x", "top": 3}
    stored = await world.bus.get_last("CB_LEDGER", "cb.result.search.search%2F7")
    assert stored is not None
    found: dict[str, Any] = msgspec.json.decode(stored.data)
    assert set(found) == {
        "v", "task", "capability", "status", "result", "submitted", "attempts", "worker", "claimed_at", "finished_at",
    }  # fmt: skip
    assert (found["v"], found["task"], found["capability"], found["status"]) == (1, "search/7", "search", "completed")
    assert (found["attempts"], found["worker"]) == (1, running.worker.id)
    submitted = found["submitted"]
    assert set(submitted) == {"seq", "at", "lane", "payload", "headers"}
    assert submitted["payload"] == {"text": "x"}
    assert (submitted["seq"], submitted["lane"]) == (handle.seq, "normal")
    assert submitted["headers"] == {"Nats-Msg-Id": "search/7"}
    times = [datetime.fromisoformat(found[name]) for name in ("claimed_at", "finished_at")]
    stored_at = datetime.fromisoformat(submitted["at"])
    assert before - timedelta(seconds=1) < stored_at <= times[0] + timedelta(seconds=0.1)
    assert times[0] <= times[1]
    await eventually(lambda: _is_empty(world))
    await world.nothing_held()


async def _is_empty(world: World) -> bool:
    return await world.waiting() == 0


async def test_a_plain_publish_without_headers_is_a_task(callboard_world: World) -> None:
    world = callboard_world
    await world.start(search)
    await world.bus.publish(subjects.task("search"), b'{"text":"raw"}')
    records = await world.all_recorded("search", 1)
    (found,) = records.values()
    assert found.task == f"~{found.submitted.seq}"  # type: ignore[union-attr]
    assert msgspec.json.decode(found.result) == {"text": "raw", "top": 3}  # type: ignore[arg-type]


async def test_a_capability_is_called_submitted_to_and_published_to(callboard_world: World) -> None:
    world = callboard_world
    await world.start(search)
    assert await search(Query("here")) == {"text": "here", "top": 3}
    assert await world.client.call("search", Query("there", 1), timeout_s=5) == {"text": "there", "top": 1}
    handle = await world.client.submit("search", {"text": "later"})
    ack = await world.bus.store(Write(subjects.task("search", "high"), b'{"text":"raw"}'))
    assert (await world.client.wait(handle, timeout_s=5))["text"] == "later"
    records = await world.all_recorded("search", 3)
    assert set(records) >= {handle.id, f"~{ack.seq}"}
    assert records[f"~{ack.seq}"].submitted.lane == "high"  # type: ignore[union-attr]


async def test_several_parameters_come_as_an_object_and_none_as_an_empty_body(callboard_world: World) -> None:
    world = callboard_world
    await world.start(join, nothing)
    assert await world.client.call(join, {"left": "a", "right": "b"}, timeout_s=5) == "ab1"
    assert await world.client.call(join, {"left": "a"}, timeout_s=5) == "a!1"
    assert await world.client.call(nothing, timeout_s=5) is None


async def test_a_handler_knows_its_task(callboard_world: World) -> None:
    world = callboard_world

    @capability
    async def who() -> list[object]:
        async def inner() -> str:
            return current_task().id

        task = current_task()
        return [task.id, await asyncio.create_task(inner()), task.attempt, task.lane, task.headers["X-Mine"]]

    await world.start(who)
    given = await world.client.call(who, id="who/1", lane="high", headers={"X-Mine": "yes"}, timeout_s=5)
    assert given == ["who/1", "who/1", 1, "high", "yes"]


async def test_msgpack_is_taken_and_the_record_stays_json(callboard_world: World) -> None:
    world = callboard_world
    await world.start(search)
    body = msgspec.msgpack.encode({"text": "packed"})
    headers = {"Content-Type": "application/msgpack"}
    assert (await world.client.call("search", body, headers=headers, id="p", timeout_s=5))["text"] == "packed"
    stored = await world.bus.get_last("CB_LEDGER", "cb.result.search.p")
    assert stored is not None
    submitted = msgspec.json.decode(stored.data)["submitted"]
    assert "payload" not in submitted
    assert msgspec.msgpack.decode(_unpacked(submitted["payload_b64"])) == {"text": "packed"}


def _unpacked(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


async def test_waiting_gives_up_in_time_and_the_task_goes_on(callboard_world: World) -> None:
    world = callboard_world
    go = asyncio.Event()

    @capability
    async def slow() -> str:
        await go.wait()
        return "done"

    await world.start(slow)
    handle = await world.client.submit(slow, notify=True)
    with pytest.raises(TaskTimeoutError, match="goes on"):
        await world.client.wait(handle, timeout_s=0.1)
    go.set()
    assert await world.client.wait(handle, timeout_s=5) == "done"


async def test_exactly_one_notice_comes_and_it_is_the_record(callboard_world: World) -> None:
    world = callboard_world
    await world.start(search)
    got: list[bytes] = []
    await world.bus.subscribe("my.inbox", lambda message: got.append(message.data))
    await world.bus.flush()
    headers = {"Cb-Reply-To": "my.inbox"}
    await world.client.submit(search, {"text": "x"}, id="n/1", headers=headers)
    await world.all_recorded("search", 1)
    await eventually(lambda: bool(got))
    await world.client.submit(search, {"text": "x"}, id="n/2", headers=headers)
    await eventually(lambda: len(got) > 1)
    stored = [await world.bus.get_last("CB_LEDGER", f"cb.result.search.n%2F{n}") for n in (1, 2)]
    assert got == [found.data for found in stored if found is not None]


async def test_a_lost_notice_is_made_up_for_by_the_ledger(callboard_world: World) -> None:
    world = callboard_world
    go = asyncio.Event()

    @capability
    async def held() -> str:
        await go.wait()
        return "done"

    await world.start(held)
    handle = await world.client.submit(held, notify=True)
    assert world.client._notices is not None
    await world.client._notices.close()
    waiting = asyncio.create_task(world.client.wait(handle, timeout_s=10))
    await eventually(lambda: world.workers[0].pool.running)
    go.set()
    assert await waiting == "done"


async def test_a_notice_to_a_subject_that_is_none_harms_nobody(callboard_world: World) -> None:
    world = callboard_world
    await world.start(search)
    for number, subject in enumerate(("a b", "a.*", "a..b", ">", "é")):
        await world.bus.publish(
            subjects.task("search"), b'{"text":"x"}', headers={"Cb-Reply-To": subject, "Nats-Msg-Id": f"bad-{number}"}
        )
    records = await world.all_recorded("search", 5)
    assert {r.status for r in records.values()} == {"completed"}
    assert await world.client.call(search, {"text": "still there"}, timeout_s=5)


async def test_waiting_for_a_failed_task_names_the_cause(callboard_world: World) -> None:
    world = callboard_world
    await world.start(search)
    with pytest.raises(TaskFailedError, match="decode") as caught:
        await world.client.call(search, {"text": 5}, id="bad", timeout_s=5)
    assert (caught.value.cause_code, caught.value.status, caught.value.task_id) == ("decode", "failed", "bad")


async def test_context_variables_do_not_leak_from_task_to_task(callboard_world: World) -> None:
    import contextvars

    world = callboard_world
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="clean")
    seen: list[str] = []

    @capability(concurrency=2)
    async def leaky(number: int) -> None:
        seen.append(mine.get())
        mine.set(f"dirty {number}")
        await world.bus.publish(subjects.task("other"), b"1")
        await asyncio.sleep(0)

    @capability(concurrency=1)
    def other(number: int) -> None:
        seen.append(mine.get())
        mine.set("dirty thread")

    await world.start(leaky, other)
    await world.client.submit_many(leaky, list(range(40)))
    await world.all_recorded("leaky", 40)
    await world.all_recorded("other", 40)
    assert seen == ["clean"] * 80


async def test_a_worker_without_streams_says_what_to_do(callboard_world: World) -> None:
    world = callboard_world
    await world.bus.delete_stream("CB_WORK")
    with pytest.raises(Exception, match=r"callboard (provision|up)") as caught:
        await world.start(search)
    assert caught.value.code in {"topology", "not_found"}  # type: ignore[attr-defined]
    with pytest.raises(Exception, match=r"callboard provision"):
        await world.client.submit(search, {"text": "x"})
    with pytest.raises(NotFoundError):
        await world.bus.pull("CB_WORK", "x", lambda _: None)


async def test_a_consumer_deleted_under_a_worker_is_shown(callboard_world: World) -> None:
    world = callboard_world
    running = await world.start(search)
    assert running.worker.ready_problem() is None
    await world.bus.delete_consumer("CB_WORK", "search-normal")
    await eventually(lambda: "search-normal" in (running.worker.ready_problem() or ""), within_s=10)


async def test_submit_many_checks_all_before_the_first_is_sent(callboard_world: World) -> None:
    world = callboard_world
    values: list[object] = [{"text": str(n)} for n in range(10)]
    values[3] = object()
    values[7] = float("nan")
    with pytest.raises(InputError, match=r"2 of 10.*#3.*#7"):
        await world.client.submit_many(search, values)
    assert await world.waiting() == 0
    with pytest.raises(InputError, match="ids"):
        await world.client.submit_many(search, values[:2], task_ids=["one"])
    assert await world.waiting() == 0


async def test_submit_many_names_each_task(callboard_world: World) -> None:
    world = callboard_world
    await world.start(search)
    unnamed = await world.client.submit_many(search, [{"text": str(n)} for n in range(1200)])
    named = await world.client.submit_many(
        search, [{"text": "a"}, {"text": "b"}, {"text": "a"}], task_ids=["a", "b", "a"]
    )
    assert [getattr(handle, "is_duplicate", None) for handle in named] == [False, False, True]
    records = await world.all_recorded("search", 1202)
    wanted = [str(n) for n in range(1200)]
    given = [msgspec.json.decode(records[handle.id].result)["text"] for handle in unnamed]  # type: ignore[union-attr,arg-type]
    assert given == wanted


async def test_the_record_of_a_task_from_a_batch_shows_no_trace_of_the_batch(callboard_world: World) -> None:
    world = callboard_world

    @capability("plain")
    async def plain(number: int) -> int:
        return number

    await world.start(plain)
    await world.client.submit_many(plain, [1, 2, 3])
    records = await world.all_recorded("plain", 3)
    assert all(found.submitted.headers is msgspec.UNSET for found in records.values() if found.submitted)
