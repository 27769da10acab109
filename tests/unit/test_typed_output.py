"""Answers in a type: the schema, the value between the words, and an error that a model can learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import Struct
from pydantic import BaseModel

from callboard.agents.errors import ModelOutputError
from callboard.agents.llm import typed


class Step(Struct):
    title: str
    after: list[str] = []


class Plan(Struct):
    steps: list[Step]


class Tree(Struct):
    name: str
    inner: list[Tree] = []


@dataclass
class Point:
    x: int
    y: int


class Shop(BaseModel):
    name: str
    open: bool = True


@pytest.mark.parametrize("kind", [Plan, Tree, Point, Shop, list[Step], int, dict[str, int], str])
def test_every_schema_is_an_object_without_a_reference_at_its_top(kind: Any) -> None:  # noqa: ANN401 - a type
    found = typed.schema(kind)
    assert found["type"] == "object"
    assert "$ref" not in found


def test_a_type_without_a_schema_is_refused() -> None:
    with pytest.raises(TypeError):
        typed.schema(object())


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ('{"x": 1, "y": 2}', Point, Point(1, 2)),
        ('Here it is:\n```json\n{"x": 1, "y": 2}\n```\nAnything else?', Point, Point(1, 2)),
        ('Sure! {"x": 1, "y": 2} I hope this helps.', Point, Point(1, 2)),
        ('{"value": [1, 2]}', list[int], [1, 2]),
        ("[1, 2]", list[int], [1, 2]),
        ("Well: [1, 2].", list[int], [1, 2]),
        ('{"value": 7}', int, 7),
        ('{"value": 7}', dict[str, int], {"value": 7}),
        ('{"name": "Bread"}', Shop, Shop(name="Bread")),
        ('{"name": "a", "inner": [{"name": "b"}]}', Tree, Tree("a", [Tree("b")])),
    ],
)
def test_the_value_is_found(text: str, kind: Any, value: object) -> None:  # noqa: ANN401 - a type
    assert typed.parse(text, kind) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("I do not know.", "no Point"),
        ('{"x": 1}', "missing required field `y`"),
        ('{"x": "one", "y": 2}', r"Expected `int`, got `str` - at `\$.x`"),
        ('{"x": 1, "y": 2', "no Point"),
        ("", "no Point"),
        ("[" * 5000, "no Point"),
    ],
)
def test_what_is_none_is_an_error_that_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ModelOutputError, match=said) as caught:
        typed.parse(text, Point, model="m/x")
    assert caught.value.text == text[:2000]
    assert str(caught.value) in typed.complaint(caught.value)
