"""The capabilities that chaos workers serve; each run is written down before and after."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from typing import Literal

from msgspec import Struct

from callboard.runtime.capability import Capability
from callboard.runtime.context import TaskContext
from callboard.runtime.errors import TerminalError
from callboard.runtime.retry import RetryPolicy
from tests.chaos.journal import Journal

How = Literal[
    "sleep",
    "block",
    "raise",
    "give_up",
    "fragile",
    "exit",
    "segfault",
    "recurse",
    "unencodable",
    "sys_exit",
    "hang",
    "memory",
    "open",
]
NAME = "chaos"
RETRY_GAP_S = 0.4
ATTEMPTS = 4
STOPPED_S = 2.0


class Job(Struct, frozen=True, kw_only=True):
    """What a task shall do.

    Attributes:
        n: Its number in the load.
        failures: Attempts that raise before one succeeds, for ``raise``.
        is_final: Whether ``fragile`` raises an error after which no attempt can help.

    ``fragile`` sleeps and raises when it finds that its process was stopped meanwhile.
    """

    n: int
    how: How = "sleep"
    sleep_s: float = 0.0
    failures: int = 0
    is_final: bool = False


def make(journal: Journal, *, concurrency: int, gap_s: float = RETRY_GAP_S) -> list[Capability[..., object]]:
    """Return the capabilities, writing to ``journal``."""

    async def chaos(job: Job, task: TaskContext) -> object:
        with journal.run(task=task.id, attempt=task.attempt, n=job.n):
            return await _do(job, task)

    def threaded(job: Job, task: TaskContext) -> object:
        with journal.run(task=task.id, attempt=task.attempt, n=job.n):
            spin(job.sleep_s)
            return {"n": job.n}

    retry = RetryPolicy(attempts=ATTEMPTS, gaps_s=(gap_s,), jitter=0.0)
    return [
        Capability(chaos, name=NAME, concurrency=concurrency, retry=retry),
        Capability(threaded, name="threaded", concurrency=concurrency, retry=retry),
    ]


async def _do(job: Job, task: TaskContext) -> object:
    match job.how:
        case "sleep":
            await asyncio.sleep(job.sleep_s)
        case "block":
            spin(job.sleep_s)
        case "raise":
            await asyncio.sleep(job.sleep_s)
            if task.attempt <= job.failures:
                message = f"attempt {task.attempt} fails"
                raise ValueError(message)
        case "give_up":
            await asyncio.sleep(job.sleep_s)
            message = "no further attempt can help"
            raise TerminalError(message)
        case "fragile":
            await _sleep_unless_stopped(job)
        case "hang":
            await asyncio.Event().wait()
        case "unencodable":
            return object()
        case _:
            _harm(job)
    return {"n": job.n}


async def _sleep_unless_stopped(job: Job) -> None:
    until_s = time.monotonic() + job.sleep_s
    seen_s = time.monotonic()
    while seen_s < until_s:
        await asyncio.sleep(0.02)
        now_s = time.monotonic()
        if now_s - seen_s > STOPPED_S:
            message = "the process was stopped in mid-work"
            raise TerminalError(message) if job.is_final else ValueError(message)
        seen_s = now_s


def _harm(job: Job) -> None:
    """Do what no handler should do to its process."""
    match job.how:
        case "exit":
            os._exit(3)
        case "segfault":
            ctypes.string_at(0)
        case "recurse":
            _recurse(0)
        case "sys_exit":
            sys.exit(3)
        case "memory":
            _ = bytearray(1 << 62)
        case "open":
            os.close(os.open(os.devnull, os.O_RDONLY))


def spin(seconds: float) -> None:
    """Burn the processor without yielding to the event loop."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


def _recurse(depth: int) -> int:
    return _recurse(depth + 1) + 1
