"""What the version before wrote is read by this one, and what this one writes can be read by that."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Struct

from callboard.runtime import beat, record
from callboard.runtime.actor import cursor, mail, step
from callboard.runtime.actor import record as states
from callboard.runtime.bus.base import Stored
from tests.replay.record_wire import FILE

RECORDED = json.loads(FILE.read_text("utf-8"))["messages"]
# by the second word of the subject: how it is read, and how it is written again
CODECS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    "beat": (beat.decode_beat, beat.encode_beat),
    "result": (record.decode_task, record.encode),
    "attempt": (record.decode_attempt, record.encode),
    "dead": (record.decode_dead, record.encode),
    "state": (states.decode, states.encode),
    "cursor": (cursor.decode, cursor.encode),
    "step": (step.decode, step.encode),
}


def _kind(message: dict[str, Any]) -> str:
    found: str = message["subject"].split(".")[1]
    return found


def test_every_format_was_recorded() -> None:
    assert {_kind(message) for message in RECORDED} >= {*CODECS, "mbox"}


@pytest.mark.parametrize("message", [m for m in RECORDED if _kind(m) in CODECS], ids=lambda m: m["subject"])
def test_what_was_written_is_read_and_means_the_same(message: dict[str, Any]) -> None:
    decode, encode = CODECS[_kind(message)]
    read = decode(message["body"].encode())
    assert isinstance(read, Struct)
    before, now = json.loads(message["body"]), json.loads(encode(read))
    # what this version adds, the version before leaves out; nothing of what it knows is renamed, lost or changed
    assert _without_new(now, before) == before


def _without_new(now: Any, before: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(now, dict) and isinstance(before, dict):
        return {key: _without_new(value, before[key]) for key, value in now.items() if key in before}
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        return [_without_new(a, b) for a, b in zip(now, before, strict=True)]
    return now


def test_a_change_would_be_seen() -> None:
    before = {"a": 1, "b": [{"c": 2}]}
    assert _without_new({"a": 1, "b": [{"c": 2, "d": 3}], "e": 4}, before) == before
    assert _without_new({"a": 1, "b": [{"C": 2}]}, before) != before
    assert _without_new({"b": [{"c": 2}]}, before) != before


def test_mail_of_the_version_before_is_read() -> None:
    found = [m for m in RECORDED if _kind(m) == "mbox"]
    assert found
    for message in found:
        subject, body = message["subject"], message["body"].encode()
        stored = Stored(subject=subject, seq=7, data=body, time=datetime.now(UTC), headers=message["headers"])
        read = mail.mail_of(stored)
        assert str(read.address) == f"{subject.split('.')[2]}/k"
        assert read.data == body
        assert read.type == message["headers"]["Cb-Type"]
