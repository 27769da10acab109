"""The one envelope around everything that is sent: who says what to whom, why, until when.

On the wire it is headers and a body (``docs/wire.md``). Plain JSON without any header is a valid envelope: every field
but the payload has a default, the receiver is named by the subject, and the id falls back to the message's sequence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, field

from callboard.runtime import codec
from callboard.runtime.blobs import BlobRef, claim_header, parse_claim
from callboard.runtime.bus import header
from callboard.runtime.errors import DecodeError, InputError, InvalidHeaderError, InvalidNameError
from callboard.runtime.record import is_json_text
from callboard.runtime.subjects import MAX_KEY_BYTES, Lane

SCHEMA_VERSION = 1
NORMAL_PRIORITY = 5
MAX_PRIORITY = 10
# From here on a task goes by the high lane; below LOW_BELOW by the low one.
HIGH_FROM = 7
LOW_BELOW = 3
PRIORITY_WORDS: Mapping[str, int] = {"low": 2, "normal": NORMAL_PRIORITY, "high": 8, "urgent": 10}

_KIND = re.compile(r"[a-z0-9_-]{1,64}")
_NAME = re.compile(r"[!-9;-~]+")
# The broker reads these; they are conditions of one write and no part of what is said.
_BROKER = "nats-"
_SEPARATOR = "; "
_FIELDS = frozenset(
    {
        header.TASK_ID,
        header.SENDER,
        header.KIND,
        header.PRIORITY,
        header.CORRELATION,
        header.CAUSATION,
        header.RUN,
        header.DEADLINE,
        header.TRACEPARENT,
        header.SCHEMA,
        header.CONTENT_TYPE,
        header.ATTACHMENTS,
    }
)
_msgpack = msgspec.msgpack.Decoder()


def _no_payload() -> Raw:
    # as a factory: a schema shows plain defaults, and this one has no JSON form
    return Raw(b"")


class Envelope(Struct, frozen=True, kw_only=True):
    """One message and what is said about it. Making one checks it, so that what exists can be sent.

    Attributes:
        id: Its identity and idempotency key, 1 to 256 bytes.
        sender: Who sent it; "" when it did not say.
        receiver: Capability or actor it is for; on the wire the subject names it.
        kind: What it is: task, message, reply, event, control; others may come.
        priority: 0 to 10, 5 is normal.
        correlation: Id of the conversation, the same in question and answer.
        causation: Id of the message whose handling sent this one.
        run: Id of the run it belongs to.
        deadline: When it stops being wanted, an aware time.
        traceparent: W3C trace context.
        schema: Version of this layout; newer ones are refused by name.
        content_type: Of the payload; None is JSON.
        payload: The body as it stands, neither decoded nor changed; empty for none.
        attachments: Objects that belong to it.
        metadata: Headers that this version does not know; handed on as they came.
    """

    id: str
    receiver: str
    sender: str = ""
    kind: str = "task"
    priority: int = NORMAL_PRIORITY
    correlation: str | None = None
    causation: str | None = None
    run: str | None = None
    deadline: datetime | None = None
    traceparent: str | None = None
    schema: int = SCHEMA_VERSION
    content_type: str | None = None
    payload: Raw = field(default_factory=_no_payload)
    attachments: tuple[BlobRef, ...] = ()
    metadata: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Refuse what cannot be sent or must not be.

        Raises:
            InvalidNameError: If an id is blank or too long, or receiver or kind are unusable.
            InvalidHeaderError: If a value has CR, LF, NUL or outer spaces, or metadata use a name of ours.
            InputError: If the priority is out of range or the deadline has no time zone.
            DecodeError: If the payload is malformed or holds NaN or an infinity, or the schema is newer than ours.
        """
        _check_id(self.id, what="id")
        _check_id(self.receiver, what="receiver")
        for what in ("correlation", "causation", "run", "traceparent", "content_type"):
            value = getattr(self, what)
            if value is not None:
                _check_id(value, what=what)
        if self.sender:
            _check_id(self.sender, what="sender")
        if not _KIND.fullmatch(self.kind):
            message = f"kind {self.kind[:80]!r} is not usable: take 1 to 64 of a-z, 0-9, '_' and '-'"
            raise InvalidNameError(message, name=self.kind)
        if not 0 <= self.priority <= MAX_PRIORITY:
            message = f"priority {self.priority} is not usable: take 0 to {MAX_PRIORITY}, {NORMAL_PRIORITY} is normal"
            raise InputError(message)
        if self.deadline is not None and self.deadline.tzinfo is None:
            message = "a deadline needs a time zone: datetime.now(UTC) + timedelta(...)"
            raise InputError(message)
        _check_schema(self.schema)
        _check_metadata(self.metadata)
        _check_payload(bytes(self.payload), self.content_type)

    @property
    def lane(self) -> Lane:
        """The lane that a task of this priority goes by."""
        return lane_of(self.priority)

    def headers(self) -> dict[str, str]:
        """Return what says it on the wire beside subject and body; empty when there is nothing to say but the id."""
        found = dict(self.metadata)
        found[header.MSG_ID] = self.id
        texts = (
            (header.SENDER, self.sender or None),
            (header.CORRELATION, self.correlation),
            (header.CAUSATION, self.causation),
            (header.RUN, self.run),
            (header.TRACEPARENT, self.traceparent),
            (header.CONTENT_TYPE, self.content_type),
        )
        found.update({name: value for name, value in texts if value is not None})
        if self.kind != "task":
            found[header.KIND] = self.kind
        if self.priority != NORMAL_PRIORITY:
            found[header.PRIORITY] = str(self.priority)
        if self.deadline is not None:
            found[header.DEADLINE] = self.deadline.astimezone(UTC).isoformat().replace("+00:00", "Z")
        if self.schema != SCHEMA_VERSION:
            found[header.SCHEMA] = str(self.schema)
        if self.attachments:
            found[header.ATTACHMENTS] = _SEPARATOR.join(claim_header(ref) for ref in self.attachments)
        return found

    def body(self) -> bytes:
        """Return the payload's bytes."""
        return bytes(self.payload)


def seal(value: object = UNSET, **fields: Any) -> Envelope:  # noqa: ANN401 - the fields of Envelope, checked by it
    """Return an envelope around ``value``, encoded as JSON; without one the body is empty.

    Raises:
        EncodeError: If the value has no JSON form; NaN and infinities have none.
        InputError: As ``Envelope``.
    """
    data = b"" if value is UNSET else codec.encode(value)
    return Envelope(payload=Raw(data), **fields)


def read(body: bytes, headers: Mapping[str, str] | None, *, receiver: str, fallback_id: str) -> Envelope:
    """Return the envelope that headers and body make.

    Args:
        body: The message's data.
        headers: Its headers, if there are any.
        receiver: Whom its subject names.
        fallback_id: Its id when the headers name none, ``~<seq>`` for a task.

    Raises:
        DecodeError: If a field is malformed, the payload is, or it was written by a newer version.
        InputError: If a field is well formed and not allowed.
    """
    given = dict(headers or {})
    # first: what a newer version says in the other fields is not ours to judge
    schema = _schema_of(given.get(header.SCHEMA))
    return Envelope(
        id=given.get(header.TASK_ID) or given.get(header.MSG_ID) or fallback_id,
        receiver=receiver,
        sender=given.get(header.SENDER, ""),
        kind=given.get(header.KIND, "task"),
        priority=priority_of(given.get(header.PRIORITY, str(NORMAL_PRIORITY))),
        correlation=given.get(header.CORRELATION),
        causation=given.get(header.CAUSATION),
        run=given.get(header.RUN),
        deadline=parse_deadline(given.get(header.DEADLINE)),
        traceparent=given.get(header.TRACEPARENT),
        schema=schema,
        content_type=given.get(header.CONTENT_TYPE),
        payload=Raw(body),
        attachments=_attachments_of(given.get(header.ATTACHMENTS)),
        metadata={k: v for k, v in given.items() if k not in _FIELDS and not k.lower().startswith(_BROKER)},
    )


def priority_of(text: str) -> int:
    """Return the number that a word (low, normal, high, urgent) or a number from 0 to 10 stands for.

    Raises:
        DecodeError: If it is neither.
    """
    word = PRIORITY_WORDS.get(text.strip().lower())
    if word is not None:
        return word
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PRIORITY)) and int(text) <= MAX_PRIORITY:
        return int(text)
    message = f"priority {text[:40]!r} is unknown: take {', '.join(PRIORITY_WORDS)} or 0 to {MAX_PRIORITY}"
    raise DecodeError(message)


def lane_of(priority: int) -> Lane:
    """Return the lane for a priority: 7 and up is high, below 3 is low."""
    return "high" if priority >= HIGH_FROM else "low" if priority < LOW_BELOW else "normal"


def parse_deadline(value: str | None) -> datetime | None:
    """Return the time in a ``Cb-Deadline`` header in UTC, None when absent.

    Raises:
        InputError: If it is not an RFC 3339 time with an offset, or one that UTC has no year of four digits for.
    """
    if value is None:
        return None
    moment = None
    with suppress(ValueError, OverflowError):
        given = datetime.fromisoformat(value)
        moment = given.astimezone(UTC) if given.tzinfo is not None else None
    if moment is None:
        message = f"{header.DEADLINE} {value[:40]!r} is not an RFC 3339 time such as 2026-11-21T09:30:00Z"
        raise InputError(message)
    return moment


def _schema_of(text: str | None) -> int:
    if text is None:
        return SCHEMA_VERSION
    if not (text.isascii() and text.isdigit()) or len(text) > len("999999"):
        message = f"{header.SCHEMA} {text[:40]!r} is not a version number"
        raise DecodeError(message)
    version = int(text)
    _check_schema(version)
    return version


def _check_schema(version: int) -> None:
    if not 1 <= version <= SCHEMA_VERSION:
        message = (
            f"the envelope has schema version {version}, this Callboard knows 1 to {SCHEMA_VERSION}: "
            "it was written by a newer one, upgrade the reader first"
        )
        raise DecodeError(message)


def _attachments_of(text: str | None) -> tuple[BlobRef, ...]:
    return tuple(parse_claim(part) for part in text.split(_SEPARATOR)) if text is not None else ()


def _check_id(value: str, *, what: str) -> None:
    _check_value(value, what=what)
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        message = f"{what} holds a lone surrogate and cannot be encoded as UTF-8"
        raise InvalidNameError(message, name=repr(value)) from error
    if not 0 < size <= MAX_KEY_BYTES:
        message = f"{what} takes 1 to {MAX_KEY_BYTES} bytes of UTF-8 and is not blank, this one has {size}"
        raise InvalidNameError(message, name=value[:80])


def _check_value(value: str, *, what: str) -> None:
    if any(mark in value for mark in "\r\n\0"):
        message = f"{what} holds CR, LF or NUL, which headers cannot carry"
        raise InvalidHeaderError(message)
    if value != value.strip():
        message = f"{what} begins or ends with white space, which headers lose on the way"
        raise InvalidHeaderError(message)


def _check_metadata(metadata: dict[str, str]) -> None:
    for name, value in metadata.items():
        if not _NAME.fullmatch(name):
            message = f"metadata name {name[:80]!r} is no header name: take visible ASCII without a colon"
            raise InvalidHeaderError(message)
        if name in _FIELDS or name.lower().startswith(_BROKER):
            message = f"metadata cannot set {name}: it has a field of its own, or belongs to the broker"
            raise InvalidHeaderError(message)
        _check_value(value, what=f"metadata {name}")


def _check_payload(data: bytes, content_type: str | None) -> None:
    if not data:
        return
    if codec.is_json(content_type):
        # NaN and infinities are no JSON, and a number too large for a float would become one
        if not is_json_text(data):
            message = "the payload is not one JSON value in UTF-8; NaN and infinities have no JSON form"
            raise DecodeError(message)
        return
    if not codec.is_msgpack(content_type):
        message = f"unknown Content-Type {(content_type or '')[:80]!r}: send {codec.JSON} or {codec.MSGPACK}"
        raise DecodeError(message)
    try:
        value = _msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        message = f"the payload is not msgpack: {error}"
        raise DecodeError(message) from error
    if codec.has_non_finite(value):
        message = "the payload holds NaN or an infinity: send null or a string in its place"
        raise DecodeError(message)
