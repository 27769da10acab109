"""Subject patterns and transforms, as the broker reads them."""

from __future__ import annotations

import pytest

from callboard.runtime.bus.pattern import Transform, matches, overlaps, partition_of
from callboard.runtime.errors import TopologyError


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("a.b", "a.b", True),
    ],
)
def test_patterns_match_as_the_broker_matches(pattern: str, subject: str, *, expected: bool) -> None:
    assert matches(pattern, subject) is expected


def test_patterns_overlap_when_a_subject_falls_under_both() -> None:
    assert overlaps("a.*", "*.b")
    assert overlaps("a.>", "a.b.c")
    assert not overlaps("a.*", "a.b.c")
    assert not overlaps("a.b", "a.c")


def test_a_transform_may_not_name_a_missing_wildcard() -> None:
    with pytest.raises(TopologyError):
        Transform("a.*", "b.{{wildcard(2)}}")


def test_partitions_are_those_of_the_real_broker() -> None:
    """Read back from nats-server 2.15.1."""
    assert [partition_of(64, "greeter", key) for key in ("ann", "bob", "x")] == [0, 12, 63]
