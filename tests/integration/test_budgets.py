"""Budgets: asked before a call, watched while it streams, shared by hosts, and never left with what nobody spends."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from callboard.agents.budget import Budget
from callboard.agents.errors import BudgetExceededError, ModelError
from callboard.agents.llm.base import Prompt, Usage, user
from callboard.agents.llm.call import call_model
from callboard.agents.llm.scope import Amount, BudgetView, Reserve, SetBudget, Settle, ShowBudget, agent_day
from callboard.agents.llm.scripted import Say, Scripted
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import AskFailedError
from tests.support.actors import events_of
from tests.support.eventually import eventually
from tests.support.world import World

ASKED = "x" * 320


class Spend(Struct):
    scopes: list[str]
    text: str = ASKED
    most: int | None = None


class Spender(Actor):
    """Calls the model once and says how it ended."""

    model: Scripted = Scripted()

    @on
    async def spend(self, m: Spend) -> dict[str, Any]:
        prompt = Prompt(messages=(user(m.text),), max_output_tokens=m.most)
        try:
            found = await call_model(self, self.model, prompt, budgets=m.scopes)
        except BudgetExceededError as error:
            return {"scope": error.scope, "unit": error.unit, "partial": error.partial, "message": str(error)}
        except ModelError as error:
            return {"error": error.code}
        return {"text": found.text}


async def set_budget(world: World, scope: str, **limits: Any) -> None:  # noqa: ANN401 - fields of SetBudget
    await world.client.actor(f"budget/{scope}").ask(SetBudget(**limits))


async def view_of(world: World, scope: str) -> BudgetView:
    """Return how a scope stands when what its calls have spent has arrived there."""
    found: list[BudgetView] = []

    async def rests() -> bool:
        found[:] = [msgspec.convert(await world.client.actor(f"budget/{scope}").ask(ShowBudget()), BudgetView)]
        return found[0].running == 0

    await eventually(rests)
    return found[0]


async def spend(world: World, key: str, *scopes: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of Spend
    found: dict[str, Any] = await world.client.actor(f"spender/{key}").ask(Spend(list(scopes), **more))
    return found


async def test_a_call_is_charged_to_its_scope_and_to_those_above(callboard_world: World) -> None:
    used = Usage(input_tokens=100, output_tokens=20)
    Spender.model = Scripted([Say(text="fine", usage=used, cost_usd=Decimal("0.0125"))])
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "run/1", tokens=5000, parent="tenant/acme")
    assert await spend(callboard_world, "a", "run/1", "tenant/acme") == {"text": "fine"}

    for scope in ("run/1", "tenant/acme"):
        found = await view_of(callboard_world, scope)
        assert (found.spent.tokens, found.spent.usd, found.calls) == (120, Decimal("0.0125"), 1), scope
        assert (found.running, found.reserved.tokens) == (0, 0)


async def test_a_budget_of_zero_refuses_before_the_call(callboard_world: World) -> None:
    Spender.model = Scripted(["never"])
    await callboard_world.start(Spender, Budget)
    for number, unit in enumerate(("tokens", "usd", "seconds")):
        scope = f"run/zero-{unit}"
        await set_budget(callboard_world, scope, **{unit: 0})
        refused = await spend(callboard_world, str(number), scope)
        assert (refused["scope"], refused["unit"], refused["partial"]) == (scope, unit, "")
        assert f"callboard budget set {scope} --{unit}" in refused["message"]
        assert (await view_of(callboard_world, scope)).level == "spent"
        found = [name for name, _ in await events_of(callboard_world, f"budget/{scope}")]
        assert found == ["budget.spent", "budget.refused"]
    assert Spender.model.calls == 0


async def test_what_a_parent_refuses_leaves_nothing_reserved_below(callboard_world: World) -> None:
    Spender.model = Scripted(["never"])
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "tenant/t", usd=Decimal("0.01"))
    await set_budget(callboard_world, "run/3", parent="tenant/t")
    Spender.model = Scripted(["never"], usd_per_token=Decimal("0.001"))
    refused = await spend(callboard_world, "a", "run/free", "run/3")
    assert (refused["scope"], refused["unit"]) == ("tenant/t", "usd")
    for scope in ("run/free", "run/3"):
        found = await view_of(callboard_world, scope)
        assert (found.running, found.calls, found.spent.tokens) == (0, 0, 0), scope


async def test_an_answer_is_stopped_when_the_budget_runs_out_and_its_text_is_kept(callboard_world: World) -> None:
    Spender.model = Scripted([Say(text="word " * 4000)])
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "run/4", tokens=3000)
    stopped = await spend(callboard_world, "a", "run/4")
    assert stopped["unit"] == "tokens"
    assert 3000 < len(stopped["partial"]) < 4 * 3000
    found = await view_of(callboard_world, "run/4")
    assert 2900 < found.spent.tokens <= 3000 + 8
    assert found.level in ("critical", "spent")


async def test_a_price_that_nobody_knows_is_no_way_around_a_limit_in_dollars(callboard_world: World) -> None:
    class Unpriced(Scripted):
        def cost(self, usage: Usage) -> Decimal | None:
            return None

    Spender.model = Unpriced(["never"])
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "run/5", usd=Decimal(1))
    refused = await spend(callboard_world, "a", "run/5")
    assert (refused["unit"], Spender.model.calls) == ("usd", 0)
    assert "price is not known" in refused["message"]


async def test_wall_time_ends_a_call_in_the_middle(callboard_world: World) -> None:
    Spender.model = Scripted([Say(text="one two three", gap_s=30)])
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "run/6", seconds=0.2)
    stopped = await spend(callboard_world, "a", "run/6")
    assert (stopped["unit"], stopped["partial"]) == ("seconds", "one ")
    assert (await spend(callboard_world, "b", "run/6"))["unit"] == "seconds"
    assert Spender.model.calls == 1


async def test_levels_are_told_once_each(callboard_world: World) -> None:
    answers = [Say(text="a", usage=Usage(input_tokens=tokens)) for tokens in (500, 350, 50, 60, 40)]
    Spender.model = Scripted(answers)
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "run/7", tokens=1000)
    for number in range(5):
        await spend(callboard_world, str(number), "run/7", text="x", most=1)
    await view_of(callboard_world, "run/7")
    events = [name for name, _ in await events_of(callboard_world, "budget/run/7")]
    assert events == ["budget.warn", "budget.critical", "budget.spent"]


async def test_a_day_of_an_agent_has_the_limits_of_its_kind(callboard_world: World) -> None:
    Spender.model = Scripted(["never"])
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "agent-day/spender", tokens=10)
    today = agent_day("spender", callboard_world.clock.now())
    refused = await spend(callboard_world, "a", today)
    assert refused["scope"] == today
    assert "`callboard budget set agent-day/spender --tokens N`" in refused["message"]


async def test_a_limit_that_a_day_was_given_itself_stays_when_its_kind_changes(callboard_world: World) -> None:
    Spender.model = Scripted(["never"])
    await callboard_world.start(Spender, Budget)
    today = agent_day("spender", callboard_world.clock.now())
    await set_budget(callboard_world, today, tokens=10)
    await set_budget(callboard_world, "agent-day/spender", tokens=None, seconds=60.0)

    async def has(tokens: int | None, seconds: float) -> bool:
        found = (await view_of(callboard_world, today)).limits
        return (found.tokens, found.seconds) == (tokens, seconds)

    await eventually(lambda: has(10, 60.0))
    refused = await spend(callboard_world, "a", today)
    assert f"`callboard budget set {today} --tokens N`" in refused["message"]
    # what was taken away from it is its kind's to give again
    await set_budget(callboard_world, today, tokens=None)
    await set_budget(callboard_world, "agent-day/spender", tokens=500)
    await eventually(lambda: has(500, 60.0))


async def test_the_settings_limit_runs_that_nobody_did(callboard_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_AGENTS__BUDGETS__RUN__TOKENS", "10")
    Spender.model = Scripted([Say(text="fine", always=True)])
    await callboard_world.start(Spender, Budget)
    assert (await spend(callboard_world, "a", "run/any"))["scope"] == "run/any"
    assert await spend(callboard_world, "a", "tenant/any") == {"text": "fine"}
    # what a person sets counts before them
    await set_budget(callboard_world, "run", tokens=5000)
    assert await spend(callboard_world, "a", "run/other") == {"text": "fine"}


async def test_what_a_lost_call_had_set_aside_is_free_again(callboard_world: World) -> None:
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "run/9", tokens=1000)
    first = Reserve(id="one", step="spender/a/1/model.x.0", least=Amount(tokens=100), want=Amount(tokens=1000))
    ref = callboard_world.client.actor("budget/run/9")
    assert (await ref.ask(first))["amount"]["tokens"] == 1000
    other = Reserve(id="b", step="spender/b/1/model.x.0", least=Amount(tokens=1), want=Amount(tokens=1))
    assert not (await ref.ask(other))["ok"]
    # the call is made again: the first attempt is charged with its prompt, the rest is there
    assert (await ref.ask(msgspec.structs.replace(first, id="two")))["amount"]["tokens"] == 900
    await ref.tell(Settle(id="two", spent=Amount(tokens=150)))
    stands = await view_of(callboard_world, "run/9")
    assert (stands.spent.tokens, stands.interrupted, stands.calls) == (250, 1, 2)
    # and should it report after all, its charge is put right
    await ref.tell(Settle(id="one", spent=Amount(tokens=130)))
    await eventually(lambda: spent_is(callboard_world, "run/9", 280))


async def spent_is(world: World, scope: str, tokens: int) -> bool:
    return (await view_of(world, scope)).spent.tokens == tokens


async def test_parents_in_a_circle_are_named(callboard_world: World) -> None:
    Spender.model = Scripted(["never"])
    await callboard_world.start(Spender, Budget)
    # a kind's parent counts for each of its scopes, also for one that is its own parent that way
    await set_budget(callboard_world, "kind", parent="two")
    await set_budget(callboard_world, "two", parent="kind/one")
    refused = await spend(callboard_world, "a", "kind/one")
    assert "kind/one -> two -> kind/one" in refused["message"]


async def test_a_scope_that_can_be_none_is_refused_in_words(callboard_world: World) -> None:
    await callboard_world.start(Spender, Budget)
    caught = None
    try:
        await spend(callboard_world, "a", "run//x")
    except AskFailedError as error:
        caught = error
    assert caught is not None
    assert "no scope of a budget" in str(caught)


async def test_two_hosts_pass_a_limit_by_no_more_than_one_call(callboard_world: World) -> None:
    Spender.model = Scripted([Say(text="ok", usage=Usage(input_tokens=100, output_tokens=2), gap_s=0.01, always=True)])
    await callboard_world.start(Spender, Budget)
    await callboard_world.start(Spender, Budget)
    await set_budget(callboard_world, "run/8", tokens=1000)
    found = await asyncio.gather(*(spend(callboard_world, str(number), "run/8", most=2) for number in range(40)))
    done = [one for one in found if "text" in one]
    assert len(done) == Spender.model.calls
    stands = await view_of(callboard_world, "run/8")
    assert stands.spent.tokens == 102 * len(done)
    assert 1000 - 2 * 106 <= stands.spent.tokens <= 1000 + 102
    assert stands.refused == 40 - len(done) > 0
