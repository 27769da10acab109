"""What handlers did, written by themselves to files of their own, outside the product.

One file per worker process, opened for appending; each line is synced before the handler goes on, so that whatever
happens to the process later, what it did is known. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

Kind = Literal["ready", "claim", "start", "end", "fail", "step", "stepped"]


class Event(Struct, frozen=True, kw_only=True):
    """One line of a journal.

    A run began (``start``), returned (``end``) or raised (``fail``); a step of it began (``step``) or returned
    (``stepped``).

    Attributes:
        n: Number of the job in its load; -1 where there is none.
        delivered: The broker's count, only with ``claim``.
        step: The step's number, only with ``step`` and ``stepped``.
    """

    kind: Kind
    pid: int
    at_s: float
    task: str = ""
    attempt: int = 0
    n: int = -1
    delivered: int = 0
    step: int = -1


_decoder = msgspec.json.Decoder(Event)


class Journal:
    """Appends events of this process. Each write is one system call, so that a kill cannot tear a line."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / f"{os.getpid()}.journal", os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)

    def write(
        self, kind: Kind, *, task: str = "", attempt: int = 0, n: int = -1, delivered: int = 0, step: int = -1
    ) -> None:
        """Append one event and wait until it is on disk."""
        event = Event(
            kind=kind,
            pid=os.getpid(),
            at_s=time.monotonic(),
            task=task,
            attempt=attempt,
            n=n,
            delivered=delivered,
            step=step,
        )
        os.write(self._file, msgspec.json.encode(event) + b"\n")
        os.fsync(self._file)

    @contextlib.contextmanager
    def run(self, *, task: str, attempt: int, n: int) -> Iterator[None]:
        """Write down a run's start and how it ended; nothing of its end when the process dies."""
        self.write("start", task=task, attempt=attempt, n=n)
        try:
            yield
        except BaseException:
            self.write("fail", task=task, attempt=attempt, n=n)
            raise
        self.write("end", task=task, attempt=attempt, n=n)


def read(folder: Path) -> list[Event]:
    """Return all events of all processes, by time."""
    return sorted(_lines(folder), key=lambda event: event.at_s)


def _lines(folder: Path) -> Iterable[Event]:
    for path in folder.glob("*.journal"):
        for line in path.read_bytes().splitlines(keepends=True):
            # the last one may still be on its way, or have been cut off with its process
            if line.endswith(b"\n"):
                yield _decoder.decode(line)
