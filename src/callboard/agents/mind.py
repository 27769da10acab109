"""What an agent thinks with: its models and its sandbox, made once for each event loop of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from msgspec import Struct

from callboard.agents.llm import models
from callboard.agents.llm.base import Model
from callboard.agents.sandbox import choose
from callboard.agents.sandbox.base import Sandbox
from callboard.agents.settings import AgentSettings
from callboard.runtime import events, logs

T = TypeVar("T")

NO_MODEL = (
    "no model is configured, so the extractive one answered, which only repeats what it is given: set agents.model in "
    "callboard.yaml, or CALLBOARD_AGENTS__MODEL, or model= of the agent"
)
_log = logs.get_logger(__name__)
# by event loop: connections belong to one
_made: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, Any]] = WeakKeyDictionary()


class Mind(Struct, frozen=True):
    """A model, and what is to be said about the choice; "" for nothing."""

    model: Model
    note: str = ""


def of(names: tuple[str | Model, ...]) -> Mind:
    """Return the model of an agent: the only one, or one that asks each when the one before it fails.

    The same names give the same object, so that all agents of a process share its connections. Costs nothing but for
    the first time, which reads the settings.

    Raises:
        ModelSetupError: If a name is unknown, or its provider lacks a key; says what to do.
        ConfigError: If the settings are wrong.
    """
    found: Mind = _once(("mind", names), lambda: _mind(names))
    return found


def sandbox_of(given: str | Sandbox | None) -> Sandbox:
    """Return the sandbox of an agent; None takes that of the settings.

    Raises:
        SandboxMissingError: If there is none of that name.
    """
    if given is not None and not isinstance(given, str):
        return given
    name = given or ""
    found: Sandbox = _once(("sandbox", name), lambda: choose.choose(name, settings().sandbox))
    return found


def settings() -> AgentSettings:
    """Return the section ``agents`` as it was when this event loop asked for the first time."""
    found: AgentSettings = _once("settings", AgentSettings.load)
    return found


def _mind(names: tuple[str | Model, ...]) -> Mind:
    if not names:
        note = "" if settings().model else NO_MODEL
        if note:
            _log.warning(events.MODEL_DEFAULTED, model=models.FALLBACK, message=note)
        return Mind(models.resolve("", settings=settings()), note)
    found = [models.resolve(each, settings=settings()) if isinstance(each, str) else each for each in names]
    if len(found) == 1:
        return Mind(found[0])
    from callboard.agents.llm.router import Router  # noqa: PLC0415 - for the few that name several

    return Mind(Router(found))


def _once(key: Hashable, make: Any) -> Any:  # noqa: ANN401 - a cache of several things
    known = _made.setdefault(asyncio.get_running_loop(), {})
    try:
        found = known.get(key)
    except TypeError:
        # a model of the user's that cannot be a key
        return make()
    if found is None:
        found = known[key] = make()
    return found
