"""``@tool``: a plain function becomes one that a model may call."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, overload

from msgspec.structs import replace

from callboard.agents.errors import ToolDefinitionError
from callboard.agents.tools.base import Action, Tool, Trust
from callboard.agents.tools.pooled import capability_of
from callboard.agents.tools.schema import described, shape_of
from callboard.runtime.capability import Capability

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
MAX_TIMEOUT_S = 86_400.0


@overload
def tool(function: Callable[..., Any] | Capability[..., Any], /) -> Tool: ...


@overload
def tool(
    function: None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    category: str = "general",
    action: Action = "read",
    repeatable: bool | None = None,
    timeout_s: float = 60.0,
    pool: str = "",
    needs_approval: bool = False,
    trust: Trust = "trusted",
) -> Callable[[Callable[..., Any] | Capability[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | Capability[..., Any] | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    category: str = "general",
    action: Action = "read",
    repeatable: bool | None = None,
    timeout_s: float = 60.0,
    pool: str = "",
    needs_approval: bool = False,
    trust: Trust = "trusted",
) -> Any:
    """Make a function a tool. Calling the tool calls the function, so it serves as a plain function as well.

    The schema comes from the type hints, the descriptions from the docstring: what stands before its first section for
    the tool, ``Args:`` for the parameters. A parameter of type ``ToolContext`` is filled in and hidden from models.

    Args:
        function: An async function, a plain one (it runs in a thread), or a capability.
        name: ``[a-z0-9_-]``, 1 to 64 characters; default: the function's name.
        description: What a model reads; default: from the docstring.
        category: Group that permissions name.
        action: What a call does to the world.
        repeatable: Whether a second run of the same call is harmless; default: only if it reads. One that is not is
            never run twice: where a crash left its outcome unknown, a person is asked.
        timeout_s: Longest time of one call in seconds, up to a day. A plain function goes on in its thread.
        pool: Name of the worker pool that runs it; default: the agent's own worker.
        needs_approval: Show each call to a person first.
        trust: ``sandboxed`` if all that it does happens inside the agent's sandbox.

    Raises:
        ToolDefinitionError: If the function cannot be a tool: no docstring, no type hints, a type without a schema.
    """

    def wrap(given: Callable[..., Any] | Capability[..., Any]) -> Tool:
        inner = given.function if isinstance(given, Capability) else given
        own_name = name or getattr(inner, "__name__", "")
        about = description or described(inner)[0]
        _check(own_name, about, timeout_s)
        made = Tool(
            name=own_name,
            description=about,
            parameters=shape_of(inner, own_name).parameters,
            function=inner,
            category=category,
            action=action,
            is_repeatable=repeatable if repeatable is not None else action == "read",
            timeout_s=timeout_s,
            pool=pool,
            needs_approval=needs_approval,
            trust=trust,
        )
        return replace(made, capability=capability_of(made)) if pool else made

    return wrap(function) if function is not None else wrap


def _check(name: str, about: str, timeout_s: float) -> None:
    if not _NAME.fullmatch(name):
        message = f"tool {name[:80]!r}: take 1 to 64 of a-z, 0-9, '_' and '-' for its name: @tool(name=...)"
        raise ToolDefinitionError(message)
    if not about:
        message = f"tool {name!r} has no docstring, and a model knows of it only what is written there"
        raise ToolDefinitionError(message)
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        message = f"tool {name!r}: timeout_s is {timeout_s}, take more than 0 and at most {MAX_TIMEOUT_S:.0f} s"
        raise ToolDefinitionError(message)
