"""What an agent's class statement takes, what it refuses and how, and what the catalog says of it."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from callboard import Actor, Agent, on, tool
from callboard.agents import catalog, scaffold
from callboard.agents.llm.scripted import Scripted
from callboard.agents.profile import Budget
from callboard.agents.tools.permission import Permissions
from callboard.runtime.actor.definition import ActorType, with_companions
from callboard.runtime.errors import ActorDefinitionError, InputError


class Answer(Struct):
    text: str


@tool
def look(path: str) -> str:
    """Look at something.

    Args:
        path: What.
    """
    return path


@tool(action="spend")
def pay(amount: int) -> str:
    """Pay somebody.

    Args:
        amount: How much.
    """
    return str(amount)


def make(**words: Any) -> type[Agent]:  # noqa: ANN401 - keywords of a class statement
    class Made(Agent, name="made", **words):
        """You are made."""

    return Made


def test_a_subclass_takes_over_what_it_does_not_say() -> None:
    class Base(Agent, abstract=True, model="openai/gpt-4o-mini", tools=[look], max_turns=3, budget={"usd": 0.1}):
        """You are the base."""

    class Child(Base, name="child", output=Answer, level="restricted", weight=2):
        pass

    own = Child.profile
    assert (own.models, own.tools, own.max_turns, own.output) == (("openai/gpt-4o-mini",), (look,), 3, Answer)
    assert own.budget == Budget(usd=Decimal("0.1"))
    assert own.permissions == Permissions(level="restricted")
    assert Child.instructions == "You are the base."
    assert Child.actor_options.weight == 2
    assert sorted(ActorType.of(Child).handlers) == ["Task"]


def test_what_an_agent_needs_beside_it_is_hosted_with_it() -> None:
    names = {cls.actor_name for cls in with_companions([make()])}
    assert {"made", "approval", "petition", "budget"} <= names


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"model": ""}, "give model="),
        ({"model": []}, "at least one name"),
        ({"model": 7}, 'give model="openai/'),
        ({"tools": "look"}, "give tools="),
        ({"tools": [1]}, "functions with @tool"),
        ({"tools": [lambda x: x]}, "tool"),
        ({"tools": [look, tool(name="look")(pay.function)]}, "two of its tools are named 'look'"),
        ({"output": object()}, "cannot be asked for"),
        ({"level": "wild"}, "there is no permission level 'wild'"),
        ({"level": "standard", "permissions": Permissions()}, "say the same twice"),
        ({"permissions": "all"}, "give Permissions"),
        ({"max_turns": 0}, "max_turns is 0"),
        ({"max_turns": True}, "max_turns is True"),
        ({"temperature": 3}, "temperature is 3"),
        ({"memory": -1}, "memory is -1"),
        ({"context_tokens": 5}, "context_tokens is 5"),
        ({"budget": {"dollars": 3}}, "budget: .*unknown field `dollars`"),
        ({"budget": {"usd": -1}}, "usd is -1"),
        ({"budget": {"usd": "much"}}, "budget: "),
        ({"modle": "openai/x"}, "has no option modle: there are model, tools"),
        ({"capabilities": "estimate"}, "give a list of names"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(words: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said) as caught:
        make(**words)
    assert isinstance(caught.value, ActorDefinitionError)


def test_an_agent_without_instructions_or_with_a_foreign_state_is_refused() -> None:
    with pytest.raises(ActorDefinitionError, match="has no instructions"):

        class Mute(Agent, name="mute"):
            pass

    with pytest.raises(ActorDefinitionError, match=r"must extend Agent\.State"):

        class Stranger(Agent, name="stranger"):
            """You are a stranger."""

            class State(Struct):
                x: int = 0


def test_the_catalog_says_what_a_class_says() -> None:
    class Poll(Struct):
        text: str

    class Shown(Agent, name="shown", model=["openai/a", Scripted(name="scripted/b")], tools=[look, pay], output=Answer):
        """You are shown.

        And more.
        """

        @on
        async def poll(self, m: Poll) -> str:
            """Answer a poll."""
            return m.text

    class Plain(Actor, name="plain"):
        """Counts."""

        @on
        def poll(self, m: Poll) -> None:
            """Count a poll."""

    found = catalog.describe(Shown, source="here.py")
    assert (found.kind, found.about, found.source) == ("agent", "You are shown.", "here.py")
    assert (found.models, found.tools, found.denied) == (("openai/a", "scripted/b"), ("look",), ("pay",))
    assert found.output == "Answer"
    assert found.messages["Poll"] == "Answer a poll."
    plain = catalog.describe(Plain)
    assert (plain.kind, plain.about, plain.messages) == ("actor", "Counts.", {"Poll": "Count a poll."})


def test_a_new_agent_has_a_test_that_passes_without_a_key(tmp_path: Path) -> None:
    made = scaffold.write("paint-estimator", tmp_path)
    assert len(made.agent.read_text().strip().splitlines()) < 32
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", made.test.name]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    found = catalog.read([str(made.agent)])
    assert [entry.name for entry in found.entries] == ["paint-estimator"]


def test_a_new_agent_leaves_what_exists_and_refuses_names_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    made = scaffold.write("mine", tmp_path)
    assert made.kept == (tmp_path / "mine.py",)
    assert (tmp_path / "mine.py").read_text() == "x = 1\n"
    for name in ("Mine", "1st", "class", "a b", ""):
        with pytest.raises(InputError):
            scaffold.write(name, tmp_path)
