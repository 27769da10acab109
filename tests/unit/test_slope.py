"""The slope that the soak goes by."""

from __future__ import annotations

import math

import pytest

from bench.slope import fit


def test_a_line_with_noise_has_its_slope_within_the_error() -> None:
    points = [(float(x), 5 + 0.25 * x + (-1) ** x) for x in range(200)]
    slope = fit(points)
    assert slope.per_one == pytest.approx(0.25, abs=3 * slope.error)
    assert 0 < slope.error < 0.01
    assert slope.is_above(0.2)
    assert not slope.is_above(0.26)


def test_noise_alone_does_not_grow() -> None:
    assert not fit([(float(x), 100 + 20 * (x * 7919 % 13)) for x in range(100)]).is_above(0.3)


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(0.0, 0.0), (1.0, 9.0)], [(3.0, 1.0), (3.0, 2.0), (3.0, 9.0)]])
def test_too_little_says_nothing(points: list[tuple[float, float]]) -> None:
    assert fit(points).error == math.inf
    assert not fit(points).is_above(-1e9)
