"""Reads what the tasks noted, and works out what ran, what was lost and what ran twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from msgspec import Struct

from bench.peers.apps.side import BEGAN, ENDED, RAN, RECORD


class Note(Struct, frozen=True):
    """A task's own word: which task, what of it, when (nanoseconds of the monotonic clock) and in which process."""

    n: int
    kind: int
    at_ns: int
    pid: int


class Crash(Struct, frozen=True, kw_only=True):
    """What became of the tasks of a killed worker, and of those beside it.

    Attributes:
        hit: Tasks that ran in the killed worker.
        again_s: From the kill to the second start, of each task that had one.
        lost: Tasks that had not ended when the time was over.
        doubled: Tasks that ended twice, or began again although their worker lived.
    """

    hit: int
    again_s: list[float]
    lost: int
    doubled: int


def read(folder: Path) -> list[Note]:
    """Return everything noted so far, oldest first; a half-written record at the end of a file does not count."""
    notes = []
    for path in folder.glob("*.notes"):
        data = path.read_bytes()
        whole = len(data) - len(data) % RECORD.size
        pid = int(path.stem)
        notes += [Note(n, kind, at_ns, pid) for n, kind, at_ns in RECORD.iter_unpack(data[:whole])]
    return sorted(notes, key=lambda note: note.at_ns)


def count(folder: Path) -> int:
    """Return how many records there are, without reading them."""
    return sum(path.stat().st_size for path in folder.glob("*.notes")) // RECORD.size


def first_run(notes: Iterable[Note]) -> dict[int, int]:
    """Return when each no-op task ran first."""
    found: dict[int, int] = {}
    for note in notes:
        if note.kind == RAN:
            found.setdefault(note.n, note.at_ns)
    return found


def missing(notes: Iterable[Note], wanted: Iterable[int]) -> set[int]:
    """Return the wanted no-op tasks that never ran."""
    return set(wanted) - first_run(notes).keys()


def repeated(notes: Iterable[Note]) -> int:
    """Return how many runs of no-op tasks there were beyond the first of each."""
    ran = [note.n for note in notes if note.kind == RAN]
    return len(ran) - len(set(ran))


def after_kill(notes: Iterable[Note], wanted: Collection[int], *, killed_ns: int, dead: Collection[int]) -> Crash:
    """Judge a kill. ``dead`` are the processes that were killed."""
    begins: dict[int, list[Note]] = defaultdict(list)
    ends: dict[int, int] = defaultdict(int)
    for note in notes:
        if note.kind == BEGAN:
            begins[note.n].append(note)
        elif note.kind == ENDED:
            ends[note.n] += 1
    hit, doubled, again_s = 0, 0, []
    for n in wanted:
        runs = begins[n]
        was_hit = bool(runs) and runs[0].pid in dead and runs[0].at_ns <= killed_ns
        hit += was_hit
        if was_hit and len(runs) > 1:
            again_s.append((runs[1].at_ns - killed_ns) / 1e9)
        doubled += ends[n] > 1 or len(runs) > (2 if was_hit else 1)
    lost = sum(1 for n in wanted if not ends[n])
    return Crash(hit=hit, again_s=again_s, lost=lost, doubled=doubled)
