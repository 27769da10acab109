"""The section ``agents``: where it comes from, what is refused, and that no key of it shows."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from callboard.agents.settings import AgentSettings
from callboard.runtime import config_here
from callboard.runtime.config import Settings
from callboard.runtime.errors import ConfigError

FILE = """
agents:
  model: mine/small
  providers:
    mine:
      base_url: http://models.example:8000/v1
      api_key: ${MINE_KEY:-}
      headers: {X-Team: hush-header}
    far: {kind: litellm, api_key: hush-in-file}
  prices:
    mode: override
    models:
      - {model: mine/small-1.5, input_usd: 0.10, output_usd: "0.20"}
"""


def load(text: str, env: dict[str, str] | None = None, *, folder: Path) -> AgentSettings:
    path = folder / "callboard.yaml"
    path.write_text(text)
    return AgentSettings.of(Settings.load(file=path, env=env or {}))


def test_a_file_sets_providers_and_prices(tmp_path: Path) -> None:
    found = load(FILE, {"MINE_KEY": "hush-1"}, folder=tmp_path)
    assert found.model == "mine/small"
    assert found.providers["mine"].base_url == "http://models.example:8000/v1"
    key = found.providers["mine"].api_key
    assert key is not None
    assert key.get_secret_value() == "hush-1"
    assert found.providers["far"].kind == "litellm"
    assert found.prices.models[0].model == "mine/small-1.5"
    assert found.prices.models[0].output_usd == Decimal("0.20")


def test_the_variables_of_the_providers_count_less_than_ours(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("from-a-file\n")
    env = {
        "OPENAI_API_KEY": "theirs",
        "ANTHROPIC_API_KEY": "theirs",
        "OPENAI_BASE_URL": "",
        "CALLBOARD_AGENTS__PROVIDERS__OPENAI__API_KEY": "ours",
        "CALLBOARD_AGENTS__PROVIDERS__MINE__API_KEY_FILE": str(secret),
    }
    found = AgentSettings.of(Settings.load(file=[], env=env))
    keys = {name: each.api_key.get_secret_value() for name, each in found.providers.items() if each.api_key}
    assert keys == {"openai": "ours", "anthropic": "theirs", "mine": "from-a-file"}
    assert found.providers["openai"].base_url is None


def test_without_any_source_there_are_the_defaults() -> None:
    assert AgentSettings.of(Settings.load(file=[], env={})) == AgentSettings()
    assert AgentSettings.of(Settings()) == AgentSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agents: {modle: a/b}", "agents.modle: unknown key; did you mean agents.model?"),
        ("agents: {providers: {mine: {base_url: models.example}}}", "agents.providers.mine.base_url: must look like"),
        ("agents: {providers: {mine: {base_url: 'http://ann:hush@host/v1'}}}", "agents.providers.mine.base_url: must"),
        ("agents: {providers: {mine: {timeout_s: 0}}}", "agents.providers.mine.timeout_s: must be above 0, is 0"),
        ("agents: {providers: {mine: {kind: other}}}", "agents.providers.mine.kind: must be 'openai' or 'litellm'"),
        ("agents: {providers: {mine: {api_key: {hush: 1}}}}", "agents.providers.mine.api_key: must be text"),
        ("agents: {providers: {mine: {api_key: [hush]}}}", "agents.providers.mine.api_key: must be text"),
        ("agents: {providers: {mine: {headers: {A: [hush]}}}}", "agents.providers.mine.headers.A: must be text"),
        ("agents: {providers: {Mine: {}}}", "agents.providers.Mine"),
        ("agents: {budgets: {warn_share: 0.99}}", "agents.budgets.critical_share: must be at least warn_share"),
        ("agents: {prices: {models: [{model: a/b, input_usd: -1}]}}", "must be at least 0"),
        ("agents: 3", "agents: must be a mapping of settings, is 3"),
        ("agent: {}", "agent: unknown section; did you mean agents?"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, folder=tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_key_shows(tmp_path: Path) -> None:
    path = tmp_path / "callboard.yaml"
    path.write_text(FILE)
    settings = Settings.load(file=path, env={"OPENAI_API_KEY": "hush-2", "MINE_KEY": "hush-1"})
    found = AgentSettings.of(settings)
    shown = AgentSettings.shown(settings)
    for each in (settings, found):
        assert "hush" not in f"{each!r} {each} {each.model_dump()} {shown}"
    lines = {line.key: (line.value, line.origin) for line in shown}
    assert lines["agents.providers.openai.api_key"] == ("********", "env OPENAI_API_KEY")
    assert lines["agents.providers.mine.headers.X-Team"] == ("********", str(path))
    assert lines["agents.model"] == ("mine/small", str(path))
    # negative control: the values are there for who asks for them
    assert found.providers["mine"].headers["X-Team"].get_secret_value() == "hush-header"


def test_a_worker_has_the_settings_that_its_command_line_named() -> None:
    settings = Settings.load(file=[], env={"CALLBOARD_AGENTS__MODEL": "mine/large"})
    assert AgentSettings.load().model == ""
    with config_here.using(settings):
        assert AgentSettings.load().model == "mine/large"
    assert AgentSettings.load().model == ""
