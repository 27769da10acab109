"""What a run found, row by row, and the arithmetic over its rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, field

from bench.peers.measure import Round


class Row(Struct, kw_only=True):
    """A row of the report: a peer at one durability.

    Attributes:
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
    reason: str = ""
    rounds: list[Round] = []

    def figure(self, of: Callable[[Round], float | None]) -> Figure | None:
        """Return median and extremes of one measure over the rounds that have it."""
        found = [value for value in map(of, self.rounds) if value is not None]
        return Figure(median=statistics.median(found), low=min(found), high=max(found)) if found else None


class Figure(Struct, frozen=True, kw_only=True):
    """A measure over the rounds."""

    median: float
    low: float
    high: float


class Result(Struct, kw_only=True):
    """A whole run."""

    facts: dict[str, Any]
    plan: dict[str, Any]
    rows: list[Row] = field(default_factory=list)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that ``share`` of them do not exceed; None without any."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered), -int(-len(ordered) * share // 1)) - 1)]
