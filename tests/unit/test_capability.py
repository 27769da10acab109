"""What ``@capability`` makes of a function."""

from __future__ import annotations

import types
from typing import Any

import msgspec
import pytest

from callboard.runtime.capability import capability, find_capabilities
from callboard.runtime.context import TaskContext
from callboard.runtime.errors import ConfigError, DecodeError, InvalidNameError


class Query(msgspec.Struct):
    text: str


def test_it_stays_a_plain_function_for_its_callers() -> None:
    @capability("double")
    def double(x: int) -> int:
        """Twice."""
        return 2 * x

    assert double(4) == 8
    assert double.__doc__ == "Twice."


def test_the_name_of_the_function_serves_when_none_is_given() -> None:
    @capability
    def count_words(text: str) -> int:
        return len(text.split())

    assert count_words.name == "count_words"
    assert not count_words.is_async


def test_one_parameter_takes_the_body_as_its_value() -> None:
    @capability("search")
    async def search(q: Query) -> None: ...

    assert search.bind(b'{"text":"x"}', None) == ((Query("x"),), {})


def test_several_parameters_take_an_object_with_their_names_and_keep_their_defaults() -> None:
    @capability("area")
    def area(a: int, b: int = 3) -> int:
        return a * b

    assert area.bind(b'{"a":2}', None) == ((), {"a": 2})
    assert area.bind(b'{"a":2,"b":5}', None) == ((), {"a": 2, "b": 5})
    with pytest.raises(DecodeError, match="missing required field `a`"):
        area.bind(b"{}", None)


def test_no_parameter_takes_an_empty_body() -> None:
    @capability("tick")
    def tick() -> None: ...

    assert tick.bind(b"", None) == ((), {})
    with pytest.raises(DecodeError):
        tick.bind(b"{{", None)


def test_a_context_parameter_is_not_part_of_the_body() -> None:
    @capability("watchful")
    async def watchful(ctx: TaskContext, q: Query) -> None: ...

    args, kwargs = watchful.bind(b'{"text":"x"}', None)
    assert args == ()
    assert kwargs["q"] == Query("x")
    assert set(kwargs) == {"ctx", "q"}


@pytest.mark.parametrize("name", ["", "Search", "a.b", "a b", "a*", "x" * 65, "ä", "a\n"])
def test_names_that_cannot_be_a_token_are_refused(name: str) -> None:
    with pytest.raises(InvalidNameError):
        capability(name)(lambda x: x)


def test_an_annotation_that_cannot_be_resolved_is_found_at_start() -> None:
    @capability("wrong")
    def wrong(q: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - wrong on purpose

    with pytest.raises(ConfigError, match="wrong"):
        wrong.prepare()


def test_two_capabilities_of_one_name_in_a_module_are_refused() -> None:
    module = types.ModuleType("m")
    for attribute in ("a", "b"):
        setattr(module, attribute, capability("same")(lambda x: x))
    with pytest.raises(ConfigError, match="same"):
        find_capabilities(module)


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"concurrency": 10**30}, {"timeout_s": 0}, {"timeout_s": float("nan")}]
)
def test_numbers_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        capability("any", **wrong)(lambda: None)
