"""A function becomes a tool: its schema from hints and docstring, and arguments checked against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct
from pydantic import BaseModel

import callboard
from callboard.agents.errors import ToolArgumentError, ToolDefinitionError
from callboard.agents.tools.base import Tool
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool
from callboard.agents.tools.schema import arguments_of, described, shape_of
from callboard.runtime.capability import Capability, capability, find_capabilities


class Place(Struct):
    city: str
    zip: int = 0


@dataclass
class Span:
    days: int


class Model(BaseModel):
    name: str


@tool
def book(  # noqa: D417, PLR0917 - two undescribed, and many
    where: Place,
    how: Literal["train", "car"],
    count: Annotated[int, Meta(ge=1)],
    context: ToolContext,
    span: Span | None = None,
    tags: list[str] = [],  # noqa: B006 - the default is the function's own
) -> str:
    """Book a journey.

    Second paragraph: with a colon.

    Args:
        where: The place,
            on two lines.
        how (str): How to go.
        count: How many.
        context: Not for models.

    Returns:
        where: not this.
    """
    return f"{where.city} {how} {count} {span} {tags} {context.key}"


@tool(name="plain", description="Said here.", pool="tool", action="write", timeout_s=5)
async def other(a: float, model: Model) -> float:
    return a + len(model.name)


def arguments(one: Tool, text: str) -> dict[str, Any]:
    return arguments_of(shape_of(one.function, one.name), text, tool=one.name)


def test_the_schema_comes_from_hints_and_docstring() -> None:
    assert book.description == "Book a journey.\n\nSecond paragraph: with a colon."
    found = book.parameters
    assert found["type"] == "object"
    assert found["additionalProperties"] is False
    assert found["required"] == ["where", "how", "count"]
    assert set(found["properties"]) == {"where", "how", "count", "span", "tags"}
    assert found["properties"]["how"] == {"description": "How to go.", "enum": ["car", "train"]}
    assert found["properties"]["count"] == {"description": "How many.", "type": "integer", "minimum": 1}
    assert "The place, on two lines." in str(found["properties"]["where"])
    assert set(found["$defs"]) == {"Place", "Span"}
    assert book.spec.parameters == found


def test_a_tool_is_a_plain_function_too() -> None:
    context = ToolContext(key="k", address="a/b")
    assert book(Place("Rome"), "car", 1, context) == "Rome car 1 None [] k"


def test_options_are_kept_and_have_safe_defaults() -> None:
    assert (book.is_repeatable, book.action, book.category, book.pool, book.capability) == (
        True,
        "read",
        "general",
        "",
        None,
    )
    assert (other.name, other.description, other.is_repeatable, other.timeout_s) == ("plain", "Said here.", False, 5)


def test_a_pooled_tool_is_served_by_workers_of_its_pool() -> None:
    found = other.capability
    assert found is not None
    assert (found.name, found.pool, found.retry.attempts) == ("tool-plain", "tool", 1)

    class Module:
        held = other
        unpooled = book

    assert find_capabilities(Module) == [found]  # type: ignore[arg-type]


def test_a_capability_can_be_a_tool() -> None:
    @capability("twice")
    async def twice(n: int) -> int:
        """Double a number."""
        return 2 * n

    assert isinstance(twice, Capability)
    made = tool(twice)
    assert (made.name, made.description, made.function) == ("twice", "Double a number.", twice.function)


def test_good_arguments_come_in_their_types() -> None:
    found = arguments(book, '{"where": {"city": "Rome"}, "how": "car", "count": 2, "span": {"days": 3}}')
    assert found == {"where": Place("Rome"), "how": "car", "count": 2, "span": Span(3)}
    assert arguments(other, '{"a": 1.5, "model": {"name": "x"}}') == {"a": 1.5, "model": Model(name="x")}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"how": "car", "count": 1}', "where"),
        ('{"where": {"city": 5}, "how": "car", "count": 1}', "city"),
        ('{"where": {"city": "R"}, "how": "ship", "count": 1}', "ship"),
        ('{"where": {"city": "R"}, "how": "car", "count": 0}', ">= 1"),
        ('{"where": {"city": "R"}, "how": "car", "count": "1"}', "int"),
        ('{"where": {"city": "R"}, "how": "car", "count": 1, "context": {}}', "context"),
        ('{"where": {"city": "R"}, "how": "car", "count": 1, "more": 1}', "more"),
        ('{"where": {"city": "R"}, "how": "car", "count": NaN}', "malformed"),
        ('{"where": {"city": "R"}, "how": "car", "count": 1e999}', ""),
        ("[1]", "object"),
        ("null", "object"),
        ("", "where"),
        ("{", "truncated"),
        ('{} {"b": 2}', ""),
        ("[" * 100_000, ""),
        ("\ud800", ""),
        ('"' + "x" * 2_000_000 + '"', "at most"),
    ],
    ids=range(17),
)
def test_bad_arguments_are_told_in_words(text: str, why: str) -> None:
    with pytest.raises(ToolArgumentError) as caught:
        arguments(book, text)
    assert why in str(caught.value)
    assert "book" in str(caught.value)


def test_a_model_s_own_check_counts() -> None:
    with pytest.raises(ToolArgumentError, match="name"):
        arguments(other, '{"a": 1, "model": {"name": 5}}')


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_no_text_of_a_model_is_more_than_a_bad_argument(text: str) -> None:
    try:
        arguments(book, text)
    except ToolArgumentError:
        return


def no_docstring(a: int) -> int:
    return a


def no_hint(a) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Say."""
    return a  # type: ignore[no-any-return]


def variadic(*a: int) -> int:
    """Say."""
    return len(a)


def positional(a: int, /) -> int:
    """Say."""
    return a


def unresolved(a: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
    """Say."""
    return 1


class Opaque:
    pass


def opaque(a: Opaque) -> int:
    """Say."""
    return 1


@pytest.mark.parametrize("function", [no_docstring, no_hint, variadic, positional, unresolved, opaque, lambda: 1])
def test_what_cannot_be_a_tool_is_refused_at_once(function: Any) -> None:  # noqa: ANN401 - whatever it is
    with pytest.raises(ToolDefinitionError):
        tool(function)


@pytest.mark.parametrize("options", [{"name": "Bad Name"}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ToolDefinitionError):
        tool(**options)(book.function)


def test_the_public_name_is_the_decorator() -> None:
    assert callboard.tool is tool
    assert callboard.ToolContext is ToolContext


def test_a_docstring_of_another_style_is_taken_whole() -> None:
    def numpy(a: int) -> int:
        """Say it.

        a : int
            A number.
        """
        return a

    assert described(numpy) == ("Say it.\n\na : int\n    A number.", {})
