"""One envelope for everything that is sent: it survives the wire, and what cannot be sent cannot be made."""

from __future__ import annotations

import string
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from callboard.runtime import envelope
from callboard.runtime.blobs import BlobRef
from callboard.runtime.bus import header
from callboard.runtime.envelope import Envelope, lane_of, priority_of, read, seal
from callboard.runtime.errors import DecodeError, EncodeError, InputError, InvalidHeaderError, InvalidNameError

BROKEN = "\r\n\0"
LINES = ("id", "receiver", "sender", "correlation", "causation", "run", "traceparent")

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=BROKEN), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)
names = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=20).map(lambda name: f"X-{name}")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=4,
)
blobs = st.builds(
    BlobRef,
    st.text("abcdef0123456789", min_size=1, max_size=64),
    st.text("abcdef0123456789", min_size=64, max_size=64),
    st.integers(0, 10**12),
)
fields = st.fixed_dictionaries(
    {"id": texts, "receiver": texts},
    optional={
        "sender": texts,
        "kind": st.text(string.ascii_lowercase + string.digits + "_-", min_size=1, max_size=12),
        "priority": st.integers(0, 10),
        "correlation": texts,
        "causation": texts,
        "run": texts,
        "deadline": st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        "traceparent": st.just("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        "attachments": st.lists(blobs, max_size=3).map(tuple),
        "metadata": st.dictionaries(names, texts | st.just(""), max_size=4),
    },
)


def over_the_wire(sent: Envelope, **more: str) -> Envelope:
    return read(sent.body(), {**sent.headers(), **more}, receiver=sent.receiver, fallback_id="~1")


@pytest.mark.property
@settings(max_examples=600)
@given(value=json_values, given_fields=fields)
def test_what_is_sent_is_what_arrives(value: object, given_fields: dict[str, Any]) -> None:
    sent = seal(value, **given_fields)
    got = over_the_wire(sent)
    assert got == sent
    assert msgspec.json.decode(got.body()) == value
    assert over_the_wire(got) == got


@pytest.mark.property
@settings(max_examples=1000)
@given(value=json_values, more=st.dictionaries(names, texts, max_size=5))
def test_headers_of_a_later_version_survive_both_ways(value: object, more: dict[str, str]) -> None:
    body = msgspec.json.encode(value)
    unknown = {**more, "Cb-Of-Next-Year": "yes"}
    got = read(body, {**unknown, "Nats-Expected-Stream": "CB_WORK"}, receiver="search", fallback_id="~7")
    assert got.metadata == unknown
    assert {name: got.headers()[name] for name in unknown} == unknown
    assert got.body() == body


@pytest.mark.property
@settings(max_examples=2500)
@given(
    body=st.binary(max_size=60),
    headers=st.dictionaries(st.sampled_from([*sorted(envelope._FIELDS), "X"]), st.text(max_size=8), max_size=3),
)
def test_whatever_comes_is_an_envelope_or_a_named_error(body: bytes, headers: dict[str, str]) -> None:
    try:
        got = read(body, headers, receiver="search", fallback_id="~7")
    except InputError:
        return
    assert over_the_wire(got) == got


@pytest.mark.property
@settings(max_examples=1000)
@given(
    field=st.sampled_from(LINES),
    left=st.text(max_size=10),
    mark=st.sampled_from(BROKEN),
    right=st.text(max_size=10),
)
def test_a_value_with_a_line_break_is_refused_wherever_it_stands(field: str, left: str, mark: str, right: str) -> None:
    _refuse(field, left + mark + right)


@pytest.mark.parametrize("text", ["{}", "{}a", "a{}", "a{}b", "{0}{0}", "é{}"])
@pytest.mark.parametrize("mark", BROKEN)
@pytest.mark.parametrize("field", LINES)
def test_a_line_break_is_refused_in_each_field(field: str, mark: str, text: str) -> None:
    _refuse(field, text.format(mark))


def _refuse(field: str, text: str) -> None:
    wanted: dict[str, Any] = {"id": "1", "receiver": "search", field: text}
    with pytest.raises(InputError):
        Envelope(**wanted)
    with pytest.raises(InputError):
        Envelope(id="1", receiver="search", metadata={"X": text})


def test_plain_json_without_headers_is_an_envelope_with_defaults() -> None:
    got = read(b'{"text":"x"}', None, receiver="search", fallback_id="~17")
    assert got == Envelope(id="~17", receiver="search", payload=Raw(b'{"text":"x"}'))
    assert (got.kind, got.priority, got.lane, got.schema, got.metadata) == ("task", 5, "normal", 1, {})
    assert read(b"", {}, receiver="search", fallback_id="~1").body() == b""


def test_the_id_of_a_scheduled_task_stands_before_the_brokers() -> None:
    headers = {header.TASK_ID: "search/1", header.MSG_ID: "other"}
    assert read(b"1", headers, receiver="search", fallback_id="~1").id == "search/1"


def test_only_what_differs_from_the_defaults_is_said() -> None:
    assert seal(1, id="a", receiver="search").headers() == {header.MSG_ID: "a"}


@pytest.mark.parametrize("blank", ["", " ", "\t", "x" * 257, "é" * 129, "\ud800", " a", "a "])
@pytest.mark.parametrize("field", ["id", "receiver", "correlation", "causation", "run"])
def test_ids_are_neither_blank_nor_too_long(field: str, blank: str) -> None:
    wanted: dict[str, Any] = {"id": "1", "receiver": "search", field: blank}
    with pytest.raises((InvalidNameError, InvalidHeaderError)):
        Envelope(**wanted)


@pytest.mark.parametrize(
    "body", [b"NaN", b"[Infinity]", b'{"x":-Infinity}', b"1e999", b"{", b"\xff", b"1 2", b"[" * 9999]
)
def test_nan_infinities_and_broken_json_are_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        read(body, {}, receiver="search", fallback_id="~1")


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"x": -float("inf")}, object()])
def test_what_has_no_json_form_is_refused_when_it_is_sealed(value: object) -> None:
    with pytest.raises(EncodeError):
        seal(value, id="1", receiver="search")


def test_msgpack_is_taken_by_its_content_type_and_held_to_the_same_rules() -> None:
    headers = {header.CONTENT_TYPE: "application/msgpack"}
    body = msgspec.msgpack.encode({"x": 1.5})
    got = read(body, headers, receiver="search", fallback_id="~1")
    assert over_the_wire(got) == got
    for wrong in (msgspec.msgpack.encode([float("nan")]), b"\xc1"):
        with pytest.raises(DecodeError):
            read(wrong, headers, receiver="search", fallback_id="~1")
    with pytest.raises(DecodeError, match="Content-Type"):
        read(body, {header.CONTENT_TYPE: "text/yaml"}, receiver="search", fallback_id="~1")


@pytest.mark.parametrize("version", ["2", "99", "0"])
def test_an_envelope_of_another_version_says_so(version: str) -> None:
    headers = {header.SCHEMA: version, header.PRIORITY: "a word of that version"}
    with pytest.raises(DecodeError, match=f"schema version {version}.*upgrade"):
        read(b"1", headers, receiver="search", fallback_id="~1")


@pytest.mark.parametrize("version", ["", "one", "-1", "1.0", "²", "9" * 40])
def test_a_version_that_is_no_number_is_refused(version: str) -> None:
    with pytest.raises(DecodeError, match="version number"):
        read(b"1", {header.SCHEMA: version}, receiver="search", fallback_id="~1")


def test_metadata_cannot_pose_as_a_field_or_as_the_brokers() -> None:
    for name in ("Cb-Sender", "Nats-Msg-Id", "nats-rollup", "a b", "a:b", "", "é"):
        with pytest.raises(InvalidHeaderError):
            Envelope(id="1", receiver="search", metadata={name: "x"})


def test_words_and_numbers_are_priorities_and_priorities_are_lanes() -> None:
    assert [priority_of(text) for text in ("low", "Normal", " high", "urgent", "0", "10")] == [2, 5, 8, 10, 0, 10]
    assert [lane_of(priority) for priority in range(11)] == ["low"] * 3 + ["normal"] * 4 + ["high"] * 4
    for wrong in ("11", "-1", "soon", "", "٣", "1e1"):
        with pytest.raises(DecodeError, match="priority"):
            priority_of(wrong)
    with pytest.raises(InputError, match="priority"):
        Envelope(id="1", receiver="search", priority=11)


def test_a_deadline_without_a_time_zone_is_refused() -> None:
    with pytest.raises(InputError, match="time zone"):
        Envelope(id="1", receiver="search", deadline=datetime(2026, 1, 1))  # noqa: DTZ001


def test_it_has_a_json_schema() -> None:
    found = msgspec.json.schema(Envelope)["$defs"]["Envelope"]
    assert set(found["required"]) == {"id", "receiver"}
