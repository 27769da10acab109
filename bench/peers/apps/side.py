"""What every peer's tasks and senders share: notes in files, and the orders that the bench sends on standard input.

A task notes itself when it runs, so that completion is counted the same way for everybody and never by a peer's word.
A file belongs to one process and holds records of 24 bytes: number, kind, nanoseconds of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

RECORD = struct.Struct("<qqq")
RAN, BEGAN, ENDED = 0, 1, 2
# With the number about 256 bytes on the wire.
TEXT = "x" * 240

# What the bench tells a process: "folder" for the notes, "tasks" to come (noop or slow, where a peer's documentation
# advises different settings), the row's options, and what the peer's server adds ("url", ...).
TOLD: dict[str, Any] = json.loads(os.environ.get("PEER", "{}"))


class _Notes:
    pid = 0
    file = -1


def note(n: int, kind: int = RAN) -> None:
    """Write one record; one write, about a microsecond."""
    pid = os.getpid()
    if pid != _Notes.pid:
        # a forked child has a file of its own
        path = f"{TOLD['folder']}/{pid}.notes"
        _Notes.file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        _Notes.pid = pid
    os.write(_Notes.file, RECORD.pack(n, kind, time.monotonic_ns()))


class Sender(Protocol):
    """A peer's client, which is told what to send. A blocking client may block."""

    async def open(self) -> None:
        """Connect, and make what a first send needs."""

    async def burst(self, numbers: Sequence[int]) -> None:
        """Send no-op tasks as fast as the peer's documentation advises; return when its broker has all of them."""

    async def single(self, n: int) -> bool:
        """Send one no-op task and wait for its result; return False at once where the peer returns none."""

    async def slow(self, n: int, seconds: float) -> None:
        """Send a task that notes BEGAN, waits, and notes ENDED."""

    async def close(self) -> None:
        """Disconnect."""


def send(sender: Sender) -> None:
    """Be the sender's process: take orders from standard input until it ends, answer each with a line of JSON."""
    asyncio.run(_send(sender))


async def _send(sender: Sender) -> None:
    # what a library prints must not mix with the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    await sender.open()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer = await _obey(sender, json.loads(line))
        print(json.dumps(answer), file=answers, flush=True)
    await sender.close()


async def _obey(sender: Sender, order: dict[str, Any]) -> dict[str, Any]:
    first, count = order["first"], order["count"]
    if order["do"] == "burst":
        began = time.monotonic_ns()
        await sender.burst(range(first, first + count))
        return {"took_ns": time.monotonic_ns() - began}
    if order["do"] == "slow":
        for n in range(first, first + count):
            await sender.slow(n, order["seconds"])
        return {"sent": count}
    sent, answered = [], []
    for n in range(first, first + count):
        sent.append(time.monotonic_ns())
        has_result = await asyncio.wait_for(sender.single(n), order["within_s"])
        answered.append(time.monotonic_ns() if has_result else 0)
        if not has_result:
            await _noted(n, order["within_s"])
    return {"sent_ns": sent, "answered_ns": answered}


async def _noted(n: int, within_s: float) -> None:
    """Wait until a task is the last note of a file: where a peer returns nothing, the next one waits for that."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for entry in os.scandir(TOLD["folder"]):
            if entry.name.endswith(".notes") and _last(entry.path) == n:
                return
        await asyncio.sleep(0.0005)
    raise TimeoutError(n)


def _last(path: str) -> int:
    with open(path, "rb") as file:  # noqa: PTH123 - short and quick, it runs while latency is measured
        if file.seek(0, os.SEEK_END) < RECORD.size:
            return -1
        file.seek(-RECORD.size, os.SEEK_END)
        return int(RECORD.unpack(file.read(RECORD.size))[0])
