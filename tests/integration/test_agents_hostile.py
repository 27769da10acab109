"""What hostile callers, models and tools do to an agent ends in words, and the agent takes its next task."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from callboard import on, tool
from callboard.agents import approvals, window
from callboard.agents.agent import Agent
from callboard.agents.budget import Budget
from callboard.agents.llm.base import Message, ModelFacts, ToolCall, Usage, user
from callboard.agents.llm.scope import Amount, BudgetView, Grant, Reserve, SetBudget, Settle, ShowBudget
from callboard.agents.llm.scripted import Say, Scripted
from callboard.agents.message import AgentResult, Task
from callboard.agents.tools.decorator import tool as made
from callboard.runtime.actor.actor import Actor
from callboard.runtime.errors import AskFailedError, InvalidNameError
from tests.support.eventually import eventually
from tests.support.world import World


def call(name: str, arguments: str = "{}", id_: str = "") -> ToolCall:
    return ToolCall(id=id_, name=name, arguments=arguments)


async def ask(world: World, address: str, task: Task | str) -> AgentResult:
    whole = Task(task) if isinstance(task, str) else task
    found: AgentResult = await world.client.actor(address).ask(whole, returns=AgentResult, timeout_s=30)
    return found


def results(model: Scripted) -> list[str]:
    """Return what the model was told of its last calls, without fences."""
    said = [message for message in model.prompts[-1].messages if message.role == "tool"]
    return [message.text.split("\n", 1)[1].rpartition("\n")[0] for message in said]


# --- who pays


@pytest.mark.parametrize(
    ("scopes", "words"),
    [
        (("run/victim/1",), "no part of that run"),
        (("run",), "no part of that run"),
        (("agent-day/victim/2026-11-21",), "pays for its own agents"),
        (("agent-class/plain/2026-11-21",), "pays for its own agents"),
        (("tenant//x",), "no scope of a budget"),
        (tuple(f"tenant/{n}" for n in range(100)), "at most 64"),
    ],
)
async def test_nobody_else_is_charged(callboard_world: World, scopes: tuple[str, ...], words: str) -> None:
    model = Scripted([Say(text="never", always=True)])

    class Plain(Agent, name="plain", model=model):
        """You are plain."""

    await callboard_world.start(Plain)
    with pytest.raises(AskFailedError, match=words) as caught:
        await ask(callboard_world, "plain/a", Task("go", budgets=scopes))
    assert caught.value.cause_code == "input"
    assert model.calls == 0


@pytest.mark.parametrize("more", [{}, {"Cb-Timer": "nightly"}, {"Cb-Chain": "run-victim/1@1"}])
async def test_headers_on_an_ask_are_no_part_of_a_run(callboard_world: World, more: dict[str, str]) -> None:
    model = Scripted([Say(text="fine", always=True)])

    class Plain(Agent, name="plain", model=model):
        """You are plain."""

    await callboard_world.start(Plain)
    body = msgspec.json.encode(Task("go", budgets=("run/victim/1",)))
    asked = {"Cb-Type": "Task"} | more
    refused = await callboard_world.bus.request("cb.ask.plain.a", body, headers=asked, timeout_s=20)
    assert b"no part of that run" in refused.data
    assert model.calls == 0
    # the control: turns of hosts ask elsewhere, where others may not
    answer = await callboard_world.bus.request("cb.call.plain.a", body, headers=asked, timeout_s=20)
    assert ("Cb-Error" in (answer.headers or {})) is ("Cb-Chain" not in more)


async def test_a_scope_of_the_caller_s_own_is_no_way_around_the_limits(
    callboard_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_AGENTS__BUDGETS__RUN__TOKENS", "0")
    model = Scripted([Say(text="never", always=True)])

    class Limited(Agent, name="limited", model=model):
        """You may spend nothing."""

    await callboard_world.start(Limited)
    for scopes in ((), ("free/of/limits",)):
        found = await ask(callboard_world, "limited/a", Task("go", budgets=scopes))
        assert (found.status, model.calls) == ("budget", 0)


class Forger(Actor):
    """Says to a budget what it likes, as one who may mail to it could."""

    companions = (Budget,)

    @on
    async def say(self, m: dict[str, Any]) -> Any:  # noqa: ANN401 - a budget's answer
        kinds: dict[str, Any] = {"reserve": Reserve, "settle": Settle, "set": SetBudget}
        return await self.ask("budget/pot", msgspec.convert(m["m"], kinds[m["kind"]], strict=False))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("settle", {"id": "x", "spent": {"tokens": -1000}}),
        ("settle", {"id": "x", "spent": {"usd": "-5"}}),
        ("settle", {"id": "x", "spent": {"usd": "NaN"}}),
        ("settle", {"id": "x", "spent": {"usd": "Infinity"}}),
        ("settle", {"id": "x", "spent": {"seconds": -1}}),
        ("settle", {"id": "x", "spent": {"seconds": 1e308}}),
        ("reserve", {"id": "x", "step": "s", "least": {}, "want": {"tokens": -1000}}),
        ("reserve", {"id": "x", "step": "s", "least": {"usd": "NaN"}, "want": {}}),
        ("reserve", {"id": "x", "step": "s", "least": {}, "want": {}, "lasts_s": 1e300}),
        ("reserve", {"id": "x", "step": "s", "least": {}, "want": {}, "lasts_s": -1}),
        ("set", {"tokens": -1}),
        ("set", {"usd": "NaN"}),
        ("set", {"usd": "-Infinity"}),
        ("set", {"warn": 2}),
        ("set", {"parent": "pot"}),
    ],
)
async def test_a_budget_is_not_filled_up_by_words(callboard_world: World, kind: str, message: dict[str, Any]) -> None:
    world = callboard_world
    await world.start(Forger)
    budget = world.client.actor("budget/pot")
    _ = await budget.ask(SetBudget(tokens=100, usd=Decimal(1)))
    _ = await budget.ask(Settle(id="real", spent=Amount(tokens=60, usd=Decimal("0.5"))))
    with pytest.raises(AskFailedError):
        await world.client.actor("forger/a").ask({"kind": kind, "m": message}, type="Say")
    view = msgspec.convert(await budget.ask(ShowBudget()), BudgetView)
    assert (view.spent.tokens, view.spent.usd, view.reserved.tokens) == (60, Decimal("0.5"), 0)
    over = Reserve(id="y", step="t", least=Amount(tokens=41), want=Amount(tokens=41))
    assert not msgspec.convert(await budget.ask(over), Grant).ok


async def test_a_model_that_has_used_less_than_nothing_refunds_nothing(callboard_world: World) -> None:
    model = Scripted([Say(text="a", usage=Usage(input_tokens=-10_000), always=True)])

    class Cheap(Agent, name="cheap", model=model, budget={"tokens_per_day": 100_000}):
        """You are cheap."""

    await callboard_world.start(Cheap)
    budget = callboard_world.client.actor("budget/agent-class/cheap/" + f"{callboard_world.clock.now():%Y-%m-%d}")
    for _ in range(2):
        assert (await ask(callboard_world, "cheap/a", "go")).status == "done"
    view = msgspec.convert(await budget.ask(ShowBudget()), BudgetView)
    assert view.spent.tokens >= 0


# --- what is kept


async def test_long_tasks_do_not_fill_the_memory_until_none_is_taken(callboard_world: World) -> None:
    model = Scripted([Say(text="b" * 200_000, always=True)], facts=ModelFacts(context_tokens=10_000_000))

    class Elephant(Agent, name="elephant", model=model, memory=1000):
        """You forget nothing."""

    await callboard_world.start(Elephant)
    for _ in range(10):
        assert (await ask(callboard_world, "elephant/a", "a" * 200_000)).is_done
    kept = model.prompts[-1].messages[1:-1]
    assert 2 < len(kept) < 18
    assert len(msgspec.json.encode(kept)) <= window.KEPT_BYTES


def test_a_conversation_stays_within_its_bytes() -> None:
    large = ToolCall(id="x" * 100, name="t", arguments='"' + "y" * 3_000_000 + '"')
    said = [user("go"), *[Message(role="assistant", text="é" * 30_000, tool_calls=(large,))] * 30]
    kept = window.remember([], said, limit=1000)
    assert [message.role for message in kept] == ["user", "assistant"]
    assert len(msgspec.json.encode(kept)) < window.KEPT_BYTES
    again = window.remember(kept, [user("b" * 5_000_000)], limit=1000)
    assert len(again) == 3


# --- tools


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Beside(BaseException):
    pass


@tool
def circle() -> list[Any]:
    """Return what holds itself."""
    found: list[Any] = []
    found.append(found)
    return found


@tool
def formless() -> object:
    """Return what has no JSON form."""
    return object()


@tool
def odd() -> str:
    """Raise what cannot be shown."""
    raise OddError


@tool
async def beside() -> str:
    """Raise what is no Exception."""
    raise Beside


@tool
async def generator_exit() -> str:
    """Raise what generators are closed with."""
    raise GeneratorExit


@tool
def stop_iteration() -> str:
    """Raise what iterators end with."""
    raise StopIteration


@tool
def out_of_memory() -> str:
    """Raise what comes when memory ends."""
    raise MemoryError


@tool
def letters() -> str:
    """Return letters that are none."""
    return "a\x00b\ud800c"


@tool
def infinite(x: float, n: int = 0) -> float:
    """Multiply."""
    return x * 1e308 * 10 + n


ODD_TOOLS = [circle, formless, odd, beside, generator_exit, stop_iteration, out_of_memory, letters, infinite]


async def test_whatever_a_tool_does_the_model_is_told(callboard_world: World) -> None:
    calls = [call(each.name, id_=each.name) for each in ODD_TOOLS[:-1]]
    calls.append(call("infinite", '{"x":5}', "infinite"))
    model = Scripted([Say(tool_calls=tuple(calls)), Say(text="done")])

    class Brave(Agent, name="brave", model=model, tools=ODD_TOOLS):
        """You try everything."""

    await callboard_world.start(Brave)
    assert (await ask(callboard_world, "brave/a", "go")).status == "done"
    told = dict(zip((each.name for each in ODD_TOOLS), results(model), strict=True))
    assert "no JSON form" in told["circle"]
    assert "no JSON form" in told["formless"]
    assert "cannot be shown: RuntimeError" in told["odd"]
    assert "no Exception" in told["beside"]
    assert "no Exception" in told["generator_exit"]
    assert "StopIteration" in told["stop_iteration"]
    assert "MemoryError" in told["out_of_memory"]
    assert told["letters"] == "a\x00b?c"
    assert "no JSON form" in told["infinite"]


async def test_tools_that_never_return_leave_the_others_their_threads(callboard_world: World) -> None:
    gate = threading.Event()

    @made(name="hang", timeout_s=0.05)
    def hang(n: int) -> str:
        """Hang."""
        gate.wait(60)
        return "late"

    calls = tuple(call("hang", f'{{"n":{n}}}', f"c{n}") for n in range(40))
    model = Scripted([Say(tool_calls=calls), Say(text="done")])

    class Stuck(Agent, name="stuck", model=model, tools=[hang]):
        """You are stuck."""

    await callboard_world.start(Stuck)
    try:
        asking = asyncio.create_task(ask(callboard_world, "stuck/a", "go"))
        await asyncio.wait_for(asking, 60)
        # what everything else in the process waits for
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 10) == 7
    finally:
        gate.set()


@made(name="pay", needs_approval=True, action="spend")
def pay(amount: Decimal, note: str = "") -> str:
    """Pay."""
    return f"paid {amount}"


async def test_what_cannot_be_shown_to_a_person_is_not_asked(callboard_world: World) -> None:
    long = call("pay", msgspec.json.encode({"amount": "1", "note": "x" * 100_000}).decode(), "b")
    model = Scripted([Say(tool_calls=(long,)), Say(text="done")])

    class Payer(Agent, name="payer", model=model, tools=[pay], level="elevated"):
        """You pay."""

    await callboard_world.start(Payer)
    assert (await ask(callboard_world, "payer/a", "go")).is_done
    assert "a person is shown at most" in results(model)[0]
    assert await approvals.ls(callboard_world.bus, status=()) == []


@pytest.mark.parametrize(
    ("written", "exact"),
    [("1e400", "1E+400"), ("0.10000000000000000000001", "0.10000000000000000000001"), ('1, "amount": 2', "2")],
)
async def test_a_person_is_shown_what_is_done_and_not_what_was_written(
    callboard_world: World, written: str, exact: str
) -> None:
    model = Scripted([Say(tool_calls=(call("pay", f'{{"amount": {written}}}', "a"),)), Say(text="done")])

    class Exact(Agent, name="exact", model=model, tools=[pay], level="elevated"):
        """You pay to the last digit."""

    await callboard_world.start(Exact)
    asking = asyncio.create_task(ask(callboard_world, "exact/a", "go"))
    found: list[approvals.Approval] = []

    async def asked() -> bool:
        found[:] = await approvals.ls(callboard_world.bus)
        return bool(found)

    await eventually(asked)
    (one,) = found
    assert one.entry.payload == {"tool": "pay", "arguments": {"amount": exact}}
    await approvals.grant(callboard_world.bus, one.id, by="ann", hash=one.entry.hash)
    assert (await asking).is_done
    assert results(model) == [f"paid {exact}"]


@pytest.mark.parametrize("run", ["a.>", "*", "x" * 300, "a b", "\u202e", "a/b/c", "\n", "☃" * 40, ".."])
async def test_any_name_of_a_run_is_a_name_or_refused(callboard_world: World, run: str) -> None:
    model = Scripted([Say(text="done", always=True)])

    class Namer(Agent, name="namer", model=model):
        """You are named."""

    await callboard_world.start(Namer)
    try:
        found = await ask(callboard_world, "namer/a", Task("go", run=run))
    except InvalidNameError:
        pass
    else:
        assert found.status == "done"
    assert (await ask(callboard_world, "namer/a", "again")).status == "done"


async def test_ten_megabytes_of_context_are_refused_in_words(callboard_world: World) -> None:
    model = Scripted([Say(text="done", always=True)])

    class Reader(Agent, name="reader", model=model):
        """You read."""

    await callboard_world.start(Reader)
    with pytest.raises(AskFailedError) as caught:
        await ask(callboard_world, "reader/a", Task("go", context={"book": "x" * 10_000_000}))
    assert caught.value.cause_code == "context_too_long"
    assert (await ask(callboard_world, "reader/a", "again")).status == "done"


async def test_two_budgets_are_not_made_each_other_s_parents(callboard_world: World) -> None:
    await callboard_world.start(Budget)
    budget = callboard_world.client.actor
    _ = await budget("budget/one").ask(SetBudget(parent="two"))
    _ = await budget("budget/two").ask(SetBudget(parent="three"))
    with pytest.raises(AskFailedError, match="three -> one -> two -> three"):
        await budget("budget/three").ask(SetBudget(parent="one"))
