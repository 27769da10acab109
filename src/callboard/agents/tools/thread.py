"""Threads for tools that are plain functions: each call has its own, which nobody waits for when it never ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Final, ParamSpec, TypeVar

from callboard.agents.errors import ToolError

P = ParamSpec("P")
T = TypeVar("T")

MAX_RUNNING: Final = 256
"""Calls that run in this process; a tool that never returns keeps its place until the process ends."""


class ToolThreads(Executor):
    """Runs each call in a thread of its own.

    The event loop's own threads are few, and all that the process does beside its loop waits for one of them: tools
    that hang would stop it. These threads do not keep the process from ending either.
    """

    def __init__(self, *, most: int = MAX_RUNNING) -> None:
        """Run no more than ``most`` calls at a time."""
        self._free = threading.BoundedSemaphore(most)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin a call.

        Raises:
            ToolError: If too many run.
        """
        if not self._free.acquire(blocking=False):
            message = "too many tools run in this process, or were stopped and have not ended: try again later"
            raise ToolError(message)
        future: Future[T] = Future()
        work = threading.Thread(target=self._run, args=(future, fn, args, kwargs), name="cb-tool", daemon=True)
        try:
            work.start()
        except RuntimeError as error:
            self._free.release()
            message = f"no thread can be started for the tool: {error}"
            raise ToolError(message) from error
        return future

    def _run(self, future: Future[T], fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            if not future.set_running_or_notify_cancel():
                return
            try:
                found = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - whatever a tool raises is its caller's
                future.set_exception(error)
            else:
                future.set_result(found)
        finally:
            self._free.release()


THREADS: Final = ToolThreads()
