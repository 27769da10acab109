"""Values to try, made from schemas."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from callboard import TaskContext, capability
from callboard.runtime.sample import sample_of


class Point(Struct):
    x: int
    y: float = 0.0


class Shape(Struct):
    name: str
    kind: Literal["round", "flat"]
    points: list[Point]
    size: Annotated[int, Meta(ge=7)]
    is_open: bool
    note: str | None
    pair: tuple[int, str]
    extra: dict[str, int]


class Chain(Struct):
    next: Chain | None


@pytest.mark.parametrize("kind", [Shape, Point, str, int, list[str], dict[str, int], Chain, None, tuple[int, ...]])
def test_a_sample_fits_its_schema(kind: object) -> None:
    sample = sample_of(msgspec.json.schema(kind))
    msgspec.convert(sample, kind)


def test_only_what_is_required_is_there() -> None:
    assert sample_of(msgspec.json.schema(Point)) == {"x": 1}


def test_a_schema_of_anything_gives_something() -> None:
    assert sample_of({}) == {}


def test_a_capability_has_the_schema_of_its_payload() -> None:
    @capability("one")
    def one(text: str, task: TaskContext) -> str:
        return text

    @capability("two")
    def two(text: str, count: int) -> str:
        return text * count

    @capability("none")
    def none() -> None: ...

    assert [sample_of(c.schema()) for c in (one, two, none)] == ["bob", {"text": "bob", "count": 1}, {}]
