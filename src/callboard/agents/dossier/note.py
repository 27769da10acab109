"""What the dossier's turn notes of itself, in a file of its own: evidence that owes nothing to the runtime's word.

Every process appends to the one file, a line in one system call. Times are the machine's monotonic clock, which all its
processes share.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

What = Literal["turn", "begin", "filed", "have", "finished", "answered"]


class Note(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line.

    Attributes:
        what: ``turn``: a worker began, or began again, to run the turn. ``begin``: a step's function was called.
            ``filed``: it had its effect, once for every ``key``. ``have``: the turn went on with the step's value, so
            that it stands on record; whether from this run or an earlier one. ``finished``: the turn's last line.
            ``answered``: a question was handled; ``number`` says which.
        at_s: When, by the machine's monotonic clock.
        pid: The process.
        attempt: Which attempt of that worker at the turn, 1-based; a takeover is one more epoch, not one more attempt.
        epoch: The ownership under which the worker ran it.
        number: Of the step or the question, 1-based.
        key: The step's id, the same in every run: what a receiver tells a repeated effect by.
        title: What the step does, for people.
    """

    what: What
    at_s: float
    pid: int
    attempt: int = 1
    epoch: int = 0
    number: int = 0
    key: str = ""
    title: str = ""


_decoder = msgspec.json.Decoder(Note)


class Notes:
    """The file. Each reader has a ``Notes`` of its own and sees every line once.

    Attributes:
        path: Where it is; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Begin to read at its beginning."""
        self.path = path
        self._at = 0

    def write(self, note: Note) -> None:
        """Append a line; it survives the process, not the machine.

        A line that a kill cut short stays alone: each begins with a line end of its own.
        """
        file = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            os.write(file, b"\n" + msgspec.json.encode(note) + b"\n")
        finally:
            os.close(file)

    def more(self) -> list[Note]:
        """Return the whole lines that were added since the last call; one that was cut short is none."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        found = (_read(line) for line in whole.split(b"\n") if line)
        return [note for note in found if note is not None]


def _read(line: bytes) -> Note | None:
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:
        return None
