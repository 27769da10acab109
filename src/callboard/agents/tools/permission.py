"""Who may call which tool: the denied list, then the allowed list, then the level, then no."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from msgspec import Struct

from callboard.agents.errors import ToolDefinitionError, ToolDeniedError
from callboard.agents.tools.base import Action, Tool

Level = Literal["sandboxed", "restricted", "standard", "elevated", "custom"]

_READING = ("general:read", "files:read", "git:read", "search:read", "memory:read")
LEVELS: Mapping[Level, tuple[str, ...]] = MappingProxyType(
    {
        # nothing but what happens inside the sandbox, whatever its category: see ``Permissions.rule``
        "sandboxed": ("*:*",),
        "restricted": _READING,
        "standard": (
            *_READING,
            "general:write",
            "files:write",
            "git:write",
            "memory:write",
            "http:network",
            "python:execute",
        ),
        "elevated": ("*:*",),
        "custom": (),
    }
)
"""What each level lets through, as ``category:action``."""

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_GROUP = re.compile(r"(\*|[a-z0-9_-]{1,64}):(\*|[a-z]+)")


class Permissions(Struct, frozen=True, kw_only=True):
    """What an agent may call.

    The first that speaks of a tool decides: ``denied`` refuses it, ``allowed`` lets it through, the level lets it
    through. A tool of which none speaks is refused.

    The lists hold names of tools, and groups as ``category:action``, either of them ``*``: ``"http:*"``, ``"*:spend"``.

    Attributes:
        level: ``sandboxed``: only tools that run wholly inside the agent's sandbox. ``restricted``: reading of files,
            git, search and memory, and the agent's own tools that read. ``standard``: writing of these too, fetching
            pages, and code in the sandbox. ``elevated``: everything. ``custom``: nothing but the allowed list.
        allowed: What is let through beside the level.
        denied: What is refused whatever else says.
    """

    level: Level = "standard"
    allowed: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse entries that could never match: a misspelt denial would let a tool through.

        Raises:
            ToolDefinitionError: Naming the entry.
        """
        if self.level not in LEVELS:
            message = f"there is no permission level {self.level!r}: take one of {', '.join(LEVELS)}"
            raise ToolDefinitionError(message)
        for entry in (*self.allowed, *self.denied):
            _check_entry(entry)

    def rule(self, tool: Tool) -> str:
        """Return what refuses a tool, as in ``ToolDeniedError.rule``; "" if nothing does."""
        if _matches(self.denied, tool):
            return "denied"
        if _matches(self.allowed, tool):
            return ""
        if self.level == "custom":
            return "not_allowed"
        if self.level == "sandboxed" and tool.trust != "sandboxed":
            return "level"
        return "" if _matches(LEVELS[self.level], tool) else "level"

    def visible(self, tools: Iterable[Tool]) -> tuple[Tool, ...]:
        """Return the tools that a model is told of: those that it may call."""
        return tuple(tool for tool in tools if not self.rule(tool))

    def check(self, tool: Tool) -> None:
        """Return if a tool may be called.

        Raises:
            ToolDeniedError: If not.
        """
        rule = self.rule(tool)
        if rule:
            message = f"the tool {tool.name} ({tool.category}, {tool.action}) is not permitted here: {_WHY[rule]}"
            raise ToolDeniedError(message.format(level=self.level), tool=tool.name, rule=rule)


_WHY = {
    "denied": "it is on the denied list",
    "not_allowed": "it is not on the allowed list, and the level custom permits nothing else",
    "level": "the level {level} does not include it",
}


def _check_entry(entry: str) -> None:
    group = _GROUP.fullmatch(entry)
    if group is not None and group[2] not in ("*", *get_args(Action)):
        message = (
            f"permission {entry!r}: there is no action {group[2]!r}; take one of {', '.join(get_args(Action))} or *"
        )
        raise ToolDefinitionError(message)
    if group is None and not _NAME.fullmatch(entry):
        message = f"permission {entry!r} is neither the name of a tool nor category:action, such as http:* or *:spend"
        raise ToolDefinitionError(message)


def _matches(entries: Iterable[str], tool: Tool) -> bool:
    groups = {f"{c}:{a}" for c in (tool.category, "*") for a in (tool.action, "*")}
    return any(entry == tool.name or entry in groups for entry in entries)
