"""What the demonstrations of the command line share: where things go, how one is stopped, how we were called."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

DATA = Path(".callboard/demo")
OUT = Path("callboard-report")
INTERRUPTED = 130
T = TypeVar("T")


class Folder(click.Path):
    """A folder; ``~`` is the home also where no shell saw to it, as in ``make demo DEMO_PATH=~/notes``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - click's
        """Return the path."""
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 - a text may come, or a path


class Course:
    """How far a demonstration came and who stopped it."""

    def __init__(self) -> None:
        """Begin."""
        self.stage = ""
        self.stopped_by = "Ctrl-C"
        self.is_stopped = False


def run(course: Course, work: Coroutine[Any, Any, T]) -> T:
    """Run a demonstration to its end; Ctrl-C and SIGTERM cancel it once and let it take down what it started.

    Raises:
        KeyboardInterrupt: If it was stopped; ``course`` says by whom.
    """
    from callboard.runtime import logs

    # the worker that dies on purpose is no news; what goes wrong is
    logs.configure(level="error", form="console")
    return asyncio.run(_stoppable(course, work))


async def _stoppable(course: Course, work: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def stop(number: signal.Signals) -> None:
        # once: a second signal would cut short what takes workers and server down, which takes seconds at most
        if task is not None and not course.is_stopped:
            course.is_stopped = True
            course.stopped_by = "Ctrl-C" if number == signal.SIGINT else number.name
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def how_called() -> str:
    """Return how this program was called, so that the printed lines work as they stand."""
    if Path(sys.argv[0]).name == "__main__.py":
        return f"{_shortest(sys.executable)} -m callboard"
    return _shortest(sys.argv[0])


def _shortest(program: str) -> str:
    name = Path(program).name
    found = shutil.which(name)
    # a venv's python is a link: the same file at the end says nothing, the same place does
    if found is not None and Path(found).absolute() == Path(program).absolute():
        return name
    shown = Path(program)
    if shown.is_absolute() and shown.is_relative_to(Path.cwd()):
        shown = shown.relative_to(Path.cwd())
    return shlex.quote(os.fspath(shown))
