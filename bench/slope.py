"""A straight line through measurements, and how sure its slope is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct


class Slope(Struct, frozen=True, kw_only=True):
    """How a quantity changes with another, by least squares.

    Attributes:
        per_one: Change for one more of the other.
        error: Standard error of ``per_one``; it takes measurements for independent, so it is rather too small.
        mean: Of the quantity.
    """

    per_one: float
    error: float
    mean: float

    def is_above(self, limit: float) -> bool:
        """Return whether it surely grows faster than ``limit`` for one: by more than twice the error."""
        return self.per_one - 2 * self.error > limit


def fit(points: Sequence[tuple[float, float]]) -> Slope:
    """Return the slope of ``y`` over ``x``; 0 with fewer than three points, or when all ``x`` are the same."""
    count = len(points)
    mean_x = math.fsum(x for x, _ in points) / max(1, count)
    mean_y = math.fsum(y for _, y in points) / max(1, count)
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    if count < 3 or not spread:  # two points lie on any line
        return Slope(per_one=0.0, error=math.inf, mean=mean_y)
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return Slope(per_one=slope, error=math.sqrt(rest / (count - 2) / spread), mean=mean_y)
