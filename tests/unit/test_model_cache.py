"""The cache of answers: exact, by tenant, for a time; equal questions at one time are one request."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from callboard.agents.errors import ModelTransientError
from callboard.agents.llm import cache, notes
from callboard.agents.llm.base import Completion, Delta, Prompt, Usage, user
from callboard.agents.llm.cache import Cached
from callboard.agents.llm.scripted import Say, Scripted
from tests.support.provider import Provider
from tests.support.provider import Say as Answer
from tests.support.stage import HastyClock
from tests.support.think_host import model_at


def ask(text: str = "hello", **more: object) -> Prompt:
    return Prompt(messages=(user(text),), **more)  # type: ignore[arg-type] # fields of a prompt


async def streamed(model: Cached, prompt: Prompt) -> list[Delta | Completion]:
    return [part async for part in model.stream(prompt)]


async def test_an_equal_question_is_free_and_noted_as_cached() -> None:
    inner = Scripted([Say(text="fine", usage=Usage(input_tokens=5), cost_usd=Decimal(2))])
    model = Cached(inner)
    first = await model.complete(ask(version="v1"))
    with notes.taken() as noted:
        second = await model.complete(ask(version="v2"))
    assert (first.cost_usd, second.cost_usd, second.usage.tokens, second.text) == (Decimal(2), Decimal(0), 0, "fine")
    assert (inner.calls, noted.is_cached) == (1, True)
    assert [part.text for part in await streamed(model, ask())] == ["fine", "fine"]


async def test_another_question_and_another_tenant_are_asked() -> None:
    inner = Scripted([Say(text="x", always=True)])
    await Cached(inner, tenant="a").complete(ask())
    model = Cached(inner, tenant="b")
    for prompt in (ask(), ask("other"), ask(temperature=0.5)):
        await model.complete(prompt)
    assert inner.calls == 4


async def test_an_answer_goes_after_its_time_and_when_there_are_too_many() -> None:
    clock = HastyClock()
    inner = Scripted([Say(text="x", always=True)])
    model = Cached(inner, ttl_s=10, entries=2, clock=clock)
    await model.complete(ask())
    clock.time_s = 9
    await model.complete(ask())
    assert inner.calls == 1
    clock.time_s = 11
    await model.complete(ask())
    assert inner.calls == 2
    for text in ("one", "two", "hello"):
        await model.complete(ask(text))
    assert inner.calls == 5


@pytest.mark.parametrize("finish", ["length", "refused"])
async def test_what_was_cut_off_or_refused_is_not_kept(finish: str) -> None:
    inner = Scripted([Say(text="x", finish=finish, always=True)])  # type: ignore[arg-type] # one of the words
    model = Cached(inner)
    await model.complete(ask())
    await model.complete(ask())
    assert inner.calls == 2


async def test_inside_of_bypassed_the_model_itself_is_asked() -> None:
    inner = Scripted([Say(text="x", always=True)])
    model = Cached(inner)
    with cache.bypassed():
        await model.complete(ask())
        await streamed(model, ask())
    await model.complete(ask())
    assert inner.calls == 3


async def test_twenty_equal_questions_at_a_time_are_one_request() -> None:
    async with Provider([Answer("fine", delay_s=0.05)]) as provider:
        inner = model_at(provider.url)
        model = Cached(inner)
        wholes = [model.complete(ask()) for _ in range(10)]
        streams = [streamed(model, ask()) for _ in range(10)]
        found = await asyncio.gather(asyncio.gather(*wholes), asyncio.gather(*streams))
        assert {answer.text for answer in found[0]} == {"fine"}
        assert {parts[-1].text for parts in found[1]} == {"fine"}
        assert len(provider.calls) == 1
        await model.close()


async def test_those_who_shared_a_failed_request_ask_for_themselves() -> None:
    inner = Scripted([Say(error="model_transient", delay_s=1), Say(text="fine", delay_s=1)], clock=HastyClock())
    model = Cached(inner)
    found = await asyncio.gather(*(model.complete(ask()) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in found] == [ModelTransientError, Completion, Completion]
    assert inner.calls == 2


async def test_one_that_goes_away_takes_nobody_with_it() -> None:
    gate = asyncio.Event()

    class Slow(Scripted):
        async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:
            found = await super().complete(prompt, timeout_s=timeout_s, key=key)
            await gate.wait()
            return found

    model = Cached(Slow([Say(text="fine", always=True)]))
    first = asyncio.create_task(model.complete(ask()))
    second = asyncio.create_task(model.complete(ask()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert (await second).text == "fine"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_equal_texts_are_embedded_once() -> None:
    class Counting(Scripted):
        async def embed(self, texts: object) -> list[list[float]]:
            assert texts == ["a", "b"]
            return [[1.0], [2.0]]

    assert await Cached(Counting()).embed(["a", "b", "a"]) == [[1.0], [2.0], [1.0]]
