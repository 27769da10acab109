"""Whether the in-memory broker takes a write: the broker's checks in the broker's order, decided without effects."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from callboard.runtime.bus import header, memory_record
from callboard.runtime.bus.base import StreamConfig
from callboard.runtime.bus.header import Headers
from callboard.runtime.bus.pattern import matches
from callboard.runtime.errors import ApiError, BackpressureError, BusError, ConflictError, PayloadTooLargeError

# The store keeps the size of a header block in 16 bits; plain messages carry more.
_MAX_HEADERS_BYTES = 65_535


class View(Protocol):
    """What the checks need to know of a stream."""

    @property
    def config(self) -> StreamConfig:
        """Its settings."""
        ...

    @property
    def messages(self) -> int:
        """Messages it holds."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes it holds."""
        ...

    @property
    def last_seq(self) -> int:
        """Its last sequence."""
        ...

    def count(self, subject: str) -> int:
        """Return how many messages ``subject`` holds."""
        ...

    def last_seq_of(self, pattern: str) -> int:
        """Return the last sequence under ``pattern``, 0 when there is none."""
        ...

    def seen(self, msg_id: str) -> int | None:
        """Return the sequence that a message id was stored under within the window."""
        ...


class Staged:
    """What the earlier messages of the same batch will add."""

    __slots__ = ("messages", "msg_ids", "size_bytes", "subjects")

    def __init__(self) -> None:
        """Start with nothing staged."""
        self.messages = 0
        self.size_bytes = 0
        self.subjects: Counter[str] = Counter()
        self.msg_ids: set[str] = set()

    def add(self, subject: str, data: bytes, headers: Headers) -> None:
        """Count one admitted message."""
        self.messages += 1
        self.size_bytes += memory_record.record_bytes(subject, data, headers)
        self.subjects[subject] += 1
        if header.MSG_ID in headers:
            self.msg_ids.add(headers[header.MSG_ID])


def check(stream: View, subject: str, data: bytes, headers: Headers, staged: Staged) -> None:
    """Pass if the write may be stored under ``subject``, its stored name.

    Raises:
        PayloadTooLargeError: If it is over the stream's limit.
        ConflictError: If an expected sequence is not the last, or a write-once subject is taken.
        BackpressureError: If the stream is full.
        BusError: If it asks for what the stream does not allow.
    """
    _check_size(stream.config, data, headers)
    _check_features(stream.config, subject, headers)
    _check_rollup(stream.config, subject, headers, staged)
    _check_expected(stream, subject, headers, staged)


def check_room(stream: View, subject: str, data: bytes, headers: Headers, staged: Staged) -> None:
    """Pass if there is room; after the dedup, because a duplicate takes none.

    Raises:
        ConflictError: If a write-once subject is taken.
        BackpressureError: If the stream is full and refuses new messages.
    """
    config = stream.config
    if config.discard != "new":
        return
    limit = config.max_msgs_per_subject
    if config.discard_new_per_subject and limit > 0 and stream.count(subject) + staged.subjects[subject] >= limit:
        message = f"{subject} is taken: maximum messages per subject exceeded (10077) in {config.name}"
        raise ConflictError(message)
    if 0 < config.max_msgs <= stream.messages + staged.messages:
        message = f"{config.name} is full: maximum messages exceeded (10077)"
        raise BackpressureError(message)
    size_bytes = stream.size_bytes + staged.size_bytes + memory_record.record_bytes(subject, data, headers)
    if 0 < config.max_bytes < size_bytes:
        message = f"{config.name} is full: maximum bytes exceeded (10077)"
        raise BackpressureError(message)


def _check_size(config: StreamConfig, data: bytes, headers: Headers) -> None:
    headers_bytes = memory_record.header_bytes(headers) if headers else 0
    if headers_bytes > _MAX_HEADERS_BYTES:
        message = f"header size exceeds maximum allowed of 64k (10097) by {config.name}"
        raise PayloadTooLargeError(message, size_bytes=headers_bytes, limit_bytes=_MAX_HEADERS_BYTES)
    size_bytes = len(data) + headers_bytes
    if 0 <= config.max_msg_bytes < size_bytes:
        message = f"message size exceeds maximum allowed (10054) by {config.name}"
        raise PayloadTooLargeError(message, size_bytes=size_bytes, limit_bytes=config.max_msg_bytes)


def _check_features(config: StreamConfig, subject: str, headers: Headers) -> None:
    if header.TTL in headers:
        if not config.allow_msg_ttl:
            message = f"per-message TTL is disabled (10166) in {config.name}"
            raise BusError(message)
        memory_record.ttl_s(headers)
    if header.SCHEDULE in headers:
        _check_schedule(config, subject, headers)
    if config.allow_schedules and headers.get(header.SCHEDULER) == subject:
        message = f"message schedules invalid scheduler (10212): {subject} cannot end itself"
        raise BusError(message)


def _check_rollup(config: StreamConfig, subject: str, headers: Headers, staged: Staged) -> None:
    kind = memory_record.rollup(config, headers)
    if kind is None:
        return
    if not config.allow_rollup:
        message = f"rollup not permitted (10111) in {config.name}"
        raise BusError(message)
    if kind not in ("sub", "all"):
        message = f"rollup value invalid: {kind!r} (10111)"
        raise BusError(message)
    if (staged.subjects[subject] if kind == "sub" else staged.messages) > 0:
        message = f"batch rollup {kind} invalid (10111): {subject} is written earlier in the same batch"
        raise ApiError(message, code=400, err_code=10111)


def _check_schedule(config: StreamConfig, subject: str, headers: Headers) -> None:
    if not config.allow_schedules:
        message = f"message schedules is disabled (10188) in {config.name}"
        raise BusError(message)
    memory_record.rule(headers)
    target = headers.get(header.SCHEDULE_TARGET, "")
    if target in ("", subject) or not any(matches(pattern, target) for pattern in config.subjects):
        message = f"message schedules target is invalid (10190): {target!r} is no other subject of {config.name}"
        raise BusError(message)


def _check_expected(stream: View, subject: str, headers: Headers, staged: Staged) -> None:
    expected = headers.get(header.EXPECTED_SUBJECT_SEQ)
    if expected is not None:
        guarded = headers.get(memory_record.EXPECTED_SUBJECT, subject)
        last_seq = stream.last_seq_of(guarded)
        # A batch is checked against the stream as it stands, so its own earlier writes cannot be expected.
        is_rewritten = any(matches(guarded, staged_subject) for staged_subject in staged.subjects)
        if is_rewritten:
            message = f"wrong last sequence (10164): {guarded} is written earlier in the same batch"
            raise ConflictError(message)
        if last_seq != _number(expected):
            raise _conflict(last_seq)
    expected = headers.get(memory_record.EXPECTED_LAST_SEQ)
    if expected is not None and stream.last_seq != _number(expected):
        raise _conflict(stream.last_seq)


def _number(text: str) -> int:
    if not text.isdecimal():
        message = f"expected sequence {text!r} is not a number (10158)"
        raise BusError(message)
    return int(text)


def _conflict(last_seq: int) -> ConflictError:
    return ConflictError(f"wrong last sequence: {last_seq} (10071)", last_seq=last_seq)
