"""The actor ``dossier/<key>``: reads a folder and reports on it in one turn of many steps, then answers questions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

from msgspec import Struct

from callboard.agents.digest.digest import Digest, digest_bytes
from callboard.agents.digest.merge import Corpus, merge
from callboard.agents.digest.walk import LeftOut, walk
from callboard.agents.dossier.note import Note, Notes, What
from callboard.agents.dossier.report import Made, Reading, write_report
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.step import current_step
from callboard.runtime.clock import SYSTEM_CLOCK

NOTES = "takeover-notes.jsonl"
LEAST_STEPS = 3
"""One to list the folder, one or more to read it, one for the report."""

About = Literal["size", "language", "topic"]


class Compile(Struct, frozen=True, kw_only=True):
    """Make a report on a folder, which every worker must be able to read.

    Attributes:
        folder: Absolute path of the folder.
        out: Absolute path of the folder for report and notes; it exists.
        data_dir: Another folder that is not read.
        steps: Steps of the turn, ``LEAST_STEPS`` or more.
        pace_s: How long a step takes at least.
        max_files: Files at most.
    """

    folder: str
    out: str
    data_dir: str
    steps: int
    pace_s: float
    max_files: int


class Question(Struct, frozen=True, kw_only=True):
    """Ask about the folder that was read last; ``number`` counts the questions."""

    number: int
    about: About


class Answer(Struct, frozen=True, kw_only=True):
    """The answer to the question of that number."""

    number: int
    text: str


class Listing(Struct, frozen=True, kw_only=True):
    """What the first step found: the paths for each of the steps that follow."""

    shares: list[list[str]]
    left_out: list[LeftOut]
    left_out_total: int
    begun_at: datetime


class Share(Struct, frozen=True, kw_only=True):
    """What one step read, and who ran it."""

    reading: Reading
    digests: list[Digest]
    unreadable: list[LeftOut]


class Found(Struct, frozen=True, kw_only=True):
    """What the actor remembers of a folder.

    Attributes:
        out: Where report and notes are.
        report: The report's path.
        answered: Numbers of the questions answered since, in order.
    """

    out: str = ""
    report: str = ""
    files: int = 0
    words: int = 0
    language: str = ""
    topic: str = ""
    answered: list[int] = []


class Dossier(Actor, name="dossier"):
    """Makes one report at a time. Every step can be run twice without harm; one that is recorded never is."""

    State = Found

    @on
    async def compile(self, m: Compile) -> Made:
        """List the folder, read it share by share, write the report. Each step takes ``m.pace_s`` or longer.

        A second run of a step reads the same files again and replaces what the first left; what it files carries the
        step's id, under which it is filed once.
        """
        notes = _Pad(Notes(Path(m.out, NOTES)), attempt=self.attempt, epoch=self.epoch)
        notes.write("turn")
        steps = _Steps(notes, m.pace_s)
        listing = await self.step("list", steps.list_folder, m)
        notes.write("have", 1)
        shares: list[Share] = []
        for number, paths in enumerate(listing.shares, start=2):
            shares.append(await self.step("read", steps.read_share, number, m.folder, paths))
            notes.write("have", number)
        # everything it is made of stands in the journal, so that the mail names it well enough
        made = await self.step("report", steps.write, m, listing, shares, key="report")
        notes.write("have", m.steps)
        self.state = Found(
            out=m.out, report=made.path, files=made.files, words=made.words, language=made.language, topic=made.topic
        )
        notes.write("finished")
        return made

    @on
    def answer(self, m: Question) -> Answer:
        """Answer from what the last report left; a second run writes its note again."""
        found: Found = self.state
        texts = {
            "size": f"{found.files:,} files, {found.words:,} words",
            "language": f"mostly {found.language}",
            "topic": f"it talks about {found.topic}" if found.topic else "it talks about nothing in particular",
        }
        if found.out:
            _Pad(Notes(Path(found.out, NOTES)), attempt=self.attempt, epoch=self.epoch).write("answered", m.number)
        found.answered.append(m.number)
        return Answer(number=m.number, text=texts[m.about] if found.report else "nothing was read yet")


class _Pad:
    """Writes the notes of one run."""

    def __init__(self, notes: Notes, *, attempt: int, epoch: int) -> None:
        self._notes = notes
        self._attempt = attempt
        self._epoch = epoch

    def write(self, what: What, number: int = 0, *, key: str = "", title: str = "") -> None:
        self._notes.write(
            Note(
                what=what,
                at_s=SYSTEM_CLOCK.monotonic(),
                pid=os.getpid(),
                attempt=self._attempt,
                epoch=self._epoch,
                number=number,
                key=key,
                title=title,
            )
        )

    def file(self, number: int, key: str) -> None:
        """Have the step's effect unless an earlier run had it, as a receiver that knows keys does."""
        if not any(note.what == "filed" and note.key == key for note in Notes(self._notes.path).more()):
            self.write("filed", number, key=key)

    def reading(self, number: int, began_s: float) -> Reading:
        took_s = SYSTEM_CLOCK.monotonic() - began_s
        return Reading(number=number, pid=os.getpid(), epoch=self._epoch, attempt=self._attempt, took_s=took_s)


class _Steps:
    """The functions of the steps, for one run of the turn."""

    def __init__(self, pad: _Pad, pace_s: float) -> None:
        self._pad = pad
        self._pace_s = pace_s

    async def list_folder(self, m: Compile) -> Listing:
        began_s = self._begin(1, "list the folder")
        skip = (Path(m.out), Path(m.data_dir))
        found = await asyncio.to_thread(walk, m.folder, max_files=m.max_files, skip=skip)
        count = m.steps - LEAST_STEPS + 1
        paths = [file.path for file in found.files]
        made = Listing(
            # every count-th, so that a folder of large files does not fall to one step
            shares=[paths[first::count] for first in range(count)],
            left_out=found.left_out,
            left_out_total=found.left_out_total,
            begun_at=SYSTEM_CLOCK.now(),
        )
        await self._end(1, began_s)
        return made

    async def read_share(self, number: int, folder: str, paths: list[str]) -> Share:
        began_s = self._begin(number, f"read {len(paths):,} file{'s' * (len(paths) != 1)}")
        digests, unreadable = await asyncio.to_thread(_read, folder, paths)
        reading = self._pad.reading(number, began_s)
        await self._end(number, began_s)
        return Share(reading=reading, digests=digests, unreadable=unreadable)

    async def write(self, m: Compile, listing: Listing, shares: Sequence[Share]) -> Made:
        began_s = self._begin(m.steps, "write the report")
        made = await asyncio.to_thread(_write, m, listing, shares)
        await self._end(m.steps, began_s)
        return made

    def _begin(self, number: int, title: str) -> float:
        self._pad.write("begin", number, title=title)
        return SYSTEM_CLOCK.monotonic()

    async def _end(self, number: int, began_s: float) -> None:
        """Wait until the step has taken its time, the time of a model that thinks, and file it."""
        await SYSTEM_CLOCK.sleep(max(0.0, began_s + self._pace_s - SYSTEM_CLOCK.monotonic()))
        self._pad.file(number, current_step().id)


def _read(folder: str, paths: Sequence[str]) -> tuple[list[Digest], list[LeftOut]]:
    digests: list[Digest] = []
    unreadable: list[LeftOut] = []
    for path in paths:
        try:
            data = Path(folder, path).read_bytes()
        except OSError as error:
            unreadable.append(LeftOut(path=path, reason=f"cannot be read: {error.strerror or error}"))
        else:
            digests.append(digest_bytes(path, data))
    return digests, unreadable


def _write(m: Compile, listing: Listing, shares: Sequence[Share]) -> Made:
    corpus: Corpus = merge(digest for share in shares for digest in share.digests)
    unreadable = [item for share in shares for item in share.unreadable]
    return write_report(
        Path(m.out),
        corpus,
        folder=Path(m.folder).name or m.folder,
        readings=[share.reading for share in shares],
        left_out=[*unreadable, *listing.left_out],
        left_out_total=listing.left_out_total + len(unreadable),
        begun_at=listing.begun_at,
    )
