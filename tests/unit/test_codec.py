"""Values to bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import msgspec
import pydantic
import pytest

from callboard.runtime import codec
from callboard.runtime.errors import DecodeError, EncodeError


class AsStruct(msgspec.Struct):
    text: str
    n: int = 1


@dataclass
class AsDataclass:
    text: str
    n: int = 1


class AsDict(TypedDict):
    text: str
    n: int


class AsModel(pydantic.BaseModel):
    text: str
    n: int = pydantic.Field(default=1, ge=0)


@pytest.mark.parametrize("kind", [AsStruct, AsDataclass, AsModel])
def test_every_kind_of_message_goes_both_ways(kind: Callable[..., object]) -> None:
    value = kind(text="x", n=3)
    assert codec.decoder(kind)(codec.encode(value)) == value


def test_typed_dict_goes_both_ways() -> None:
    assert codec.decoder(AsDict)(codec.encode({"text": "x", "n": 2})) == {"text": "x", "n": 2}


def test_models_inside_other_types_are_decoded_too() -> None:
    value = codec.decoder(list[AsModel])(b'[{"text":"a"},{"text":"b","n":2}]')
    assert value == [AsModel(text="a"), AsModel(text="b", n=2)]


def test_msgpack_is_taken_by_its_content_type() -> None:
    data = msgspec.msgpack.encode({"text": "x"})
    assert codec.decoder(AsStruct)(data, "application/msgpack") == AsStruct(text="x")


@pytest.mark.parametrize(
    ("data", "content_type", "says"),
    [
        (b"{", None, "truncated"),
        (b"", None, "truncated"),
        (b'{"text":3}', None, "Expected `str`"),
        (b'{"n":3}', None, "missing required field `text`"),
        (b'{"text":"\xff"}', None, "does not fit"),
        (b"[" * 100_000, None, "does not fit"),
        (b'{"text":"x","n":NaN}', None, "malformed"),
        (b"x", "application/x-yaml", "unknown Content-Type"),
        (b"\xc1", "application/msgpack", "does not fit"),
    ],
)
def test_bad_payloads_are_named_and_never_anything_but_a_decode_error(
    data: bytes, content_type: str | None, says: str
) -> None:
    with pytest.raises(DecodeError, match=says):
        codec.decoder(AsStruct)(data, content_type)


def test_a_models_own_rules_are_reported() -> None:
    with pytest.raises(DecodeError, match="greater than or equal to 0"):
        codec.decoder(AsModel)(b'{"text":"x","n":-1}')


@pytest.mark.parametrize("value", [object(), {"a": {object()}}, float("nan"), {"x": [1.0, float("inf")]}, {1j}])
def test_what_has_no_json_form_is_refused_and_not_silently_null(value: object) -> None:
    with pytest.raises(EncodeError):
        codec.encode(value)


def test_a_structure_that_contains_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(EncodeError):
        codec.encode(loop)


def test_an_honest_null_passes() -> None:
    assert codec.encode({"a": None}) == b'{"a":null}'
