"""What happens after a run that failed: gaps, attempts, history, schedules, deadlines, time limits."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from callboard.runtime import events, subjects
from callboard.runtime.capability import capability
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.context import current_task
from callboard.runtime.errors import DeadlineError, RetryableError, TaskFailedError, TerminalError
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.settle import SettleRules
from tests.support.eventually import eventually
from tests.support.world import QUICK, World

# Retries over a tenth of a second go by schedule, so that a test need not wait for half a minute.
BY_SCHEDULE = replace(QUICK, settle_rules=SettleRules(schedule_over_s=0.1))


async def test_a_failed_run_is_tried_again_after_its_gaps_and_recorded(callboard_world: World) -> None:
    world = callboard_world
    starts: list[float] = []

    @capability(retry=RetryPolicy(attempts=3, gaps_s=(0.1, 0.3), jitter=0))
    async def shaky() -> int:
        starts.append(SYSTEM_CLOCK.monotonic())
        if len(starts) < 3:
            message = f"run {len(starts)}"
            raise ValueError(message)
        return current_task().attempt

    await world.start(shaky)
    handle = await world.client.submit(shaky)
    assert await world.client.wait(handle, timeout_s=10) == 3
    found = await world.client.record("shaky", handle.id)
    assert found is not None
    assert found.attempts == 3
    assert 0.1 <= starts[1] - starts[0] < 0.6
    assert 0.3 <= starts[2] - starts[1] < 0.9
    notes = await world.attempts("shaky", handle.id)
    assert [(note.n, note.kind, note.attempt) for note in notes] == [
        (1, "failed", 1),
        (2, "started", 2),
        (3, "failed", 2),
        (4, "started", 3),
    ]
    assert [note.error.message for note in notes if note.kind == "failed"] == ["run 1", "run 2"]  # type: ignore[union-attr]
    assert await world.dead("shaky") == []
    await world.nothing_held()


async def test_failures_are_logged_without_what_they_quote(
    callboard_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = callboard_world

    @capability(retry=RetryPolicy(attempts=2, gaps_s=(0.02,)))
    async def broken(text: str) -> None:
        raise ValueError(text)

    with caplog.at_level("INFO", logger="callboard.runtime.settle"):
        await world.start(broken)
        handle = await world.client.submit(broken, "a canary")
        with pytest.raises(TaskFailedError):
            await world.client.wait(handle, timeout_s=10)
    told = [r for r in caplog.records if r.name == "callboard.runtime.settle"]
    assert [(r.levelname, r.getMessage()) for r in told] == [
        ("INFO", events.TASK_RETRIED),
        ("ERROR", events.TASK_DEAD_LETTERED),
    ]
    fields = vars(told[-1])["callboard_fields"]
    assert (fields["task"], fields["capability"], fields["type"]) == (handle.id, "broken", "ValueError")
    assert "canary" not in str([vars(r) for r in told])


async def test_after_the_last_attempt_it_is_a_dead_letter_with_history(callboard_world: World) -> None:
    world = callboard_world

    @capability(retry=RetryPolicy(attempts=2, gaps_s=(0.02,)))
    async def broken(value: str) -> None:
        raise KeyError(value)

    await world.start(broken)
    handle = await world.client.submit(broken, "x", id="broken/1")
    found = await world.client.wait_record(handle, timeout_s=10)
    assert (found.status, found.attempts, found.error.type) == ("failed", 2, "KeyError")  # type: ignore[union-attr]
    assert "in broken" in found.error.trace  # type: ignore[union-attr,operator]
    (letter,) = await world.dead("broken")
    assert (letter.task, letter.attempts, letter.crashes) == ("broken/1", 2, 0)
    assert [note.kind for note in letter.history] == ["failed", "started"]
    assert bytes(letter.submitted.payload) == b'"x"'  # type: ignore[arg-type]
    await eventually(lambda: _is_empty(world))


async def _is_empty(world: World) -> bool:
    return await world.waiting() == 0 and await world.waiting("CB_LATER") == 0


async def test_a_terminal_error_is_not_tried_again(callboard_world: World) -> None:
    world = callboard_world
    runs: list[int] = []

    @capability
    async def hopeless() -> None:
        runs.append(1)
        message = "no such customer"
        raise TerminalError(message)

    await world.start(hopeless)
    found = await world.client.wait_record(await world.client.submit(hopeless), timeout_s=5)
    assert (found.status, found.attempts, found.error.code) == ("failed", 1, "terminal")  # type: ignore[union-attr]
    assert runs == [1]


async def test_a_retryable_error_names_its_own_gap(callboard_world: World) -> None:
    world = callboard_world
    starts: list[float] = []

    @capability
    async def limited() -> None:
        starts.append(SYSTEM_CLOCK.monotonic())
        if len(starts) == 1:
            message = "slow down"
            raise RetryableError(message, after_s=0.25)

    await world.start(limited)
    await world.client.wait(await world.client.submit(limited), timeout_s=5)
    assert 0.25 <= starts[1] - starts[0] < 0.8


async def test_a_run_over_its_time_is_cancelled_and_tried_again(callboard_world: World) -> None:
    world = callboard_world
    ends: list[str] = []

    @capability(timeout_s=0.15, retry=RetryPolicy(attempts=2, gaps_s=(0.02,)))
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    await world.start(slow)
    found = await world.client.wait_record(await world.client.submit(slow), timeout_s=5)
    assert (found.status, found.attempts, found.error.code) == ("failed", 2, "task_timeout")  # type: ignore[union-attr]
    assert ends == ["cancelled"] * 2


async def test_a_cancellation_of_something_else_is_an_error_of_the_handler(callboard_world: World) -> None:
    world = callboard_world

    @capability(retry=RetryPolicy(attempts=1))
    async def confused() -> None:
        inner = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        inner.cancel()
        await inner

    await world.start(confused)
    found = await world.client.wait_record(await world.client.submit(confused), timeout_s=5)
    assert (found.status, found.error.code) == ("failed", "retryable")  # type: ignore[union-attr]


@pytest.mark.parametrize("named", [True, False])
async def test_a_long_back_off_is_held_by_the_server_and_keeps_id_and_count(
    callboard_world: World, named: bool
) -> None:
    world = callboard_world
    seen: list[tuple[str, int, str]] = []

    @capability(retry=RetryPolicy(attempts=3, gaps_s=(1.1, 0.02)))
    async def patient(value: int) -> int:
        task = current_task()
        seen.append((task.id, task.attempt, task.lane))
        if task.attempt < 3:
            raise ValueError(value)
        return value

    await world.start(patient, options=BY_SCHEDULE)
    handle = await world.client.submit(patient, 7, id="patient/1" if named else None, lane="high")
    await eventually(lambda: _is_later(world, handle.id))
    # the schedule is stored first, and only then is the first message done with
    await eventually(lambda: _is_taken(world))
    await world.nothing_held()
    assert await world.client.wait(handle, timeout_s=10) == 7
    assert seen == [(handle.id, 1, "high"), (handle.id, 2, "high"), (handle.id, 3, "high")]
    notes = await world.attempts("patient", handle.id)
    assert [(note.kind, note.attempt) for note in notes] == [
        ("failed", 1),
        ("started", 2),
        ("failed", 2),
        ("started", 3),
    ]
    assert notes[0].scheduled is True
    await eventually(lambda: _is_empty(world))


async def _is_taken(world: World) -> bool:
    return await world.waiting() == 0


async def _is_later(world: World, task_id: str) -> bool:
    return await world.bus.get_last("CB_LATER", subjects.later(task_id)) is not None


async def test_a_deadline_in_the_past_is_refused_at_once(callboard_world: World) -> None:
    world = callboard_world
    for wrong in (timedelta(seconds=-1), datetime.now(UTC) - timedelta(days=1), datetime(2090, 1, 1)):  # noqa: DTZ001
        with pytest.raises(DeadlineError):
            await world.client.submit("anything", deadline=wrong)
    assert await world.waiting() == 0


async def test_a_task_whose_deadline_passed_while_it_waited_is_not_run(callboard_world: World) -> None:
    world = callboard_world
    runs: list[int] = []

    @capability
    async def work(number: int) -> None:
        runs.append(number)

    soon = timedelta(seconds=0.05)
    plain = await world.client.submit(work, 1, deadline=soon)
    named = await world.client.submit(work, 2, deadline=soon, id="work/2")
    limit = datetime.now(UTC) + soon
    await eventually(lambda: datetime.now(UTC) > limit)
    await world.start(work)
    for handle in (plain, named):
        found = await world.client.wait_record(handle, timeout_s=5)
        assert (found.status, found.attempts, found.error.code) == ("expired", 0, "deadline")  # type: ignore[union-attr]
    assert runs == []
    assert await world.dead("work") == []


async def test_a_task_that_runs_into_its_deadline_is_cancelled(callboard_world: World) -> None:
    world = callboard_world

    @capability
    async def endless() -> None:
        await asyncio.Event().wait()

    await world.start(endless)
    handle = await world.client.submit(endless, deadline=timedelta(seconds=0.2))
    found = await world.client.wait_record(handle, timeout_s=5)
    assert (found.status, found.attempts) == ("expired", 1)


async def test_a_retry_that_would_come_after_the_deadline_expires(callboard_world: World) -> None:
    world = callboard_world

    @capability(retry=RetryPolicy(gaps_s=(0.6,)))
    async def failing() -> None:
        raise ValueError

    await world.start(failing)
    handle = await world.client.submit(failing, deadline=timedelta(seconds=0.3))
    found = await world.client.wait_record(handle, timeout_s=5)
    assert (found.status, found.attempts) == ("expired", 1)
