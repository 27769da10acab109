"""From names to models."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from callboard.agents.errors import ModelSetupError
from callboard.agents.llm import models
from callboard.agents.llm.base import Model
from callboard.agents.llm.extractive import Extractive
from callboard.agents.llm.models import register, resolve
from callboard.agents.llm.openai import OpenAiModel
from callboard.agents.settings import AgentSettings
from callboard.runtime import config_here
from callboard.runtime.config import Settings


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = dict(models._registered)
    yield
    models._registered.clear()
    models._registered.update(before)
    models._made.clear()


def settings(**given: object) -> AgentSettings:
    return AgentSettings.model_validate(given)


def own(name: str, chosen: AgentSettings) -> Model:
    return Extractive()


def test_no_name_takes_the_chosen_model_else_one_that_needs_nothing() -> None:
    assert resolve(settings=settings()).name == "extractive"
    assert resolve(settings=settings(model="ollama/llama3.2")).name == "ollama/llama3.2"


def test_a_provider_of_the_settings_is_found() -> None:
    found = resolve("mine/some/model:7b", settings=settings(providers={"mine": {"base_url": "http://host:8000/v1"}}))
    assert isinstance(found, OpenAiModel)
    assert found.name == "mine/some/model:7b"


def test_ollama_needs_no_key_and_costs_nothing() -> None:
    found = resolve("ollama/llama3.2", settings=settings())
    assert found.facts.is_local
    assert found.facts.has_schema


def test_what_is_set_counts_before_what_is_known() -> None:
    given = {"base_url": "http://host:8000/v1", "context_tokens": 9, "has_tools": False, "is_local": True}
    facts = resolve("openai/gpt-4o", settings=settings(providers={"openai": given})).facts
    assert (facts.context_tokens, facts.max_output_tokens) == (9, 16_384)
    assert (facts.has_tools, facts.has_schema, facts.is_local) == (False, True, True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-5", "names are written provider/model"),
        (
            "nobody/model",
            "there is no provider 'nobody'; providers here are anthropic, empty, extractive, litellm, mine",
        ),
        ("mine/", "names no model"),
        ("/x", "there is no provider ''"),
        ("openai/gpt-5", "OPENAI_API_KEY"),
        ("empty/x", "set agents.providers.empty.base_url"),
        ("openai", "names no model"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_what_there_is(name: str, words: str) -> None:
    given = settings(providers={"mine": {"base_url": "http://host/v1"}, "empty": {}})
    with pytest.raises(ModelSetupError) as caught:
        resolve(name, settings=given)
    assert words in str(caught.value)
    assert caught.value.model == name


def test_a_prefix_can_be_registered_over_any_other() -> None:
    register("openai", own)
    assert isinstance(resolve("openai/anything", settings=settings()), Extractive)
    assert "openai" in models.providers(settings())


def test_a_package_offers_a_prefix_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", f"{__name__}:own", models.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: own)
    monkeypatch.setattr(models, "entry_points", lambda **what: EntryPoints([point]).select(**what))
    assert isinstance(resolve("theirs/anything", settings=settings()), Extractive)
    assert "theirs" in models.providers(settings())


def test_the_same_name_is_the_same_object_as_long_as_the_settings_are_the_same() -> None:
    env = {"CALLBOARD_AGENTS__PROVIDERS__MINE__BASE_URL": "http://host/v1"}
    with config_here.using(Settings.load(file=[], env=env)):
        first = resolve("mine/x")
        assert resolve("mine/x") is first
        assert resolve("mine/y") is not first
    with config_here.using(Settings.load(file=[], env=env | {"CALLBOARD_AGENTS__PROVIDERS__MINE__TIMEOUT_S": "5"})):
        assert resolve("mine/x") is not first
