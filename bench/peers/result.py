"""What a run found, row by row, and the arithmetic over its rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from bench.peers.measure import Round

OURS = "callboard"


class Figure(Struct, frozen=True, kw_only=True):
    """A measure of a row over its rounds; ``math.inf`` is a time that did not end."""

    median: float
    low: float
    high: float


class Row(Struct, kw_only=True):
    """A row of the report: a peer at one durability.

    Attributes:
        strength: 2 on disk before it is confirmed, 1 written within seconds or minutes, 0 in memory only.
        cannot: Measures that the peer cannot be asked for, by key, each with the reason.
        reason: Why nothing was measured, or what a round stopped at; "" if all went well.
    """

    name: str
    peer: str
    versions: str = ""
    durability: str
    recovery: str
    strength: int
    worker: str
    stores: str
    cannot: dict[str, str] = {}
    reason: str = ""
    rounds: list[Round] = []


class Result(Struct, kw_only=True):
    """A whole run."""

    facts: dict[str, Any]
    plan: dict[str, Any]
    rows: list[Row] = []


class Measure(Struct, frozen=True, kw_only=True):
    """One thing that all rows are compared by.

    Attributes:
        short: What it is called at the head of a table's column; "" keeps it out of the table.
        of: Its value of a round, None where a peer has none or nothing was measured.
    """

    key: str
    title: str
    unit: str
    of: Callable[[Round], float | None]
    short: str = ""
    is_less_better: bool = True

    def figure(self, row: Row) -> Figure | None:
        """Return median and extremes over the rounds that have it; None where the peer cannot be asked for it."""
        if self.key in row.cannot:
            return None
        found = [value for value in map(self.of, row.rounds) if value is not None]
        return Figure(median=statistics.median(found), low=min(found), high=max(found)) if found else None


class Place(Struct, frozen=True, kw_only=True):
    """Where a row of ours stands in one measure, among the rows of at least its durability.

    Attributes:
        ahead: Rows that are better, best first, with their medians.
    """

    row: str
    measure: Measure
    median: float
    rivals: int
    ahead: list[tuple[str, float]]


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least ``share`` of them do not exceed; None without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] if ordered else None


def recovery_s(found: Round) -> float | None:
    """Return the longest wait for a second start; infinite if a task never had one or was lost, None without a kill."""
    crash = found.crash
    if crash is None or (not crash.hit and not crash.lost):
        return None
    return math.inf if crash.lost or len(crash.again_s) < crash.hit else max(crash.again_s)


MEASURES = (
    Measure(
        key="rate", short="tasks/s", title="No-op tasks a second", unit="/s", of=lambda r: r.rate, is_less_better=False
    ),
    Measure(
        key="handler_p50",
        short="to handler",
        title="Submit to handler, p50",
        unit="µs",
        of=lambda r: percentile(r.to_handler_us, 0.5),
    ),
    Measure(
        key="handler_p99", title="Submit to handler, p99", unit="µs", of=lambda r: percentile(r.to_handler_us, 0.99)
    ),
    Measure(
        key="result_p50",
        short="to result",
        title="Submit to result, p50",
        unit="µs",
        of=lambda r: percentile(r.to_result_us, 0.5),
    ),
    Measure(key="result_p99", title="Submit to result, p99", unit="µs", of=lambda r: percentile(r.to_result_us, 0.99)),
    Measure(
        key="cpu", short="CPU a task", title="CPU of the worker's processes, a task", unit="µs", of=lambda r: r.cpu_us
    ),
    Measure(
        key="memory", short="memory", title="Memory of the worker's processes", unit="MB", of=lambda r: r.memory_mb
    ),
    Measure(
        key="startup",
        short="start-up",
        title="Start of the worker's process to its first task",
        unit="s",
        of=lambda r: r.startup_s,
    ),
    Measure(
        key="submit",
        title="Tasks a second from one sender",
        unit="/s",
        of=lambda r: r.submit_rate,
        is_less_better=False,
    ),
    Measure(
        key="recovery",
        short="after a kill",
        title="kill -9 of a worker to the last second start",
        unit="s",
        of=recovery_s,
    ),
)

IN_TABLE = [measure for measure in MEASURES if measure.short]


def places(rows: Sequence[Row]) -> list[Place]:
    """Return where our rows stand, a measure each, among the others' rows that store as firmly as they or more so."""
    found = []
    for measure in MEASURES:
        for row in rows:
            mine = measure.figure(row)
            if row.peer != OURS or mine is None:
                continue
            rivals = {
                other.name: theirs.median
                for other in rows
                if other.peer != OURS
                and other.strength >= row.strength
                and (theirs := measure.figure(other)) is not None
            }
            ahead = [
                (name, value)
                for name, value in rivals.items()
                if (value < mine.median if measure.is_less_better else value > mine.median)
            ]
            ahead.sort(key=lambda pair: pair[1], reverse=not measure.is_less_better)
            found.append(Place(row=row.name, measure=measure, median=mine.median, rivals=len(rivals), ahead=ahead))
    return found


def lost(row: Row) -> int:
    """Return the tasks of a row that never ran, or never ended after a kill."""
    return sum(found.lost + (found.crash.lost if found.crash else 0) for found in row.rounds)


def doubled(row: Row) -> int:
    """Return the runs of a row that nothing called for: of no-op tasks without a kill, and beside a living worker."""
    return sum(found.repeated + (found.crash.doubled if found.crash else 0) for found in row.rounds)


def unasked(rows: Sequence[Row]) -> list[tuple[Row, str, str]]:
    """Return what rows cannot be asked for: row, title of the measure, reason."""
    return [
        (row, measure.title, row.cannot[measure.key])
        for row in rows
        if row.rounds
        for measure in MEASURES
        if measure.key in row.cannot
    ]


def words(value: float, unit: str) -> str:
    """Return a figure as a person writes it."""
    if math.isinf(value):
        return "not in time"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}{'' if unit == '/s' else ' '}{unit}"


def as_json(result: Result) -> bytes:
    """Return the run as indented JSON: every round as it was, and the figures worked out (null for no end)."""
    body = msgspec.to_builtins(result)
    for row, plain in zip(result.rows, body["rows"], strict=True):
        plain["figures"] = {
            measure.key: {"unit": measure.unit}
            | {name: None if math.isinf(value) else value for name, value in msgspec.to_builtins(figure).items()}
            for measure in MEASURES
            if (figure := measure.figure(row)) is not None
        }
        plain |= {"lost": lost(row), "doubled": doubled(row)}
    return msgspec.json.format(msgspec.json.encode(body), indent=1)
