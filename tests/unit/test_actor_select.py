"""Which handler takes a message, and how unknown fields travel on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.message import Originals, Shape, name_of, type_name_of
from callboard.runtime.errors import DecodeError, UnknownMessageError

MSGPACK = "application/msgpack"


class Ask(Struct):
    text: str


class Renamed(Struct, rename="camel"):
    long_name: str


class Move(Struct):
    x: int
    y: int = 0


class Jump(Struct):
    x: int
    high: bool = False


class Tagged(Struct, tag="tagged", tag_field="kind"):
    size: int


class Stop(Struct):
    reason: str = ""


class Point(TypedDict):
    lat: float


@dataclass
class Line:
    length: int


class Model(pydantic.BaseModel):
    size: int = pydantic.Field(alias="howBig")


class Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int


class Typed(Actor):
    @on
    def on_ask(self, m: Ask) -> None: ...

    @on
    def on_renamed(self, m: Renamed) -> None: ...

    @on
    def on_move(self, m: Move | Jump) -> None: ...

    @on
    def on_tagged(self, m: Tagged) -> None: ...

    @on
    def on_point(self, m: Point) -> None: ...

    @on
    def on_line(self, m: Line) -> None: ...

    @on
    def on_model(self, m: Model) -> None: ...

    @on(name="stop.v2")
    def on_stop_order(self, m: Stop) -> None: ...


class Open(Typed):
    @on
    def on_text(self, m: str) -> None: ...

    @on
    def on_anything(self, m: Any) -> None: ...  # noqa: ANN401 - said by the user

    @on
    def on_mapping(self, m: dict[str, Any]) -> None: ...


class Single(Actor):
    @on
    def only(self, m: Ask) -> None: ...


def _pick(cls: type[Actor], body: object, *, name: str | None = None, content_type: str | None = None) -> str:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return ActorType.of(cls).select(name, data, content_type)[0].name


# --- by name


def test_the_header_wins_over_the_body() -> None:
    assert _pick(Typed, {"x": 1, "y": 2}, name="Ask") == "Ask"
    assert _pick(Typed, {"type": "Move", "data": {"x": 1}}, name="Ask") == "Ask"


def test_a_body_may_say_its_type() -> None:
    kind = ActorType.of(Typed)
    handler, data = kind.select(None, b' {"id": 7, "data": {"x": 1}, "type": "Jump"} ', None)
    assert (handler.name, data) == ("Jump", b'{"x": 1}')
    assert kind.decode(handler, None, data) == Jump(1)
    packed = msgspec.msgpack.encode({"type": "Ask", "data": {"text": "a"}})
    handler, data = kind.select(None, packed, MSGPACK)
    assert kind.decode(handler, None, data, MSGPACK) == Ask("a")


def test_a_body_of_another_type_is_no_envelope() -> None:
    assert _pick(Open, {"type": "Nothing", "data": {}}) == "dict"
    assert _pick(Open, {"type": 5, "data": {}}) == "dict"


def test_a_handler_with_a_name_of_its_own_goes_by_its_class_too() -> None:
    assert _pick(Typed, {}, name="stop.v2") == "stop.v2"
    assert _pick(Typed, {}, name="Stop") == "stop.v2"

    class Versions(Actor):
        @on(name="stop.v1")
        def one(self, m: Stop) -> None: ...

        @on(name="stop.v2")
        def two(self, m: Stop) -> None: ...

    # the class alone would not say which
    with pytest.raises(UnknownMessageError):
        _pick(Versions, {}, name="Stop")


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(UnknownMessageError, match="single has no handler for 'Bid'; it handles Ask") as caught:
        _pick(Single, {"text": "x"}, name="Bid")
    assert caught.value.handlers == ("Ask",)


def test_a_name_that_is_nearly_right_is_told_which_was_meant() -> None:
    with pytest.raises(UnknownMessageError, match=r"no handler for 'Jmup'; .* - did you mean Jump\? Send"):
        _pick(Typed, {"x": 1}, name="Jmup")
    with pytest.raises(UnknownMessageError, match=r"Model, .*, stop\.v2\. Send"):
        _pick(Typed, {"x": 1}, name="Quite-Another")


def test_who_named_no_type_learns_how_to_name_one() -> None:
    with pytest.raises(UnknownMessageError) as caught:
        _pick(Typed, {"x": 1, "z": 1})
    said = str(caught.value)
    # in Python first, where no header is seen, then on the wire
    assert said.index("an object of such a class") < said.index('type="Ask"') < said.index('{"type": "Ask", "data"')
    assert said.index('{"type"') < said.index("Cb-Type")


def test_a_plain_handler_takes_an_unknown_name() -> None:
    assert _pick(Open, {"x": 1}, name="Bid") == "dict"
    assert _pick(Open, "word", name="Bid") == "str"
    assert _pick(Open, [1], name="Bid") == "any"
    assert _pick(Open, b"", name="Bid") == "any"


# --- by shape


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"text": "x"}, "Ask"),
        ({"longName": "x"}, "Renamed"),
        ({"x": 1, "y": 2}, "Move"),
        ({"x": 1, "high": True}, "Jump"),
        ({"kind": "tagged", "size": 1}, "Tagged"),
        ({"lat": 1.5}, "Point"),
        ({"length": 1}, "Line"),
        ({"howBig": 3}, "Model"),
        ({"reason": "late"}, "stop.v2"),
        (b"", "stop.v2"),
        ({}, "stop.v2"),
    ],
)
def test_the_only_type_that_fits_exactly_takes_it(body: object, name: str) -> None:
    assert _pick(Typed, body) == name
    if body:
        assert _pick(Typed, msgspec.msgpack.encode(body), content_type=MSGPACK) == name


def test_two_types_that_fit_are_named() -> None:
    with pytest.raises(UnknownMessageError, match=r"does not say its type and fits Jump and Move; .*Cb-Type"):
        _pick(Typed, {"x": 1})


@pytest.mark.parametrize("body", [{"x": 1, "z": 1}, {"text": 1}, {"text": "x", "more": 1}, [1], "x", 5, None])
def test_what_fits_no_type_is_told_which_there_are(body: object) -> None:
    with pytest.raises(UnknownMessageError, match="fits no handler exactly; it handles Ask, Jump, Line, Model, Move"):
        _pick(Typed, body)


def test_what_fits_no_type_goes_to_a_plain_handler() -> None:
    assert _pick(Open, {"text": "x", "more": 1}) == "dict"
    assert _pick(Open, "x") == "str"
    assert _pick(Open, 5) == "any"


def test_the_only_handler_takes_everything_and_unknown_fields() -> None:
    kind = ActorType.of(Single)
    handler, data = kind.select(None, b'{"text":"x","more":[1]}', None)
    assert kind.decode(handler, None, data) == Ask("x")
    with pytest.raises(DecodeError, match=r"single, message Ask: .*`\$\.text`"):
        kind.decode(handler, None, b'{"text":5}')


@pytest.mark.parametrize(
    ("body", "content_type"), [(b"{{", None), (b"\xff", None), (b"\xc1", MSGPACK), (b"x", "image/png")]
)
def test_a_malformed_body_is_a_decode_error(body: bytes, content_type: str | None) -> None:
    with pytest.raises(DecodeError):
        ActorType.of(Typed).select(None, body, content_type)


def test_a_type_whose_own_code_fails_is_a_decode_error() -> None:
    class Fussy(Struct):
        x: int

        def __post_init__(self) -> None:
            raise KeyError(self.x)

    with pytest.raises(DecodeError, match="the payload does not fit Fussy"):
        Shape(Fussy).decode(b'{"x":1}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(["text", "longName", "x", "y", "high", "size", "kind", "lat", "length", "type", "data", "zz"]),
    JSON | st.sampled_from(["Ask", "Move"]),
    max_size=3,
)


@pytest.mark.property
@given(FIELDS | JSON, st.sampled_from([None, "Ask", "Stop", "Bid", "every:x"]))
def test_any_body_is_taken_or_refused_in_words(body: object, name: str | None) -> None:
    data = msgspec.json.encode(body)
    for cls in (Typed, Single):
        try:
            handler, inner = ActorType.of(cls).select(name, data, None)
        except UnknownMessageError:
            continue
        assert handler.name in ActorType.of(cls).handlers
        assert inner in data
    # a handler of anything leaves nothing over but what fits two others; what is picked by shape can be decoded
    try:
        handler, inner = ActorType.of(Open).select(name, data, None)
    except UnknownMessageError:
        # the test below says when
        assert name is None
        return
    if name is None and inner == data:
        ActorType.of(Open).decode(handler, None, inner)


def test_what_fits_two_handlers_is_refused_also_beside_a_handler_of_anything() -> None:
    with pytest.raises(UnknownMessageError, match="fits Jump and Move"):
        ActorType.of(Open).select(None, b'{"x":0}', None)


@pytest.mark.property
@given(st.integers(-9, 9), st.integers(-9, 9), st.dictionaries(st.text(max_size=3), JSON, max_size=2))
def test_picking_by_shape_is_picking_by_name_where_only_one_fits(x: int, y: int, more: dict[str, object]) -> None:
    body = {**more, "x": x, "y": y}
    kind = ActorType.of(Typed)
    if set(body) == {"x", "y"}:
        assert kind.select(None, msgspec.json.encode(body)) == kind.select("Move", msgspec.json.encode(body))
    else:
        with pytest.raises(UnknownMessageError):
            kind.select(None, msgspec.json.encode(body))


# --- names


def test_names_on_the_wire() -> None:
    assert [name_of(kind) for kind in (Ask, Point, Any, object, dict[str, int], str, None)] == [
        "Ask",
        "Point",
        "any",
        "any",
        "dict",
        "str",
        "NoneType",
    ]
    assert [type_name_of(value) for value in (Ask("x"), Line(1), Model(howBig=1))] == ["Ask", "Line", "Model"]
    assert [type_name_of(value) for value in ({"a": 1}, "x", 5, None, [1])] == [None] * 5


# --- messages that are sent on


def _sent_on(kind: Any, data: bytes, content_type: str | None = None) -> Any:  # noqa: ANN401
    originals = Originals()
    shape = Shape(kind)
    value = shape.decode(data, content_type)
    originals.remember(value, shape, data, content_type)
    return msgspec.json.decode(originals.encode(value))


@pytest.mark.parametrize("kind", [Ask, Point, Line, Model, Loose, dict, Tagged])
def test_unknown_fields_go_along_when_the_message_is_sent_on(kind: Any) -> None:  # noqa: ANN401
    body = {
        "text": "t",
        "lat": 1.5,
        "length": 2,
        "howBig": 3,
        "size": 3,
        "a": 4,
        "kind": "tagged",
        "new": {"deep": [1]},
    }
    assert _sent_on(kind, msgspec.json.encode(body)).items() >= {"new": {"deep": [1]}}.items()


def test_known_fields_are_those_of_the_object_as_it_is_now() -> None:
    originals, shape = Originals(), Shape(Ask)
    value = shape.decode(b'{"text":"old","new":1}')
    assert isinstance(value, Ask)
    originals.remember(value, shape, b'{"text":"old","new":1}')
    value.text = "changed"
    assert originals.encode(value) == b'{"text":"changed","new":1}'


def test_other_objects_get_nothing_of_a_received_message() -> None:
    originals, shape = Originals(), Shape(Ask)
    value = shape.decode(b'{"text":"x","secret":1}')
    originals.remember(value, shape, b'{"text":"x","secret":1}')
    assert originals.encode(Ask("x")) == b'{"text":"x"}'
    assert originals.encode({"text": "x"}) == b'{"text":"x"}'
    assert originals.encode([value]) == b'[{"text":"x"}]'


def test_plain_values_are_not_remembered_for_they_may_be_one_object() -> None:
    originals = Originals()
    for kind, data in ((str, b'"a"'), (int, b"1"), (Any, b"null"), (dict, b'{"a":1}')):
        shape = Shape(kind)
        originals.remember(shape.decode(data), shape, data)
    assert originals.encode("a") == b'"a"'
    assert originals.type_name("a") is None


def test_a_received_typed_dict_goes_on_under_its_name() -> None:
    originals, shape = Originals(), Shape(Point)
    value = shape.decode(b'{"lat":1.5,"z":1}')
    originals.remember(value, shape, b'{"lat":1.5,"z":1}')
    assert originals.type_name(value) == "Point"
    assert originals.type_name({"lat": 1.5}) is None
    assert msgspec.json.decode(originals.encode(value)) == {"lat": 1.5, "z": 1}


def test_from_msgpack_the_unknown_is_lost_and_the_rest_is_not() -> None:
    assert _sent_on(Ask, msgspec.msgpack.encode({"text": "x", "new": 1}), MSGPACK) == {"text": "x"}
