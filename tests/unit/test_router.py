"""Several models as one: who is asked, who is passed over, and when one that failed is tried again."""

from __future__ import annotations

from decimal import Decimal

import pytest

from callboard.agents.errors import (
    ContextTooLongError,
    ModelAuthError,
    ModelRateError,
    ModelRefusedError,
    ModelSetupError,
    ModelTransientError,
    UnexpectedPromptError,
)
from callboard.agents.llm import notes
from callboard.agents.llm.base import ModelFacts, Prompt, Usage, user
from callboard.agents.llm.router import Router
from callboard.agents.llm.scripted import Answer, Say, Scripted
from tests.support.stage import HastyClock

ASK = Prompt(messages=(user("hello"),))
OK = Say(text="fine", always=True)
DOWN = Say(error="model_transient", always=True)


def named(provider: str, *answers: Answer) -> Scripted:
    return Scripted(answers, name=f"{provider}/x")


@pytest.mark.parametrize(
    "error",
    [ModelTransientError("down"), ModelRateError("slow"), ModelAuthError("no"), ContextTooLongError("too long")],
)
async def test_the_second_answers_when_the_first_cannot_and_the_switch_is_noted(error: Exception) -> None:
    assert isinstance(error, ModelTransientError | ModelRateError | ModelAuthError | ContextTooLongError)
    router = Router([named("a", error), named("b", "fine")])
    with notes.taken() as noted:
        found = await router.complete(ASK)
    assert (found.text, found.model) == ("fine", "b/x")
    assert [(switch.model, switch.code) for switch in noted.switches] == [("a/x", error.code)]


@pytest.mark.parametrize("error", [ModelRefusedError("no"), UnexpectedPromptError("?")])
async def test_what_concerns_the_question_is_not_asked_elsewhere(error: ModelRefusedError) -> None:
    second = named("b", "fine")
    with pytest.raises(type(error)):
        await Router([named("a", error), second]).complete(ASK)
    assert second.calls == 0


async def test_the_last_error_is_raised_where_all_fail() -> None:
    router = Router([named("a", ModelTransientError("first")), named("b", ModelAuthError("second"))])
    with pytest.raises(ModelAuthError, match="second"):
        await router.complete(ASK)


async def test_a_stream_falls_back_before_its_first_piece_and_never_after() -> None:
    router = Router([named("a", Say(text="x", cut_after=0), Say(text="one two", cut_after=1)), named("b", OK)])
    parts = [part async for part in router.stream(ASK)]
    assert [part.text for part in parts] == ["fine", "fine"]
    broken = router.stream(ASK)
    assert (await anext(broken)).text == "one "
    with pytest.raises(ModelTransientError):
        await anext(broken)


async def test_a_breaker_opens_after_failures_and_lets_one_call_try_again() -> None:
    clock = HastyClock()
    first = named("a", ModelTransientError("1"), ModelTransientError("2"), ModelTransientError("3"), "well again")
    router = Router([first, named("b", OK)], failures=2, open_s=30, clock=clock)
    for _ in range(3):
        assert (await router.complete(ASK)).model == "b/x"
    # the third call left it alone
    assert first.calls == 2
    clock.time_s = 31
    assert (await router.complete(ASK)).model == "b/x"
    assert first.calls == 3
    clock.time_s = 40
    with notes.taken() as noted:
        assert (await router.complete(ASK)).model == "b/x"
    assert (first.calls, [switch.code for switch in noted.switches]) == (3, ["breaker_open"])
    clock.time_s = 62
    assert (await router.complete(ASK)).text == "well again"


async def test_a_provider_that_says_how_long_is_left_alone_that_long() -> None:
    clock = HastyClock()
    first = named("a", Say(error="model_rate", retry_after_s=7), "back")
    router = Router([first, named("b", OK)], clock=clock)
    await router.complete(ASK)
    clock.time_s = 6
    assert (await router.complete(ASK)).text == "fine"
    clock.time_s = 8
    assert (await router.complete(ASK)).text == "back"


async def test_where_all_are_left_alone_the_error_says_for_how_long() -> None:
    router = Router([named("a", DOWN)], failures=1, open_s=30, clock=HastyClock())
    with pytest.raises(ModelTransientError, match="the script says"):
        await router.complete(ASK)
    with pytest.raises(ModelTransientError, match="tried in 30 s"):
        await router.complete(ASK)


async def test_a_group_shares_the_load() -> None:
    models = [named(name, OK) for name in "abc"]
    router = Router(models, strategy="balance")
    for _ in range(6):
        await router.complete(ASK)
    assert [model.calls for model in models] == [2, 2, 2]


def test_facts_and_price_are_those_that_hold_for_all() -> None:
    small = Scripted(name="a/x", facts=ModelFacts(context_tokens=1000, has_tools=False), usd_per_token=Decimal("0.1"))
    router = Router([small, Scripted(name="b/x", facts=ModelFacts(has_schema=True), usd_per_token=Decimal("0.3"))])
    assert (router.facts.context_tokens, router.facts.has_tools, router.facts.has_schema) == (1000, False, False)
    assert router.cost(Usage(input_tokens=10)) == Decimal(3)
    assert router.name == "a/x | b/x"


def test_a_router_of_nothing_is_refused() -> None:
    with pytest.raises(ModelSetupError, match="at least"):
        Router([])
