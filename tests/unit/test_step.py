"""What a step is known by, and how its value is read back."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pydantic
import pytest

from callboard.runtime import codec
from callboard.runtime.actor import function, step
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.capability import capability
from callboard.runtime.errors import DecodeError, EncodeError, InvalidNameError

if TYPE_CHECKING:
    from nowhere import Client  # type: ignore[import-not-found]


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclass
class Line:
    ends: tuple[Point, Point]


class Tags(pydantic.BaseModel):
    tags: set[str]
    url: pydantic.HttpUrl | None = None


# --- identity


def test_equal_arguments_have_equal_digests_whatever_their_order() -> None:
    assert step.digest("s", [(), {"a": 1, "b": 2}]) == step.digest("s", [[], {"b": 2, "a": 1}])
    assert step.digest("s", {"x": {"b", "a"}}) == step.digest("s", {"x": {"a", "b"}})


def test_other_arguments_have_other_digests() -> None:
    given: list[object] = [1, 1.5, "1", None, [1], {"a": 1}, Point(1), Line((Point(1), Point(2))), b"1", ""]
    assert len({step.digest("s", value) for value in given}) == len(given)
    assert step.digest("s", 1) != step.digest("s", 1, parent="outer.0.0")


SCRIPT = """
import pydantic, msgspec
from callboard.runtime.actor import step
class Tags(pydantic.BaseModel):
    tags: set[str]
    url: pydantic.HttpUrl | None = None
words = {"one", "two", "three", "four", "five"}
print(step.digest("s", [words, frozenset(words), {w: words for w in words}]), step.digest("s", Tags(tags=words)),
      step.digest("s", [Tags(tags=words, url="https://a.example/")]))
"""


def test_a_digest_is_the_same_in_every_process() -> None:
    """Or a takeover would find none of the records: sets have another order in each."""
    found = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


@pytest.mark.parametrize("value", [object(), float("nan"), [float("inf")], {1, "a"}, {1: object}, "\ud800"])
def test_what_has_no_form_in_json_wants_a_key(value: object) -> None:
    with pytest.raises(EncodeError, match=r"step 's'.*key="):
        step.digest("s", value)


def test_canonical_json_is_json() -> None:
    value = {"b": [Point(1)], "a": Tags(tags={"x"}, url=pydantic.HttpUrl("https://a.example/"))}
    assert msgspec.json.decode(codec.canonical(value)) == msgspec.json.decode(codec.encode(value))


@pytest.mark.parametrize("name", ["a", "a.b/c d", "é*>", "~ask"])
def test_an_id_is_read_back(name: str) -> None:
    entry = f"{step.escaped(name)}.{step.digest(name, 1)}.12"
    assert step.parse_id(step.id_of("greeter/a/b.c/7", entry)) == (Address("greeter", "a/b.c"), 7, entry)


@pytest.mark.parametrize(
    "text", ["", "a", "a/b", "a/b/c", "a/b/7", "a/b/7/x", "a/b/x/n.d.0", "b/7/n.d.0", "a/b/-7/n.d.0"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidNameError):
        step.parse_id(text)


def test_a_record_is_read_back() -> None:
    found = StepRecord(
        name="s",
        kind="done",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        worker="w",
        args_digest="0",
        value=msgspec.Raw(b"[1]"),
    )
    assert step.decode(step.encode(found)) == found


# --- types


class Service:
    def bound(self) -> Point:
        return Point(1)

    async def __call__(self) -> Point:
        return Point(1)


def wrapped(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def outer(*args: object) -> Any:  # noqa: ANN401 - whatever it wraps
        return inner(*args)

    return outer


async def asynchronous() -> Point:
    return Point(1)


def plain() -> Point:
    return Point(1)


def awaitable() -> Awaitable[Point]:
    return asynchronous()


@capability
async def capable() -> Point:
    return Point(1)


def foreign(client: Client | None = None) -> Point:
    """Return a point; a parameter's type is there for type checkers only."""
    return Point(1)


def constrained() -> Annotated[list[Point], msgspec.Meta(max_length=1)]:
    return [Point(1)]


@pytest.mark.parametrize(
    "called",
    [
        plain,
        asynchronous,
        awaitable,
        foreign,
        capable,
        wrapped(asynchronous),
        wrapped(plain),
        functools.partial(plain),
        functools.partial(asynchronous),
        Service().bound,
        Service(),
        functools.partial(Point, 1),
    ],
)
async def test_the_annotation_of_whatever_is_called_says_the_type(called: Callable[..., object]) -> None:
    value = await function.call(called, (), {})
    decode = function.reader(called, None, step="s")
    assert value == Point(1)
    assert function.read(decode, codec.encode(value), step="s") == value


async def test_a_plain_function_does_not_hold_up_the_loop() -> None:
    loop = asyncio.get_running_loop()
    meet: asyncio.Future[int] = loop.create_future()

    def blocks() -> int:
        return asyncio.run_coroutine_threadsafe(_wait(meet), loop).result()

    running = asyncio.create_task(function.call(blocks, (), {}))
    loop.call_soon(meet.set_result, 5)
    assert await running == 5


async def _wait(future: asyncio.Future[int]) -> int:
    return await future


def test_constraints_count() -> None:
    decode = function.reader(constrained, None, step="s")
    with pytest.raises(DecodeError, match="step 's'"):
        function.read(decode, b'[{"x":1},{"x":2}]', step="s")


def test_without_an_annotation_that_can_be_resolved_values_stay_plain() -> None:
    class Local(msgspec.Struct):
        x: int

    def local() -> Local:
        return Local(1)

    for called in (local, lambda: 1, str.upper, len):
        decode = function.reader(called, None, step="s")
        assert function.read(decode, b'{"x":1}', step="s") == {"x": 1}
    assert function.read(function.reader(local, Local, step="s"), b'{"x":1}', step="s") == Local(1)


def test_a_type_that_cannot_be_read_is_refused_before_the_step_runs() -> None:
    class Other(msgspec.Struct):
        x: int

    with pytest.raises(EncodeError, match="returns="):
        function.reader(plain, Point | Other, step="s")


def test_a_type_that_only_its_subclasses_can_be_read_for_is_an_error_of_reading() -> None:
    class Port:
        pass

    decode = function.reader(plain, Port, step="s")
    with pytest.raises(DecodeError, match="The record stands"):
        function.read(decode, b"{}", step="s")
