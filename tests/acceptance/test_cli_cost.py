"""Costs and budgets from the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.console import Background, Console, eventually

THINKER = """
from decimal import Decimal
from msgspec import Struct
from callboard import Actor, on
from callboard.agents.budget import Budget
from callboard.agents.errors import BudgetExceededError
from callboard.agents.llm.base import Prompt, Usage, user
from callboard.agents.llm.call import call_model
from callboard.agents.llm.scripted import Say, Scripted

FINE = Say(text="fine", usage=Usage(input_tokens=40, output_tokens=2), cost_usd=Decimal("0.1"), always=True)
MODEL = Scripted([FINE], usd_per_token=Decimal("0.001"))

class Ask(Struct):
    text: str

class Thinker(Actor):
    companions = (Budget,)

    @on
    async def think(self, m: Ask) -> str:
        prompt = Prompt(messages=(user(m.text),), max_output_tokens=10)
        try:
            return (await call_model(self, MODEL, prompt, run="r1", budgets=("run/r1",))).text
        except BudgetExceededError as error:
            return str(error)
"""


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("cost"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def dev(console: Console) -> Background:
    (console.folder / "thinker.py").write_text(THINKER)
    return console.dev("thinker.py")


def ask(console: Console) -> str:
    run = console.run("ask", "thinker/1", "Ask", '{"text": "hello"}', "--json")
    assert run.status == 0, run.err
    return str(run.json["value"])


def test_a_budget_is_set_spent_shown_and_holds(console: Console, dev: Background) -> None:
    assert console.run("budget", "ls").err.strip() == "no budget was set or used"
    assert console.run("cost").err.strip() == "no call of a model is on record"
    done = console.run("budget", "set", "run/r1", "--usd", "0.25", "--parent", "tenant/acme", "--json")
    assert (done.status, done.json["limits"]["usd"]) == (0, "0.25")
    assert [ask(console), ask(console), ask(console)] == ["fine", "fine", "fine"]
    assert "budget run/r1 has $0 of $0.25 left" in ask(console)

    shown = console.run("budget", "show", "run/r1", "--json").json
    assert (shown["spent"]["usd"], shown["calls"], shown["refused"], shown["level"]) == ("0.3", 3, 1, "spent")
    listed = console.run("budget", "ls").out
    assert "0.3 of 0.25" in listed
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["run/r1", "tenant/acme"]

    console.run("budget", "set", "run/r1", "--usd", "none")
    assert ask(console) == "fine"


def test_the_budget_of_an_agents_days_names_the_present_one(console: Console, dev: Background) -> None:
    misspelt = console.run("budget", "set", "agent-day/thinkr", "--usd", "1", "--json")
    assert (misspelt.status, misspelt.json["limits"]["usd"]) == (0, "1")
    assert "; did you mean agent-day/thinker?" in misspelt.err
    done = console.run("budget", "set", "agent-day/thinker", "--usd", "2")
    assert (done.status, done.err) == (0, "")
    eventually(lambda: "today" in console.run("budget", "show", "agent-day/thinker", "--json").json)
    shown = console.run("budget", "show", "agent-day/thinker")
    kind, day = (line.split()[0] for line in shown.out.splitlines()[1:])
    assert (kind, day.rpartition("/")[0]) == ("agent-day/thinker", "agent-day/thinker")
    assert f"today's scope is {day}" in shown.err


def test_costs_are_added_up(console: Console, dev: Background) -> None:
    by_run = console.run("cost", "--by", "run", "--json").json
    calls = by_run["total"]["calls"]
    assert (by_run["rows"][0]["name"], by_run["total"]["usd"]) == ("r1", f"0.{calls}")
    assert by_run["total"]["input_tokens"] == 40 * calls
    assert by_run["total"]["requests"] == calls
    table = console.run("cost", "--by", "model").out
    assert table.splitlines()[0].split()[0] == "MODEL"
    assert "scripted/test" in table
    assert console.run("cost", "--run", "other", "--json").json["rows"] == []
    assert console.run("cost", "--since", "1h", "--json").json["total"]["calls"] == calls


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["budget", "set", "run/r1"], 2, "name a limit"),
        (["budget", "set", "run//", "--usd", "1"], 2, "no scope of a budget"),
        (["budget", "set", "run/r1", "--usd", "-1"], 2, "below nothing"),
        (["budget", "set", "run/r1", "--usd", "much"], 2, "is no number"),
        (["budget", "set", "run/r1", "--usd", "NaN"], 2, "is no amount"),
        (["budget", "set", "run/r1", "--tokens", "1.5"], 2, "is no number"),
        (["budget", "set", "run/r1", "--parent", "run/r1"], 2, "its own parent"),
        (["budget", "show", "run/never"], 5, "was never set or used"),
        (["cost", "--by", "mood"], 2, "mood"),
    ],
)
def test_bad_input_is_said_with_a_status(
    console: Console, dev: Background, args: list[str], status: int, said: str
) -> None:
    run = console.run(*args)
    assert run.status == status, run.err
    assert said in run.err
