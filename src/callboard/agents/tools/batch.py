"""The calls that a model asks for in one answer: together, with a cap, and one failing alone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path

from callboard.agents.errors import ToolArgumentError, ToolUnknownError
from callboard.agents.llm.base import ToolCall
from callboard.agents.sandbox.base import Sandbox
from callboard.agents.tools.approver import Approver
from callboard.agents.tools.base import Tool, ToolResult
from callboard.agents.tools.invoker import DENIED_EVENT, Means, attempt, settle
from callboard.agents.tools.permission import Permissions
from callboard.agents.tools.run import MAX_CHARS
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.turn_api import TurnApi

CAP = 4
MAX_CALLS = 64


async def invoke_all(
    turn: TurnApi | Actor,
    calls: Sequence[ToolCall],
    *,
    tools: Sequence[Tool],
    permissions: Permissions,
    sandbox: Sandbox | None = None,
    approve: Approver | None = None,
    folder: Path | None = None,
    cap: int = CAP,
    max_chars: int = MAX_CHARS,
) -> list[ToolResult]:
    """Make the calls of one answer and return their results, in the order of the calls.

    At most ``cap`` run at a time. One that fails, is denied or is invented has a result with an ``error`` and disturbs
    no other. Those that need a person come after all others, one by one: asking parks the turn, and parking must not
    break off what runs.

    Args:
        turn: The turn that calls, or its actor.
        calls: The model's calls. Beyond the first 64 they are refused.
        tools: The agent's tools, permitted or not.
        permissions: Which of them may be called.
        sandbox: Where code runs.
        approve: Asks a person.
        folder: The one folder that tools may use.
        cap: Most calls at a time.
        max_chars: Longest result, in characters.

    Raises:
        ToolOutcomeUnknownError: As ``invoke``, once all other calls have ended.
    """
    means = Means(permissions=permissions, sandbox=sandbox, approve=approve, folder=folder, max_chars=max_chars)
    known = {tool.name: tool for tool in tools}
    places = asyncio.Semaphore(max(1, cap))

    async def one(call: ToolCall) -> ToolResult | None:
        tool = known.get(call.name)
        if tool is None:
            return _unknown(turn, call, permissions.visible(tools))
        async with places:
            return await attempt(turn, tool, call, means)

    found = await _all([one(call) for call in calls[:MAX_CALLS]])
    results = [
        result if result is not None else await settle(turn, known[call.name], call, means)
        for call, result in zip(calls, found, strict=False)
    ]
    return [*results, *(_surplus(call) for call in calls[MAX_CALLS:])]


async def _all(works: Sequence[Coroutine[object, object, ToolResult | None]]) -> list[ToolResult | None]:
    """Run all to their ends; the first error is raised when none runs any more."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return []
    try:
        await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    # of several errors one is raised, and none is left unseen
    for task in tasks:
        _ = task.cancelled() or task.exception()
    return [task.result() for task in tasks]


def _unknown(turn: TurnApi | Actor, call: ToolCall, visible: Sequence[Tool]) -> ToolResult:
    turn.emit(DENIED_EVENT, {"tool": call.name[:100], "rule": "unknown", "call": call.id[:100]})
    names = ", ".join(tool.name for tool in visible) or "none"
    text = f"there is no tool {call.name[:100]!r}; there are: {names}"
    return ToolResult(call_id=call.id, tool=call.name[:100], text=text, error=ToolUnknownError.code)


def _surplus(call: ToolCall) -> ToolResult:
    text = f"not made: an answer may ask for {MAX_CALLS} calls; ask for the rest in the next one"
    return ToolResult(call_id=call.id, tool=call.name[:100], text=text, error=ToolArgumentError.code)
