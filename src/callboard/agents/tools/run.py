"""One run of a tool's function: within its time, with whatever it raises told as a result."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from callboard.agents.errors import ToolOutcomeUnknownError
from callboard.agents.tools.base import Tool, ToolResult
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.schema import shape_of
from callboard.agents.tools.thread import THREADS
from callboard.runtime import codec
from callboard.runtime.actor import function
from callboard.runtime.actor.turn import ParkSignal
from callboard.runtime.errors import CallboardError, EncodeError, HandlerExitError

MAX_CHARS: Final = 32_000
"""Longest result that a model is told, in characters; about 8,000 tokens."""

FAILED: Final = "tool_failed"
TIMED_OUT: Final = "tool_timeout"
_ERROR_CHARS = 2000
_GRACE_S = 2.0


async def run(tool: Tool, arguments: Mapping[str, Any], context: ToolContext, *, max_chars: int) -> ToolResult:
    """Call a tool's function and return what a model is told of it: its value, or what it raised, or that it was slow.

    Cancelling cancels the function; a plain one goes on in its thread, and what it returns is lost.

    Raises:
        ToolOutcomeUnknownError: If the tool must not be repeated and was stopped by its time limit, or says so itself.
    """
    shape = shape_of(tool.function, tool.name)
    given = {**arguments, **dict.fromkeys(shape.contexts, context)}
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    task = asyncio.ensure_future(_called(tool, given))
    is_late = await _ended(task, tool.timeout_s)
    took_s = round(loop.time() - began_s, 6)
    text, error = _told(tool, task, is_late=is_late)
    return ToolResult(
        call_id=context.call_id, tool=tool.name, text=cut(text, max_chars=max_chars), error=error, took_s=took_s
    )


def cut(text: str, *, max_chars: int) -> str:
    """Return text that is no longer than ``max_chars`` and a note, if there was more."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[cut: these are the first {max_chars} of {len(text)} characters]"


async def _called(tool: Tool, given: Mapping[str, Any]) -> object:
    try:
        return await function.call(tool.function, (), given, executor=THREADS)
    except (SystemExit, KeyboardInterrupt) as error:
        message = f"the tool tried to end its process: {error!r}"
        raise HandlerExitError(message) from error
    except (asyncio.CancelledError, ParkSignal):
        raise
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        # it stands beside all errors, and nothing above would take it for one
        message = f"the tool raised {type(error).__name__}, which is no Exception: {_said(error)}"
        raise HandlerExitError(message) from error


async def _ended(task: asyncio.Task[object], timeout_s: float) -> bool:
    """Wait for its end, or bring it about; return whether it was late."""
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        return not done
    finally:
        if not task.done():
            task.cancel()
            # one that does not heed it is left behind; its error, if any, is nobody's
            task.add_done_callback(_look)
            await asyncio.wait({task}, timeout=_GRACE_S)


def _look(task: asyncio.Task[object]) -> None:
    if not task.cancelled():
        task.exception()


def _told(tool: Tool, task: asyncio.Task[object], *, is_late: bool) -> tuple[str, str]:
    """Return the result's text and its error. One that ended well while it was stopped has ended well."""
    if task.cancelled() and not is_late:
        return f"the tool {tool.name} cancelled itself", FAILED
    if not task.done() or task.cancelled():
        text = f"the tool {tool.name} was stopped after its limit of {tool.timeout_s:g} s"
        if not tool.is_repeatable:
            raise ToolOutcomeUnknownError(text)
        return text, TIMED_OUT
    error = task.exception()
    if error is None:
        return _text(task.result())
    if isinstance(error, ToolOutcomeUnknownError) or not isinstance(error, Exception):
        raise error
    code = error.code if isinstance(error, CallboardError) else FAILED
    return f"{type(error).__name__}: {_said(error)}"[:_ERROR_CHARS], code


def _said(error: BaseException) -> str:
    """Return what an error says; its own code may fail at that."""
    try:
        return str(error)
    except BaseException as broken:  # noqa: BLE001 - whatever a tool's own error does when it is asked
        return f"[it cannot be shown: {type(broken).__name__}]"


def _text(value: object) -> tuple[str, str]:
    if isinstance(value, str):
        return value, ""
    try:
        return codec.encode(value).decode(), ""
    except (EncodeError, msgspec.EncodeError) as error:
        return f"the tool ran, and what it returned has no JSON form: {error}", FAILED
