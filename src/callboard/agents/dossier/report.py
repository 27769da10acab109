"""The dossier's report: what is in the folder, and which process read what."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from callboard.agents.digest import frame, report, section
from callboard.agents.digest.html import esc, plural, seconds, size, table
from callboard.agents.digest.merge import Corpus
from callboard.agents.digest.walk import LeftOut
from callboard.runtime.version import VERSION

FILE = "report.html"


class Reading(Struct, frozen=True, kw_only=True):
    """Who read a share of the files.

    Attributes:
        number: Of the step.
        pid: The process.
        epoch: The ownership under which it did.
        attempt: Which attempt of that worker at the turn it was, 1-based.
        took_s: Seconds of reading, without the wait that follows.
    """

    number: int
    pid: int
    epoch: int
    attempt: int
    took_s: float


class Made(Struct, frozen=True, kw_only=True):
    """What came of a folder: the report's path, and what the actor remembers."""

    path: str
    files: int
    words: int
    language: str
    topic: str


def write_report(
    out: Path,
    corpus: Corpus,
    *,
    folder: str,
    readings: Sequence[Reading],
    left_out: Sequence[LeftOut],
    left_out_total: int,
    begun_at: datetime,
) -> Made:
    """Write ``report.html`` into ``out``, an earlier one is replaced. A second run writes the same."""
    path = out / FILE
    runs = len({(reading.pid, reading.epoch, reading.attempt) for reading in readings})
    made = frame.Page(
        title=f"{folder}, a dossier by Callboard",
        folder=folder,
        kicker=f"{folder} \u00b7 read by Callboard on {begun_at:%d %B %Y at %H:%M} UTC",
        headline=f"{plural(corpus.files, 'file')}, read in one turn",
        footer=report.footer(VERSION),
        verdict=esc(_verdict(readings, runs)),
        figures=[
            ("files", f"{corpus.files:,}"),
            ("read", size(corpus.size_bytes)),
            ("words", f"{corpus.words:,}"),
            ("steps of reading", f"{len(readings):,}"),
            ("processes", f"{len({reading.pid for reading in readings}):,}"),
        ],
        sections={
            "run": ("The turn", _turn_section(readings)),
            **report.content_sections(corpus),
            "methods": ("Methods", section.method_section(left_out, left_out_total)),
        },
        data=report.cards(corpus, {}, {}),
    )
    frame.replace(path, frame.render(made).encode())
    language = max(corpus.languages, key=lambda total: total.size_bytes).name if corpus.languages else ""
    topics = ", ".join(topic.text for topic in corpus.topics[:3])
    return Made(path=str(path), files=corpus.files, words=corpus.words, language=language, topic=topics)


def _verdict(readings: Sequence[Reading], runs: int) -> str:
    if runs == 1:
        return "One worker read it all."
    return (
        f"The turn was taken over by another worker, and went on where it stood: {plural(runs, 'run')} of the "
        f"turn, {plural(len(readings), 'share')} of files, each of them on record once."
    )


def _turn_section(readings: Sequence[Reading]) -> str:
    rows = [
        (
            f"{reading.number}",
            f"process {reading.pid}",
            f"{reading.epoch}",
            seconds(reading.took_s),
        )
        for reading in readings
    ]
    hint = (
        "Each step's value was stored before the turn went on. A later run of the turn took over the values that stood "
        "and ran the steps that had none."
    )
    listed = table("Steps that read files", ("Step", "Run by", "#Epoch", "#Read for"), rows)
    return section.section("run", "How it was read", hint, listed)
