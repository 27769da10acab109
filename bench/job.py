"""What a side of a comparison is told to do, and what it says; one process a round, so that its CPU time is its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

LOOPS = ("uvloop", "asyncio")
TIMEOUT_S = 180.0

J = TypeVar("J", bound=Struct)
R = TypeVar("R")


class Job(Struct, kw_only=True):
    """A round of work.

    Attributes:
        capability: Its subject token; a round has one of its own, whose queue is filled beforehand.
        count: Tasks in the queue.
        profile: Where to write a profile; "" for none.
    """

    url: str
    capability: str
    concurrency: int
    count: int
    loop: str = "uvloop"
    profile: str = ""


class Report(Struct, kw_only=True):
    """What a round took, from the first claim to the last ack taken by the broker."""

    tasks: int
    seconds: float
    cpu_s: float
    note: str = ""

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a task, of all threads of the process."""
        return self.cpu_s / self.tasks * 1e6


class Meter:
    """Wall and CPU time since it was made."""

    def __init__(self) -> None:
        self._wall_s = time.perf_counter()
        self._cpu_s = time.process_time()

    def report(self, tasks: int, note: str = "") -> Report:
        """Return what it took until now."""
        seconds = time.perf_counter() - self._wall_s
        return Report(tasks=tasks, seconds=seconds, cpu_s=time.process_time() - self._cpu_s, note=note)


async def until(is_true: Callable[[], bool], *, every_s: float = 0.01) -> None:
    """Wait until it is true."""
    while not is_true():
        await asyncio.sleep(every_s)


async def until_empty(left: Callable[[], Awaitable[int]]) -> None:
    """Wait until the broker has nothing waiting or handed out any more."""
    while await left():
        await asyncio.sleep(0.01)


def run(side: str, job: Struct) -> Report:
    """Run a round of a side in a process of its own: the module ``bench.side_<side>``, which takes such a job.

    Raises:
        RuntimeError: If the side failed; with what it said.
    """
    command = [sys.executable, "-m", f"bench.side_{side}", msgspec.json.encode(job).decode()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=ROOT, env=environment()
    )
    if done.returncode:
        message = f"{side} failed with status {done.returncode}:\n{done.stderr[-4000:]}"
        raise RuntimeError(message)
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Report)


def main(work: Callable[[J], Coroutine[Any, Any, Report]], kind: type[J]) -> None:
    """Be a side: take the job from the command line, run it, print the report."""
    job = msgspec.json.decode(sys.argv[1], type=kind)
    report = run_on(getattr(job, "loop", LOOPS[0]), work(job))
    print(msgspec.json.encode(report).decode(), flush=True)


def run_on(loop: str, work: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine on uvloop or on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def environment() -> dict[str, str]:
    """Return our environment with the module path made plain, so that a child finds what we found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])}


ROOT = Path(__file__).parents[1]


@contextlib.asynccontextmanager
async def started(module: str, *arguments: str, ready_s: float = 30.0, end_s: float = 15.0) -> AsyncIterator[Process]:
    """Run a module for the time of a block: it is ready with its first line, and told to end by SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=PIPE, cwd=ROOT, env=environment()
    )
    try:
        if process.stdout is not None:
            await asyncio.wait_for(process.stdout.readline(), ready_s)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), end_s)
        except TimeoutError:
            process.kill()
            await process.wait()
