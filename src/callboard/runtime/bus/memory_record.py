"""One stored message of the in-memory broker, and what its headers ask for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

from msgspec import Struct

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored, StreamConfig
from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.memory_schedule import Rule, parse_duration
from callboard.runtime.errors import BusError

EXPECTED_LAST_SEQ = "Nats-Expected-Last-Sequence"
EXPECTED_LAST_MSG_ID = "Nats-Expected-Last-Msg-Id"
EXPECTED_STREAM = "Nats-Expected-Stream"
EXPECTED_SUBJECT = "Nats-Expected-Last-Subject-Sequence-Subject"
SCHEDULE_TTL = "Nats-Schedule-TTL"
SCHEDULE_PURGE = "purge"

_SCHEDULE_ONLY = frozenset(
    {
        header.MSG_ID,
        header.TTL,
        header.SCHEDULE,
        header.SCHEDULE_TARGET,
        header.SCHEDULE_TZ,
        SCHEDULE_TTL,
        header.ROLLUP,
    }
)
_RECORD_OVERHEAD_BYTES = 30
_HEADER_OVERHEAD_BYTES = 4
_LINE_OVERHEAD_BYTES = 4
_PREAMBLE_BYTES = 12
_NO_HEADERS: Headers = MappingProxyType({})


class Record(Struct, frozen=True):
    """A message as a stream keeps it."""

    seq: int
    subject: str
    data: bytes
    headers: Headers
    time: datetime
    size_bytes: int
    original: str

    def stored(self) -> Stored:
        """Return it as the port shows it."""
        return Stored(self.subject, self.data, self.seq, self.time, self.headers or None)


def freeze(headers: Headers | None) -> Headers:
    """Return a copy that neither the writer nor a reader can change."""
    return MappingProxyType(dict(headers)) if headers else _NO_HEADERS


def header_bytes(headers: Headers) -> int:
    """Return the size of a header block on the wire."""
    if not headers:
        return 0
    return _PREAMBLE_BYTES + sum(len(name) + len(value) + _LINE_OVERHEAD_BYTES for name, value in headers.items())


def record_bytes(subject: str, data: bytes, headers: Headers) -> int:
    """Return what the broker's file store counts for a message."""
    block = header_bytes(headers)
    extra = block + _HEADER_OVERHEAD_BYTES if block else 0
    return _RECORD_OVERHEAD_BYTES + len(subject) + len(data) + extra


def ttl_s(headers: Headers) -> float | None:
    """Return the message's own lifetime, None when it has none or lives for ever.

    Raises:
        BusError: If it is malformed or under a second.
    """
    text = headers.get(header.TTL)
    if text is None or text == "never":
        return None
    seconds = parse_duration(text)
    if 0 < seconds < 1:
        message = f"invalid per-message TTL {text!r} (10165): take 1 s or more"
        raise BusError(message)
    return seconds or None


def rule(headers: Headers) -> Rule | None:
    """Return the schedule that the headers ask for, or None.

    Raises:
        BusError: If it is malformed.
    """
    text = headers.get(header.SCHEDULE)
    return None if text is None else Rule(text, time_zone=headers.get(header.SCHEDULE_TZ))


def rollup(config: StreamConfig, headers: Headers) -> str | None:
    """Return what a message replaces: "sub" all of its subject, "all" all of the stream, None nothing."""
    kind = headers.get(header.ROLLUP)
    return "sub" if kind is None and config.allow_schedules and header.SCHEDULE in headers else kind


def firing_headers(record: Record, next_firing: str) -> dict[str, str]:
    """Return the headers of a schedule's firing: the writer's own, without those that made it a schedule.

    Those of the batch that stored the schedule stay, as the real broker leaves them.
    """
    kept = {
        name: value
        for name, value in record.headers.items()
        if name not in _SCHEDULE_ONLY and not name.startswith("Nats-Expected-")
    }
    if SCHEDULE_TTL in record.headers:
        kept[header.TTL] = record.headers[SCHEDULE_TTL]
    kept[header.SCHEDULER] = record.subject
    kept[header.SCHEDULE_NEXT] = next_firing
    return kept


def without_conditions(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers without what was a condition of the first write and must not bind a copy."""
    return {name: value for name, value in headers.items() if not name.startswith(("Nats-Expected-", "Nats-Batch-"))}
