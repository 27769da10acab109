"""A tool: a plain function with a schema, as the loop, the permissions and the invoker see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from callboard.agents.llm.base import ToolSpec
from callboard.runtime.capability import Capability

# What a call does to the world; approvals and permissions name these.
Action = Literal["read", "write", "execute", "network", "communicate", "spend", "delegate"]
# Where it may run.
Trust = Literal["trusted", "sandboxed"]


class Tool(Struct, frozen=True, kw_only=True):
    """A function that a model may call. ``@tool`` makes it; calling it calls the function.

    Attributes:
        name: ``[a-z0-9_-]``, 1 to 64 characters; unique among an agent's tools.
        description: What a model reads, from the docstring.
        parameters: JSON Schema (an object) of the arguments.
        function: The function, plain or asynchronous; a plain one runs in a thread.
        category: Group that permissions name, such as ``files`` or ``http``.
        action: What a call does to the world.
        is_repeatable: Whether a second run of the same call is harmless: reading, or writing under the idempotency key.
            One that is not, and whose outcome a crash left unknown, waits for a person.
        timeout_s: Longest time of one call.
        pool: "" runs it in the agent's own worker; else the name of the worker pool that runs it, where it is served as
            the capability ``tool-<name>``.
        needs_approval: Whether each call is shown to a person first.
        trust: ``sandboxed`` runs only inside the agent's sandbox.
        capability: What workers of ``pool`` serve; None for a tool without one.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[..., Any]
    category: str = "general"
    action: Action = "read"
    is_repeatable: bool = True
    timeout_s: float = 60.0
    pool: str = ""
    needs_approval: bool = False
    trust: Trust = "trusted"
    capability: Capability[..., Any] | None = None

    @property
    def __callboard_capability__(self) -> Capability[..., Any] | None:
        """What a worker that loads the tool's module serves."""
        return self.capability

    @property
    def spec(self) -> ToolSpec:
        """What a model sees of it."""
        return ToolSpec(name=self.name, description=self.description, parameters=self.parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the function takes and returns
        """Call the function here, as it is."""
        return self.function(*args, **kwargs)


class ToolResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model is told of one call, and what the journal keeps.

    Attributes:
        call_id: The call.
        tool: Name of the tool.
        text: The result as text: JSON for anything but a string, cut at the agent's limit.
        error: Code of what went wrong, "" if nothing.
        took_s: Seconds.
    """

    call_id: str
    tool: str
    text: str
    error: str = ""
    took_s: float = 0.0
