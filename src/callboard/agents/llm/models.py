"""From the name of a model to the model: ``openai/gpt-5``, ``ollama/llama3.2``, ``mine/anything``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final

from callboard.agents.errors import ModelSetupError
from callboard.agents.llm.base import Model
from callboard.agents.settings import AgentSettings

GROUP: Final = "callboard.models"
# The model of whoever chose none: it needs no key and no network.
FALLBACK: Final = "extractive"

Factory = Callable[[str, AgentSettings], Model]
"""Makes the model of a whole name, ``prefix/rest``, and may refuse with ``ModelSetupError``. It makes no request."""

_registered: dict[str, Factory] = {}
_made: dict[str, tuple[AgentSettings, Model]] = {}


def resolve(name: str = "", *, settings: AgentSettings | None = None) -> Model:
    """Return the model of a name. Makes no request and imports no client library.

    Without ``settings`` the process's own are read, and the same name gives the same object as long as they say the
    same, so that its connections are shared.

    Args:
        name: ``provider/model``; "" takes ``agents.model`` of the settings, else the extractive model.
        settings: The section ``agents`` in place of the process's own.

    Raises:
        ModelSetupError: If the provider is unknown, or lacks a key, an address or an extra; says what there is.
        ConfigError: If the process's settings are wrong.
    """
    if settings is not None:
        return _make(name or settings.model or FALLBACK, settings)
    settings = AgentSettings.load()
    name = name or settings.model or FALLBACK
    made = _made.get(name)
    if made is None or made[0] != settings:
        made = _made[name] = (settings, _make(name, settings))
    return made[1]


def register(prefix: str, factory: Factory) -> None:
    """Let names that begin with ``prefix/``, and ``prefix`` itself, be made by ``factory``; a later one wins.

    A package offers the same by an entry point of the group ``callboard.models``: the prefix, and the factory.
    """
    _registered[prefix] = factory
    for name in [name for name in _made if name.partition("/")[0] == prefix]:
        del _made[name]


def providers(settings: AgentSettings) -> list[str]:
    """Return the prefixes that names may have here, sorted."""
    return sorted({*_BUILT_IN, *settings.providers, *_registered, *entry_points(group=GROUP).names})


def _make(name: str, settings: AgentSettings) -> Model:
    return _factory(name, settings)(name, settings)


def _factory(name: str, settings: AgentSettings) -> Factory:
    """Return who makes the model: code that was registered, then settings of a kind, then what is built in."""
    prefix = name.partition("/")[0]
    if prefix in _registered:
        return _registered[prefix]
    for point in entry_points(group=GROUP, name=prefix):
        found: Factory = point.load()
        return found
    provider = settings.providers.get(prefix)
    if prefix in _BUILT_IN and (provider is None or "kind" not in provider.model_fields_set):
        return _BUILT_IN[prefix]
    if provider is not None:
        return _KINDS[provider.kind]
    raise _unknown(name, settings)


def _unknown(name: str, settings: AgentSettings) -> ModelSetupError:
    prefix, slash, _ = name.partition("/")
    known = ", ".join(providers(settings))
    hint = f"set agents.providers.{prefix or 'name'}.base_url in callboard.yaml for a provider of your own"
    wrong = f"there is no provider {prefix!r}" if slash else "names are written provider/model"
    return ModelSetupError(f"model {name!r}: {wrong}; providers here are {known}; {hint}", model=name)


# Each imports its adapter when it is asked for one.


def _openai(name: str, settings: AgentSettings) -> Model:
    from callboard.agents.llm.openai import OpenAiModel  # noqa: PLC0415

    return OpenAiModel(name, settings=settings)


def _litellm(name: str, settings: AgentSettings) -> Model:
    from callboard.agents.llm.litellm import LitellmModel  # noqa: PLC0415

    return LitellmModel(name, settings=settings)


def _scripted(name: str, settings: AgentSettings) -> Model:  # noqa: ARG001 - a Factory
    from callboard.agents.llm import scripted  # noqa: PLC0415

    return scripted.load(name.partition("/")[2])


def _extractive(name: str, settings: AgentSettings) -> Model:  # noqa: ARG001 - a Factory
    from callboard.agents.llm.extractive import Extractive  # noqa: PLC0415

    return Extractive()


_KINDS: Final[dict[str, Factory]] = {"openai": _openai, "litellm": _litellm}
_BUILT_IN: Final[dict[str, Factory]] = {
    "openai": _openai,
    "ollama": _openai,
    "anthropic": _litellm,
    "litellm": _litellm,
    "scripted": _scripted,
    "extractive": _extractive,
}
