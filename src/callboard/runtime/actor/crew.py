"""Tasks of a host whose error is their own: it ends neither their neighbours nor the worker."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from callboard.runtime import events, logs
from callboard.runtime.errors import CallboardError

Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None] | None]

_log = logs.get_logger(__name__)


class Crew:
    """Starts tasks and knows those that run."""

    def __init__(self, spawn: Spawn) -> None:
        """Begin with none; ``spawn`` starts a task that somebody awaits in the end."""
        self._spawn = spawn
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a task runs."""
        return bool(self._tasks)

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Start a task; None when the worker is going down."""
        task = self._spawn(_alone(coroutine, name), name)
        if task is None:
            coroutine.close()
            return None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # one that is cancelled before it began is never awaited
        task.add_done_callback(lambda _: coroutine.close())
        return task

    def cancel(self) -> None:
        """Cancel what still runs: a hook that never ends, say."""
        for task in self._tasks:
            task.cancel()


async def _alone(coroutine: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await coroutine
    except Exception as error:  # noqa: BLE001 - a mistake, ours or the user's, of which the other actors know nothing
        code = error.code if isinstance(error, CallboardError) else "internal"
        trace = "".join(traceback.format_exception(error, limit=-8))
        _log.error(events.ACTOR_FAILED, actor=name, code=code, message=trace)
