"""What a row is, how it is printed, and how it becomes JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct


class Side(Struct, kw_only=True):
    """One side of a comparison: a figure a round."""

    name: str
    figures: list[float] = []

    @property
    def median(self) -> float:
        """The middle figure, 0 without any."""
        return statistics.median(self.figures) if self.figures else 0.0

    @property
    def spread(self) -> float:
        """Half the distance between the extremes, as a share of the median."""
        return (max(self.figures) - min(self.figures)) / 2 / self.median if self.median else 0.0


class Row(Struct, kw_only=True):
    """One line of the table.

    Attributes:
        key: Letter of the row, for ``--rows``.
        mode: ``default`` (synced every two minutes) or ``always``, or "" where the disk has no part.
        unit: Of the figures.
        base: What is compared against; None for a figure that stands alone.
        goal: A ratio for rows with a base, else in the row's unit; None for information.
        is_less_better: Whether the ratio is ours over theirs or the reverse; times and costs want less.
    """

    key: str
    what: str
    mode: str
    concurrency: str
    unit: str
    ours: Side
    base: Side | None = None
    goal: str = ""
    note: str = ""
    is_less_better: bool = False

    @property
    def ratios(self) -> list[float]:
        """Ours against theirs, a round each: both sides of a round ran one after the other."""
        if self.base is None:
            return []
        pairs = zip(self.ours.figures, self.base.figures, strict=False)
        return [ours / base if base else 0.0 for ours, base in pairs]


def as_json(facts: dict[str, Any], rows: Sequence[Row], notes: Sequence[str]) -> bytes:
    """Return machine facts and rows as indented JSON, with medians and ratios worked out."""
    body = {
        "facts": facts,
        "rows": [
            msgspec.to_builtins(row)
            | {
                "ours_median": row.ours.median,
                "base_median": row.base.median if row.base else None,
                "ratios": row.ratios,
                "ratio": statistics.median(row.ratios) if row.ratios else None,
            }
            for row in rows
        ],
        "notes": list(notes),
    }
    return msgspec.json.format(msgspec.json.encode(body), indent=1)


def render(rows: Sequence[Row]) -> str:
    """Return the table as text; ± is half the distance between the extremes of the rounds."""
    head = ("row", "what", "sync", "in flight", "ours", "baseline", "ratio", "goal")
    return columns([head, *(_cells(row) for row in rows)])


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text in columns, a rule below the first."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = ""
    if row.ratios:
        low, high = min(row.ratios), max(row.ratios)
        ratio = f"{statistics.median(row.ratios):.2f}x ({low:.2f}-{high:.2f})"
    base = f"{_figure(row.base)} {row.base.name}" if row.base else row.note
    return (row.key, row.what, row.mode, row.concurrency, f"{_figure(row.ours)} {row.unit}", base, ratio, row.goal)


def _figure(side: Side) -> str:
    digits = 0 if side.median >= 1000 else 1 if side.median >= 10 else 2
    more = f" ±{side.spread:.0%}" if len(side.figures) > 1 else ""
    return f"{side.median:,.{digits}f}{more}"
