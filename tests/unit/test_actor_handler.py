"""Methods that take messages or times: which there are, and which are refused."""

from __future__ import annotations

import functools
import types
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypedDict, TypeVar

import pydantic
import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.handler import every, on
from callboard.runtime.errors import ActorDefinitionError, ConfigError
from callboard.runtime.retry import RetryPolicy


class Ask(Struct):
    text: str


class Reply(Struct):
    text: str
    turn: int


class Greeter(Actor):
    @on
    async def hello(self, m: Ask) -> Reply:
        return Reply(m.text, 0)


class Point(TypedDict):
    x: int


@dataclass
class Line:
    length: int


class Model(pydantic.BaseModel):
    size: int


M = TypeVar("M")


class Box(Struct, Generic[M]):
    content: M


def test_every_kind_of_message_type_is_named_after_its_class() -> None:
    class Taker(Actor):
        @on
        def struct(self, m: Ask) -> None: ...

        @on
        def typed(self, m: Point) -> None: ...

        @on
        def data(self, m: Line) -> None: ...

        @on
        def model(self, m: Model) -> None: ...

        @on
        def generic(self, m: Box[int]) -> None: ...

        @on
        def text(self, m: str) -> None: ...

        @on
        def number(self, m: Annotated[int, "why"]) -> None: ...

        @on
        def mapping(self, m: dict[str, Any]) -> None: ...

        @on
        def anything(self, m: Any) -> None: ...  # noqa: ANN401 - said by the user

    kind = ActorType.of(Taker)
    plain = {name for name, handler in kind.handlers.items() if not handler.is_named}
    assert plain == {"str", "int", "dict", "any"}
    assert set(kind.handlers) - plain == {"Ask", "Point", "Line", "Model", "Box"}


def test_a_union_takes_each_of_its_members() -> None:
    class Both(Actor):
        @on
        def take(self, m: Ask | Line) -> None: ...

    handlers = ActorType.of(Both).handlers
    assert sorted(handlers) == ["Ask", "Line"]
    assert {handler.method for handler in handlers.values()} == {"take"}


def test_options_of_a_handler_are_kept() -> None:
    policy = RetryPolicy(attempts=7)

    class Busy(Actor):
        @on(name="ask.v1", read_only=True, timeout_s=5, droppable=True, retry=policy)
        def look(self, m: Ask) -> None: ...

    handler = ActorType.of(Busy).handlers["ask.v1"]
    assert (handler.read_only, handler.timeout_s, handler.droppable, handler.retry) == (True, 5, True, policy)
    assert not handler.is_async


def test_a_handler_may_stream() -> None:
    class Talker(Actor):
        @on
        async def talk(self, m: Ask) -> AsyncIterator[str]:
            yield m.text

    handler = ActorType.of(Talker).handlers["Ask"]
    assert handler.is_stream
    assert handler.is_async


def test_decorators_around_a_handler_are_seen_through() -> None:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return await function(*args, **kwargs)

        return run

    class Wrapped(Actor):
        @on
        @logged
        async def above(self, m: Ask) -> None: ...

        @logged
        @on
        async def below(self, m: Line) -> None: ...

    handlers = ActorType.of(Wrapped).handlers
    assert sorted(handlers) == ["Ask", "Line"]
    assert all(handler.is_async for handler in handlers.values())


def test_two_handlers_of_one_message_are_refused_when_the_class_is_made() -> None:
    with pytest.raises(ActorDefinitionError, match="Twice: one and two both handle 'Ask': remove one"):

        class Twice(Actor):
            @on
            def one(self, m: Ask) -> None: ...

            @on
            def two(self, m: Ask) -> None: ...


def test_two_handlers_of_a_type_that_is_defined_later_are_refused_as_well() -> None:
    with pytest.raises(ActorDefinitionError, match="both handle 'Later'"):

        class Twice(Actor):
            @on
            def one(self, m: Later) -> None: ...

            @on
            def two(self, m: Ask | Later) -> None: ...


class Early(Actor):
    """Names a message that is defined further down."""

    @on
    def take(self, m: Later) -> None: ...


class Later(Struct):
    x: int


def test_a_message_type_may_be_defined_after_the_class() -> None:
    assert list(ActorType.of(Early).handlers) == ["Later"]


def test_a_message_type_may_stand_inside_the_class() -> None:
    class Home(Actor):
        class Knock(Struct):
            times: int = 1

        @on
        def open(self, m: Knock) -> None: ...

    class Away(Home, name="away"):
        pass

    assert list(ActorType.of(Home).handlers) == ["Knock"]
    assert list(ActorType.of(Away).handlers) == ["Knock"]


def test_handlers_of_a_mixin_count() -> None:
    class Pings:
        @on
        def ping(self, m: Line) -> str:
            return "pong"

    class Mixed(Pings, Greeter):
        pass

    assert sorted(ActorType.of(Mixed).handlers) == ["Ask", "Line"]


def test_an_override_says_what_it_is() -> None:
    class Other(Greeter, name="other"):
        @on
        async def hello(self, m: Ask) -> Reply:
            return Reply("other", 0)

    class Mute(Greeter, name="mute"):
        hello = None  # type: ignore[assignment]

        @on
        def line(self, m: Line) -> None: ...

    assert ActorType.of(Other).handlers["Ask"].function is Other.hello
    assert list(ActorType.of(Mute).handlers) == ["Line"]
    with pytest.raises(ActorDefinitionError, match=r"Forgot\.hello hides the handler Greeter\.hello: put @on above"):

        class Forgot(Greeter, name="forgot"):
            async def hello(self, m: Ask) -> Reply:
                return Reply("forgot", 0)


def _with(function: Callable[..., Any]) -> type[Actor]:
    return types.new_class("Bad", (Actor,), {}, lambda names: names.update(take=function))


def test_methods_that_cannot_be_handlers_are_refused_with_the_reason() -> None:
    def nothing(self: object) -> None: ...
    def bare(self, m) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001
    def two(self: object, m: Ask, n: Ask) -> None: ...
    def keyword(self: object, *, m: Ask) -> None: ...
    def many(self: object, *m: Ask) -> None: ...
    def parts(self: object, m: Ask) -> Iterator[int]:
        yield 1

    def variable(self: object, m: M) -> None: ...

    for function, said in (
        (nothing, "takes no message; give it one parameter"),
        (bare, "does not say which message it handles; annotate m"),
        (two, "needs n as well, but a message brings one value"),
        (keyword, "takes no message"),
        (many, "takes no message"),
        (parts, "is a generator; write async def"),
        (variable, "is the type variable ~M; name a real type"),
    ):
        with pytest.raises(ActorDefinitionError, match=rf"Bad\.take.*{said}"):
            _with(on(function))


def test_further_parameters_need_a_default() -> None:
    class Handy(Actor):
        @on
        def take(self, m: Ask, *, dry: bool = False) -> None: ...

    assert list(ActorType.of(Handy).handlers) == ["Ask"]


def test_an_annotation_that_names_nothing_is_reported_at_the_start() -> None:
    class Lost(Actor):
        @on
        def take(self, m: Nowhere) -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ActorDefinitionError, match=r"Lost\.take: its message type 'Nowhere' cannot be resolved"):
        ActorType.of(Lost)


def test_an_annotation_that_cannot_be_decoded_into_is_reported() -> None:
    class Weird:
        pass

    class Odd(Actor):
        @on
        def take(self, m: dict[str, list[Weird]]) -> None: ...

    class Mixed(Struct):
        either: list[int] | set[int]

    class Odder(Actor):
        @on
        def take(self, m: Mixed) -> None: ...

    with pytest.raises(ActorDefinitionError, match=r"Odd\.take: its message type dict cannot .*: .*Weird is no Struct"):
        ActorType.of(Odd)
    with pytest.raises(ActorDefinitionError, match=r"Odder\.take: its message type \w+ cannot be decoded into"):
        ActorType.of(Odder)


def test_a_handler_must_not_hide_what_turns_call() -> None:
    with pytest.raises(ActorDefinitionError, match=r"Bad\.tell cannot be a handler: .*self\.tell; rename the method"):
        types.new_class("Bad", (Greeter,), {}, lambda names: names.update(tell=on(lambda self, m: None)))
    with pytest.raises(ActorDefinitionError, match=r"Bad\.on_start cannot be a handler: .* a hook"):
        types.new_class("Bad", (Greeter,), {}, lambda names: names.update(on_start=on(lambda self, m: None)))


def test_decorators_are_checked_where_they_stand() -> None:
    def take(self: object, m: Ask) -> None: ...
    def either(self: object, m: Ask | Line) -> None: ...

    with pytest.raises(ConfigError, match="@on: timeout_s is 0"):
        on(timeout_s=0)
    with pytest.raises(ConfigError, match="@on: retry is int"):
        on(retry=3)  # type: ignore[call-overload]
    for name in ("", "a\nb", "x" * 129):
        with pytest.raises(ActorDefinitionError, match="that can be printed"):
            on(name=name)
    with pytest.raises(ActorDefinitionError, match="decorated twice"):
        on(on(take))
    with pytest.raises(ActorDefinitionError, match="above a plain method, not above staticmethod"):
        on(staticmethod(take))
    with pytest.raises(ActorDefinitionError, match="one name cannot stand for the 2 types"):
        _with(on(name="x")(either))


def test_a_kept_decorator_may_stand_above_several_methods() -> None:
    reading = on(read_only=True)

    class Reader(Actor):
        @reading
        def one(self, m: Ask) -> None: ...

        @reading
        def two(self, m: Line) -> None: ...

    assert sorted(ActorType.of(Reader).handlers) == ["Ask", "Line"]


# --- periodic handlers


def test_periodic_handlers_have_the_brokers_rule() -> None:
    class Clock(Actor):
        @every("1h", timeout_s=30)
        async def hourly(self) -> None: ...

        @every(cron="0 0 7 * * *", time_zone="Europe/Berlin")
        def morning(self) -> None: ...

        @every(90)
        def often(self) -> str:
            return "ticked"

    kind = ActorType.of(Clock)
    assert {name: (h.rule, h.time_zone) for name, h in kind.every.items()} == {
        "every:hourly": ("@every 3600s", None),
        "every:morning": ("0 0 7 * * *", "Europe/Berlin"),
        "every:often": ("@every 90s", None),
    }
    assert not kind.handlers
    assert kind.every["every:hourly"].timeout_s == 30
    handler, data = kind.select("every:often", b"null", None)
    assert handler(kind.new(Address("clock", "x")), kind.decode(handler, None, data)) == "ticked"


def test_a_periodic_handler_is_checked() -> None:
    def takes(self: object, m: Ask) -> None: ...

    async def streams(self: object) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(ActorDefinitionError, match=r"Bad\.take needs m as well, but nothing is passed"):
        _with(every("1h")(takes))
    with pytest.raises(ActorDefinitionError, match=r"Bad\.take is periodic and yields"):
        _with(every("1h")(streams))
    with pytest.raises(ActorDefinitionError, match="@every needs to know how often"):
        every(takes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="either a span"):
        every()
    with pytest.raises(ConfigError, match="either a span"):
        every("1h", cron="@daily")
    with pytest.raises(ConfigError, match="time_zone belongs to cron"):
        every("1h", time_zone="Europe/Berlin")
    with pytest.raises(ConfigError, match="shortest is 1s"):
        every("10ms")
