"""Steps with ``once=True``: what may have begun is never run again in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from msgspec import Struct

from callboard.runtime.actor.step import current_step
from callboard.runtime.actor.unknown import settle_unknown, unknown_steps, withdraw_unknown
from callboard.runtime.errors import (
    BusTimeoutError,
    ConflictError,
    InvalidNameError,
    NotFoundError,
    RetryableError,
    StepUnknownError,
)
from callboard.runtime.retry import RetryPolicy
from tests.support.eventually import eventually
from tests.support.stage import ANN, SEQ, Stage

LOST = BusTimeoutError("?")


class Crash(BaseException):
    """The process dies here."""


class Answer(Struct):
    text: str


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as found:
        yield found


async def test_a_step_that_may_have_begun_is_never_run_again_in_silence(stage: Stage) -> None:
    charges = []

    async def charge() -> str:
        charges.append(current_step().id)
        if len(charges) == 1:
            raise Crash
        return "paid"

    with pytest.raises(Crash):
        await stage.journal(is_fresh=True).run("charge", charge, once=True)
    for is_fresh in (True, False):
        for once in (True, False):
            if is_fresh and not once:
                continue
            with pytest.raises(StepUnknownError, match="nobody knows") as caught:
                await stage.journal(is_fresh=is_fresh).run("charge", charge, once=once)
            assert caught.value.step == "charge"
    assert len(charges) == 1
    (found,) = await unknown_steps(stage.bus, ANN, SEQ)
    assert found.id == charges[0]
    assert found.id in str(caught.value)


async def test_an_unknown_step_is_settled_by_hand(stage: Stage) -> None:
    step_id = await _doubtful(stage)
    await settle_unknown(stage.bus, step_id, {"text": "paid"}, by="ops", claim_check_bytes=4)
    assert await unknown_steps(stage.bus, ANN, SEQ) == []
    for once in (True, False):
        assert await stage.journal().run("charge", str, key="k", once=once, returns=Answer) == Answer("paid")
    with pytest.raises(ConflictError, match="done"):
        await settle_unknown(stage.bus, step_id, 1, by="ops")


async def test_a_parked_turn_sees_what_was_settled_since(stage: Stage) -> None:
    step_id = await _doubtful(stage)
    journal = stage.journal()
    with pytest.raises(StepUnknownError):
        await journal.run("charge", str, key="k", once=True)
    kept = journal.entries
    with pytest.raises(StepUnknownError):
        await stage.journal(steps=kept).run("charge", str, key="k", once=True)
    await settle_unknown(stage.bus, step_id, "paid", by="ops")
    assert await stage.journal(steps=kept).run("charge", str, key="k", once=True) == "paid"


async def test_an_unknown_step_that_had_no_effect_is_withdrawn_and_runs(stage: Stage) -> None:
    step_id = await _doubtful(stage)
    await withdraw_unknown(stage.bus, step_id, by="ops")
    assert await stage.journal().run("charge", lambda: "paid", key="k", once=True) == "paid"
    kinds = [[found.kind for found in records] for records in (await stage.records()).values()]
    assert kinds == [["intent", "withdrawn", "intent", "done"]]
    assert await stage.journal().run("charge", lambda: "again", key="k", once=True) == "paid"


async def test_nothing_that_never_began_can_be_settled(stage: Stage) -> None:
    with pytest.raises(NotFoundError):
        await settle_unknown(stage.bus, "greeter/ann/1/7/charge.0123456789abcdef.0", 1, by="ops")
    with pytest.raises(InvalidNameError):
        await settle_unknown(stage.bus, "charge", 1, by="ops")


async def test_an_error_leaves_the_doubt_and_a_retryable_one_takes_it_back(stage: Stage) -> None:
    raised: list[Exception] = [RetryableError("not sent"), RetryableError("not sent"), OSError("sent?")]

    def charge() -> None:
        raise raised.pop(0)

    policy = RetryPolicy(attempts=2, base_s=0.01)
    with pytest.raises(RetryableError):
        await stage.journal(is_fresh=True).run("charge", charge, once=True, retry=policy)
    assert len(raised) == 1, "one more attempt: it said that nothing took effect"
    with pytest.raises(OSError, match=r"sent\?"):
        await stage.journal().run("charge", charge, once=True, retry=policy)
    assert raised == [], "and none after that"
    journal = stage.journal()
    for _ in range(2):
        with pytest.raises(StepUnknownError):
            await journal.run("charge", charge, once=True, retry=policy)


@pytest.mark.parametrize("point", ["before store", "after store"])
async def test_an_intent_whose_outcome_is_unknown_is_known_again(stage: Stage, point: str) -> None:
    left = 2

    async def pause(at: str) -> None:
        nonlocal left
        if at == point and left:
            left -= 1
            raise LOST

    calls = []
    journal = stage.journal(is_fresh=True, pause=pause)
    assert await journal.run("f", lambda: calls.append(1), once=True) is None
    assert len(calls) == 1
    assert await stage.journal().run("f", lambda: calls.append(1), once=True) is None
    assert len(calls) == 1


async def test_of_two_runs_side_by_side_one_begins_the_step(stage: Stage) -> None:
    gate = asyncio.Event()
    calls = []

    async def charge() -> str:
        calls.append(1)
        await gate.wait()
        return "paid"

    first = asyncio.create_task(stage.journal(is_fresh=True).run("charge", charge, once=True))
    await eventually(lambda: calls)
    with pytest.raises(StepUnknownError):
        await stage.journal(is_fresh=True).run("charge", charge, once=True)
    gate.set()
    assert await first == "paid"
    assert await stage.journal(is_fresh=True).run("charge", charge, once=True) == "paid"
    assert len(calls) == 1


async def _doubtful(stage: Stage) -> str:
    def die() -> None:
        raise Crash

    with pytest.raises(Crash):
        await stage.journal(is_fresh=True).run("charge", die, key="k", once=True)
    (found,) = await unknown_steps(stage.bus, ANN, SEQ)
    return found.id
