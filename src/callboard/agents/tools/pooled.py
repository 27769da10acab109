"""Tools that run on worker pools: each is a capability ``tool-<name>``, and a call is a task.

A task runs again when its worker dies. For a tool that must not be repeated a run therefore leaves a write-once note in
the ledger before it begins; who finds that note reports an unknown outcome and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from callboard.agents.errors import ToolArgumentError, ToolOutcomeUnknownError
from callboard.agents.llm.base import ToolCall
from callboard.agents.tools.base import Tool, ToolResult
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.run import MAX_CHARS, cut, run
from callboard.agents.tools.schema import arguments_of, shape_of
from callboard.runtime import codec, subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.capability import Capability
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.context import TaskContext, current_task
from callboard.runtime.errors import ConflictError, DecodeError, TaskFailedError
from callboard.runtime.ids import new_token
from callboard.runtime.record import AttemptRecord, encode
from callboard.runtime.retry import RetryPolicy

PREFIX: Final = "tool-"
_MARGIN_S = 15.0
# Codes of tasks that ended before the tool began.
_NOT_BEGUN = frozenset({ToolArgumentError.code, DecodeError.code})


class ToolRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The payload of a task ``tool-<name>``.

    Attributes:
        arguments: The tool's arguments.
        call_id: The provider's name of the call.
        address: The actor that calls.
        max_chars: Longest result, in characters.
    """

    arguments: dict[str, Any] = {}
    call_id: str = ""
    address: str = ""
    max_chars: int = MAX_CHARS


def capability_of(tool: Tool) -> Capability[..., Any]:
    """Return the capability under which a worker pool serves a tool.

    Raises:
        InvalidNameError: If the tool's name is too long for that: over 59 characters.
    """

    async def serve(request: ToolRequest) -> ToolResult:
        task = current_task()
        text = codec.encode(request.arguments).decode()
        arguments = arguments_of(shape_of(tool.function, tool.name), text, tool=tool.name)
        if not tool.is_repeatable:
            await _announce(task, tool)
        context = ToolContext(key=task.id, address=request.address, call_id=request.call_id)
        return await run(tool, arguments, context, max_chars=max(0, min(request.max_chars, MAX_CHARS)))

    return Capability(
        serve,
        name=PREFIX + tool.name,
        pool=tool.pool,
        # the tool's own limit comes first and has a result; this one is for what does not heed it
        timeout_s=tool.timeout_s + _MARGIN_S,
        retry=RetryPolicy() if tool.is_repeatable else RetryPolicy(attempts=1),
    )


async def call(
    turn: TurnApi | Actor, tool: Tool, asked: ToolCall, arguments: Mapping[str, Any], *, key: str, max_chars: int
) -> ToolResult:
    """Have a worker of the tool's pool run it. Journaled as a task: submitted once, waited for after a takeover.

    Raises:
        ToolOutcomeUnknownError: If the tool must not be repeated and its task ended without a result.
    """
    request = ToolRequest(arguments=dict(arguments), call_id=asked.id, address=str(turn.address), max_chars=max_chars)
    try:
        found = await turn.call(PREFIX + tool.name, request, key=key)
    except TaskFailedError as error:
        if tool.is_repeatable or error.cause_code in _NOT_BEGUN:
            return ToolResult(
                call_id=asked.id, tool=tool.name, text=cut(str(error), max_chars=max_chars), error=error.cause_code
            )
        text = f"the task {error.task_id} of the tool {tool.name} ended without a result: {error}"
        raise ToolOutcomeUnknownError(text) from error
    return msgspec.convert(found, ToolResult)


async def _announce(task: TaskContext, tool: Tool) -> None:
    """Leave a note that a run begins; number 0, before those of the worker, which begin with 1.

    Raises:
        ToolOutcomeUnknownError: If a run began before, or nobody can tell.
    """
    subject = subjects.attempt(task.capability, task.id, 0)
    note = AttemptRecord(
        v=1,
        task=task.id,
        capability=task.capability,
        n=0,
        kind="started",
        attempt=task.attempt,
        worker=f"{task.worker} {new_token()}",
        at=SYSTEM_CLOCK.now(),
    )
    data = encode(note)
    try:
        await task.bus.store(Write(subject, data, header.build(expected_seq=0)))
    except ConflictError as error:
        found = await task.bus.get_last(subjects.LEDGER, subject, from_leader=True)
        # an answer that was lost on its way makes us write twice
        if found is None or found.data != data:
            text = f"a run of {tool.name} began before and left no result; it is not run a second time"
            raise ToolOutcomeUnknownError(text) from error
