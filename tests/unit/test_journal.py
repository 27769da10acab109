"""A turn's journal: what finished is not run again, whatever the code has become since."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable
from typing import Any, cast

import pytest
from msgspec import Raw, Struct

from callboard.runtime import subjects
from callboard.runtime.actor import record, step
from callboard.runtime.actor.commit import TurnCommitter
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.record import ParkedTurn
from callboard.runtime.actor.step import current_step
from callboard.runtime.bus import header
from callboard.runtime.bus.base import PubAck, Write
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import (
    ActorError,
    ApiError,
    BackpressureError,
    BusClosedError,
    BusTimeoutError,
    ConflictError,
    DecodeError,
    EncodeError,
    HandlerExitError,
    InvalidNameError,
    PermissionDeniedError,
)
from callboard.runtime.retry import RetryPolicy
from tests.support.stage import ANN, SEQ, Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as found:
        yield found


AWAY = OSError("away")


class Crash(BaseException):
    """The process dies here."""


class Answer(Struct):
    text: str
    tokens: int = 0


class Model:
    """Something that bills every call."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    async def ask(self, prompt: object) -> Answer:
        self.calls.append(prompt)
        return Answer(f"re: {prompt}", len(self.calls))


# --- the promise


async def test_a_model_is_called_once_over_three_crashes(stage: Stage) -> None:
    model = Model()
    for crash_after in (1, 2, 3, None):
        journal = stage.journal(is_fresh=crash_after == 1)
        for number in (1, 2, 3):
            answer = await journal.run("ask", model.ask, (f"q{number}",))
            assert answer == Answer(f"re: q{number}", number)
            if number == crash_after:
                break
    assert model.calls == ["q1", "q2", "q3"]
    assert (journal.executed, journal.replayed) == (0, 3)


async def test_a_renamed_step_runs_again_and_no_other(stage: Stage) -> None:
    model = Model()
    journal = stage.journal(is_fresh=True)
    for name in ("plan", "draft", "review"):
        await journal.run(name, model.ask, ("the moon",))
    journal = stage.journal()
    for name in ("plan", "sketch", "review"):
        await journal.run(name, model.ask, ("the moon",))
    assert (journal.executed, journal.replayed) == (1, 2)
    assert len(model.calls) == 4


async def test_a_step_with_other_arguments_runs_again(stage: Stage) -> None:
    model = Model()
    assert await stage.journal(is_fresh=True).run("ask", model.ask, ("a",)) == Answer("re: a", 1)
    assert await stage.journal().run("ask", model.ask, ("b",)) == Answer("re: b", 2)


async def test_an_explicit_key_counts_in_place_of_the_arguments(stage: Stage) -> None:
    model = Model()
    first = await stage.journal(is_fresh=True).run("ask", model.ask, (object,), key="about cats")
    again = await stage.journal().run("ask", model.ask, ("other words",), key="about cats")
    assert first == again
    await stage.journal().run("ask", model.ask, ("about cats",))
    assert len(model.calls) == 2, "a key is not the same as an argument of that text"


async def test_identical_steps_are_told_apart_by_their_order(stage: Stage) -> None:
    model = Model()
    journal = stage.journal(is_fresh=True)
    first = [await journal.run("ask", model.ask, ("q",)) for _ in range(3)]
    journal = stage.journal()
    assert [await journal.run("ask", model.ask, ("q",)) for _ in range(3)] == first
    assert [cast("Answer", a).tokens for a in first] == [1, 2, 3]


async def test_side_by_side_the_first_called_is_the_first(stage: Stage) -> None:
    async def late(gate: asyncio.Event) -> str:
        await gate.wait()
        return current_step().id

    journal = stage.journal(is_fresh=True)
    gate = asyncio.Event()
    gate.set()
    first = journal.run("late", late, (gate,), key="k")
    second = journal.run("late", late, (gate,), key="k")
    # the other way round
    assert str(await second).endswith(".1")
    assert str(await first).endswith(".0")


async def test_a_step_tried_again_by_hand_is_the_same_step(stage: Stage) -> None:
    """Or a run after a crash would try what failed once more, and never find what had come of it."""
    quotes = iter([ValueError("busy"), 5, 3])
    ids = []

    def quote() -> int:
        ids.append(current_step().id)
        found = next(quotes)
        if isinstance(found, Exception):
            raise found
        return cast("int", found)

    async def turn(journal: Journal) -> object:
        try:
            return await journal.run("quote", quote)
        except ValueError:
            return await journal.run("quote", quote)

    assert await turn(stage.journal(is_fresh=True)) == 5
    assert await turn(stage.journal()) == 5
    assert len(set(ids)) == 1, "one idempotency key"


async def test_what_a_step_runs_inside_of_itself_does_not_shift_those_outside(stage: Stage) -> None:
    rolls = iter(range(10))

    async def roll() -> int:
        return next(rolls)

    async def turn(journal: Journal) -> list[object]:
        async def outer() -> object:
            return await journal.run("roll", roll)

        return [await journal.run("outer", outer), await journal.run("roll", roll)]

    assert await turn(stage.journal(is_fresh=True)) == [0, 1]
    assert await turn(stage.journal()) == [0, 1]


async def test_an_error_goes_through_and_is_not_recorded(stage: Stage) -> None:
    no_city = LookupError("no such city")

    def fail() -> None:
        raise no_city

    with pytest.raises(LookupError, match="no such city"):
        await stage.journal(is_fresh=True).run("find", fail)
    assert await stage.records() == {}


# --- values


async def test_the_first_value_is_what_a_replay_gives(stage: Stage) -> None:
    async def untyped() -> Any:  # noqa: ANN401 - what the test is about
        return {"pair": (1, 2), "answer": Answer("x")}

    first = await stage.journal(is_fresh=True).run("f", untyped)
    assert first == {"pair": [1, 2], "answer": {"text": "x", "tokens": 0}}
    assert await stage.journal().run("f", untyped) == first


async def test_returns_names_the_type_where_the_function_does_not(stage: Stage) -> None:
    for is_fresh in (True, False):
        journal = stage.journal(is_fresh=is_fresh)
        value = await journal.run("f", lambda: {"text": "x"}, returns=list[Answer] | Answer)
        assert value == Answer("x")


async def test_a_large_value_is_kept_as_an_object(stage: Stage) -> None:
    text = "x" * 5000
    for is_fresh in (True, False):
        journal = stage.journal(is_fresh=is_fresh, claim_check_bytes=1000)
        assert await journal.run("f", lambda: text) == text
    (entry,) = (await stage.records()).values()
    assert len(step.encode(entry[0])) < 1000
    assert journal.replayed == 1


async def test_a_value_without_a_form_in_json_is_refused(stage: Stage) -> None:
    with pytest.raises(EncodeError, match="step 'f' ran, and what it returned cannot be recorded"):
        await stage.journal(is_fresh=True).run("f", threading.Lock)


async def test_a_value_that_does_not_fit_its_type_was_paid_for_and_stands(stage: Stage) -> None:
    calls = []

    def f() -> int:
        calls.append(1)
        return cast("int", "seven")

    for is_fresh in (True, False):
        with pytest.raises(DecodeError, match="The record stands"):
            await stage.journal(is_fresh=is_fresh).run("f", f)
    assert await stage.journal().run("f", f, returns=str) == "seven"
    assert len(calls) == 1


async def test_arguments_without_a_form_in_json_want_a_key(stage: Stage) -> None:
    with pytest.raises(EncodeError, match="key="):
        await stage.journal().run("f", str, (object(),))


@pytest.mark.parametrize("name", ["", "x" * 257, "~ask", "\ud800", None, 7])
async def test_a_name_that_cannot_be_used_is_refused(stage: Stage, name: Any) -> None:  # noqa: ANN401 - wrong ones too
    with pytest.raises(InvalidNameError):
        await stage.journal().run(name, str)


@pytest.mark.parametrize("name", ["a.b.c", "*", ">", "a b", "é" * 128, "-", "a/b"])
async def test_any_other_text_is_a_name(stage: Stage, name: str) -> None:
    for is_fresh in (True, False):
        journal = stage.journal(is_fresh=is_fresh)
        id_ = str(await journal.run(name, lambda: current_step().id))
        assert (journal.executed, journal.replayed) == ((1, 0) if is_fresh else (0, 1))
    address, seq, entry = step.parse_id(id_)
    assert (address, seq, [entry]) == (ANN, SEQ, list(await stage.records()))


async def test_a_record_says_who_when_and_how(stage: Stage) -> None:
    policy = RetryPolicy(attempts=3, gaps_s=(2.0,), jitter=0)
    seen = []

    async def f(n: int) -> int:
        seen.append(current_step().attempt)
        stage.clock.time_s += 0.5
        if len(seen) < 3:
            raise AWAY
        return n

    assert await stage.journal(is_fresh=True, worker="w9").run("f", f, (4,), retry=policy) == 4
    ((found,),) = (await stage.records()).values()
    assert (found.name, found.kind, found.worker, found.attempt, found.took_s) == ("f", "done", "w9", 3, 0.5)
    assert found.value == Raw(b"4")
    assert seen == [1, 2, 3]
    assert stage.clock.slept == [2.0, 2.0]


async def test_retries_end_with_the_error(stage: Stage) -> None:
    calls = []

    def f() -> None:
        calls.append(1)
        raise AWAY

    with pytest.raises(OSError, match="away"):
        await stage.journal(is_fresh=True).run("f", f, retry=RetryPolicy(attempts=2, base_s=0.01))
    assert len(calls) == 2


# --- functions


async def test_a_plain_function_runs_in_a_thread_and_knows_its_step(stage: Stage) -> None:
    def f() -> list[Any]:
        return [threading.current_thread() is threading.main_thread(), current_step().name]

    assert await stage.journal(is_fresh=True).run("f", f) == [False, "f"]
    with pytest.raises(ActorError, match="no step runs here"):
        current_step()


async def test_what_a_plain_function_returns_is_awaited_if_it_can_be(stage: Stage) -> None:
    model = Model()

    def f() -> Awaitable[Answer]:
        return model.ask("q")

    assert await stage.journal(is_fresh=True).run("f", f) == Answer("re: q", 1)
    assert await stage.journal().run("f", f) == Answer("re: q", 1)


@pytest.mark.parametrize(("raised", "seen"), [(StopIteration, RuntimeError), (SystemExit, HandlerExitError)])
async def test_a_thread_that_raises_what_a_loop_cannot_carry_ends_all_the_same(
    stage: Stage, raised: type[BaseException], seen: type[Exception]
) -> None:
    def f() -> None:
        raise raised

    with pytest.raises(seen):
        await stage.journal(is_fresh=True).run("f", f)


# --- writing


async def test_a_fresh_turn_reads_nothing(stage: Stage) -> None:
    seen = []

    async def pause(point: str) -> None:
        seen.append(point)

    await stage.journal(is_fresh=True, pause=pause).run("f", lambda: 1)
    assert seen == ["before store", "after store"]
    seen.clear()
    journal = stage.journal(pause=pause)
    await asyncio.gather(journal.run("f", lambda: 1), journal.run("f", lambda: 1))
    assert seen[:2] == ["before read", "after read"]
    assert seen.count("before read") == 1


async def test_a_turn_thought_fresh_adopts_what_stands_and_reads_the_rest(stage: Stage) -> None:
    model = Model()
    journal = stage.journal(is_fresh=True)
    first = [await journal.run("ask", model.ask, (n,)) for n in range(3)]
    journal = stage.journal(is_fresh=True)
    assert [await journal.run("ask", model.ask, (n,)) for n in range(3)] == first
    assert (journal.executed, journal.adopted, journal.replayed) == (0, 1, 2)


@pytest.mark.parametrize(
    "error",
    [BusTimeoutError("?"), BackpressureError("full"), ApiError("no leader", code=503), ConflictError("someone")],
    ids=lambda error: error.code,
)
@pytest.mark.parametrize("point", ["before store", "after store"])
async def test_a_record_is_stored_until_it_stands(stage: Stage, error: Exception, point: str) -> None:
    """Also when the outcome is unknown, and when a refusal cannot be explained by what is to be seen."""
    left = 3
    problems = []

    async def pause(at: str) -> None:
        nonlocal left
        if at == point and left:
            left -= 1
            problems.append(journal.last_problem)
            raise error

    calls = []
    journal = stage.journal(is_fresh=True, pause=pause)
    assert await journal.run("f", lambda: calls.append(1)) is None
    assert len(calls) == 1
    assert (journal.executed, journal.adopted, journal.last_problem) == (1, 0, None)
    assert [len(found) for found in (await stage.records()).values()] == [1]


async def test_what_can_never_be_stored_is_an_error(stage: Stage) -> None:
    denied = PermissionDeniedError("no")

    async def pause(at: str) -> None:
        raise denied

    with pytest.raises(PermissionDeniedError):
        await stage.journal(is_fresh=True, pause=pause).run("f", lambda: 1)


async def test_a_step_cancelled_while_it_is_recorded_is_not_run_again(stage: Stage) -> None:
    gate = asyncio.Event()

    async def pause(at: str) -> None:
        if at == "before store":
            await gate.wait()

    model = Model()
    journal = stage.journal(is_fresh=True, pause=pause)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await journal.run("ask", model.ask, ("q",))
    gate.set()
    assert await journal.run("ask", model.ask, ("q",)) == Answer("re: q", 1)
    assert len(model.calls) == 1


async def test_records_have_the_lifetime_asked_for_and_go_the_way_asked_for(stage: Stage) -> None:
    writes: list[Write] = []

    async def store(write: Write) -> PubAck:
        writes.append(write)
        return await stage.bus.store(write)

    journal = stage.journal(is_fresh=True, store=store, ttl_s=90.0)
    await journal.run("f", lambda: 1)
    await journal.run("g", lambda: 1, once=True)
    plain, once = writes
    assert plain.headers == {header.EXPECTED_SUBJECT_SEQ: "0", header.TTL: "90s"}
    assert header.TTL not in (once.headers or {}), "or the intent below would come to light when it expires"
    assert journal.untimed == [once.subject]
    later = stage.journal()
    await later.run("f", lambda: 1)
    assert later.untimed == [once.subject]


async def test_records_may_go_with_a_group_commit(stage: Stage) -> None:
    """Its results are no exceptions: another's record is adopted, a refusal is an error."""
    committer = TurnCommitter(stage.bus, clock=SYSTEM_CLOCK)
    running = asyncio.create_task(committer.run())
    model = Model()
    first = stage.journal(is_fresh=True, store=committer.commit)
    assert await first.run("ask", model.ask, ("q",)) == Answer("re: q", 1)
    second = stage.journal(is_fresh=True, store=committer.commit)
    assert await second.run("ask", model.ask, ("q",)) == Answer("re: q", 1)
    assert (first.executed, second.executed, second.adopted) == (1, 0, 1)
    assert await second.run("charge", model.ask, ("c",), once=True) == Answer("re: c", 3)
    assert await stage.journal().run("charge", model.ask, ("c",), once=True) == Answer("re: c", 3)
    running.cancel()
    await asyncio.wait([running])
    with pytest.raises(BusClosedError):
        await second.run("ask", model.ask, ("more",))


async def test_a_damaged_record_is_an_error_and_not_an_absent_one(stage: Stage) -> None:
    await stage.journal(is_fresh=True).run("f", lambda: 1)
    (entry,) = await stage.records()
    subject = subjects.step(ANN.type, ANN.key, SEQ, entry)
    for damaged in (
        b"{",
        b'{"v":2,"name":"f","kind":"done","at":"2026-01-01T00:00:00Z","worker":"w","args_digest":""}',
    ):
        await stage.bus.store(Write(subject, damaged))
        with pytest.raises(DecodeError):
            await stage.journal().run("f", lambda: 1)


# --- parking


async def test_a_parked_turn_takes_its_steps_along(stage: Stage) -> None:
    model = Model()
    journal = stage.journal(is_fresh=True)
    await journal.run("ask", model.ask, ("q",))
    kept = {entry: Raw(data) for entry, data in journal.entries.items()}
    parked = ParkedTurn(seq=SEQ, id="~7", data=b"{}", time=stage.clock.now(), steps=kept)
    found = record.decode_parked(record.encode(parked))
    await stage.bus.purge("CB_ACTORS", subject=subjects.steps(ANN.type, ANN.key, SEQ))  # they expired

    journal = stage.journal(steps=found.steps)
    assert await journal.run("ask", model.ask, ("q",)) == Answer("re: q", 1)
    await journal.run("ask", model.ask, ("next",))
    assert len(journal.entries) == 2
    assert journal.entries | {e: bytes(d) for e, d in found.steps.items()} == journal.entries


# --- the engine's own steps


async def test_the_engine_takes_a_place_and_records_what_came_of_it(stage: Stage) -> None:
    for is_fresh in (True, False):
        slot = await stage.journal(is_fresh=is_fresh).begin("~ask", {"to": "billing/1"}, returns=Answer)
        assert slot.id.startswith("greeter/ann/1/7/~ask.")
        with slot:
            assert slot.is_recorded != is_fresh
            if is_fresh:
                assert await slot.record({"text": "x"}) == Answer("x")
            assert slot.value == Answer("x")


async def test_a_place_left_without_a_record_is_free_again(stage: Stage) -> None:
    journal = stage.journal(is_fresh=True)
    with pytest.raises(OSError, match="away"), await journal.begin("~ask", 1) as first:
        raise AWAY
    kept = await journal.begin("~ask", 1)
    again = await journal.begin("~ask", 1)
    assert (first.id, again.id) == (kept.id, f"{kept.id[:-1]}1")
