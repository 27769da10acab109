"""What agents there are: those of folders, files, modules and installed packages, with what their classes say."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from callboard.agents.agent import Agent
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.loader import INSTALLED, load_parts

__all__ = ["INSTALLED", "Catalog", "Entry", "Skipped", "describe", "read"]


class Entry(Struct, frozen=True, kw_only=True):
    """One type of agent or actor.

    Attributes:
        name: Its type, the first half of addresses.
        kind: Whether it has a model.
        about: First paragraph of its docstring.
        models: Who answers, in the order in which they are asked; empty for the default of the settings.
        tools: Names of its tools that its permissions let it call.
        denied: Names of those that they do not.
        output: Name of the type of its answers, "" for text.
        capabilities: What it may be asked for by name.
        messages: What it handles: name on the wire, and the first paragraph of its handler's docstring.
        source: Where it was found: a file, a module or an entry point.
    """

    name: str
    kind: Literal["agent", "actor"]
    about: str = ""
    models: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    output: str = ""
    capabilities: tuple[str, ...] = ()
    messages: dict[str, str] = {}
    source: str = ""


class Skipped(Struct, frozen=True, kw_only=True):
    """A file or an entry point that could not be used, and why."""

    name: str
    code: str
    message: str


class Catalog(Struct, frozen=True, kw_only=True):
    """All that was found, by name, and what could not be used."""

    entries: tuple[Entry, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def read(targets: Sequence[str]) -> Catalog:
    """Load what ``targets`` name and return what it is. The code of the modules runs.

    Args:
        targets: As for ``callboard.runtime.loader.load_parts``: modules, files, folders, ``@installed``.

    Raises:
        CallboardError: As ``load_parts``: a broken file of a folder is no error, a broken file that was named is.
    """
    parts = load_parts(targets)
    entries = [describe(actor, source=parts.sources[f"actor {actor.actor_name}"]) for actor in parts.actors]
    skipped = [Skipped(name=each.name, code=each.error.code, message=str(each.error)) for each in parts.skipped]
    return Catalog(entries=tuple(sorted(entries, key=lambda entry: entry.name)), skipped=tuple(skipped))


def describe(actor: type[Actor], *, source: str = "") -> Entry:
    """Return what a class says of itself.

    Raises:
        ActorDefinitionError: If it cannot be used.
    """
    kind = ActorType.of(actor)
    found = Entry(
        name=kind.name,
        kind="actor",
        about=_first(inspect.getdoc(actor) or ""),
        capabilities=tuple(kind.capabilities),
        messages={name: _line(handler.doc) for name, handler in kind.handlers.items()},
        source=source,
    )
    if not issubclass(actor, Agent):
        return found
    own = actor.profile
    permitted = [tool.name for tool in own.permissions.visible(own.tools)]
    return replace(
        found,
        kind="agent",
        about=_first(actor.instructions),
        models=tuple(each if isinstance(each, str) else each.name for each in own.models),
        tools=tuple(permitted),
        denied=tuple(tool.name for tool in own.tools if tool.name not in permitted),
        output="" if own.output is None else getattr(own.output, "__name__", str(own.output)),
    )


def _first(text: str) -> str:
    """Return the first paragraph of a text, on one line."""
    return _line(text.strip().partition("\n\n")[0])


def _line(text: str) -> str:
    return " ".join(text.split())
