"""What Callboard writes about a task: ledger record, attempt records, dead letter (docs/wire.md, sections 3, 5, 6)."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from callboard.runtime.errors import CallboardError, DecodeError
from callboard.runtime.redact import MAX_TEXT_CHARS, redact_text
from callboard.runtime.subjects import Lane

VERSION = 1
Status = Literal["completed", "failed", "cancelled", "expired"]
AttemptKind = Literal["failed", "started", "returned"]

_T = TypeVar("_T")
_MAX_MESSAGE = 4_000
_MAX_TRACE = 8_000
_SHORT_MESSAGE = 200


class Failure(Struct, frozen=True, kw_only=True):
    """An error as data.

    Attributes:
        code: The stable code (``CallboardError.code``), or ``handler`` for an exception of the user's code.
        type: Class name of an exception from a handler.
        trace: Its last frames as text, capped.
    """

    code: str
    message: str
    retryable: bool = False
    type: str | UnsetType = UNSET
    trace: str | UnsetType = UNSET


class BlobPointer(Struct, frozen=True, kw_only=True):
    """Where a large value lies in ``CB_BLOBS``."""

    name: str
    sha256: str
    size_bytes: int


class Submission(Struct, frozen=True, kw_only=True, gc=False):
    """A copy of what was submitted: one of ``payload``, ``payload_b64`` and ``claim_check``, none if it was empty."""

    seq: int
    at: datetime
    lane: Lane
    payload: Raw | UnsetType = UNSET
    payload_b64: str | UnsetType = UNSET
    claim_check: str | UnsetType = UNSET
    headers: dict[str, str] | UnsetType = UNSET


class TaskRecord(Struct, frozen=True, kw_only=True, gc=False):
    """The one record of a finished task, on ``cb.result.<capability>.<task>``.

    Attributes:
        attempts: Runs, the last included; 0 when it never ran (cancelled or expired while waiting).
        crashes: Workers that died under it.
    """

    v: int
    task: str
    capability: str
    status: Status
    result: Raw | UnsetType = UNSET
    result_blob: BlobPointer | UnsetType = UNSET
    error: Failure | UnsetType = UNSET
    submitted: Submission | UnsetType = UNSET
    attempts: int = 1
    crashes: int | UnsetType = UNSET
    worker: str
    claimed_at: datetime | UnsetType = UNSET
    finished_at: datetime


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """A run that did not finish its task, or the start of a further run; ``cb.attempt.<capability>.<task>.<n>``.

    Attributes:
        kind: ``failed``: the run raised. ``started``: a further run begins. ``returned``: handed back unfinished.
        attempt: Number of the run, 1-based; crashes and returns do not count.
        scheduled: True when the next attempt is a message of its own, held by a schedule, and this one is done with.
    """

    v: int
    task: str
    capability: str
    n: int
    kind: AttemptKind
    attempt: int
    worker: str
    at: datetime
    error: Failure | UnsetType = UNSET
    retry_at: datetime | UnsetType = UNSET
    scheduled: bool | UnsetType = UNSET


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A task that ended for good without a result, with everything a person needs to judge it."""

    v: int
    task: str
    capability: str
    cause: Failure
    history: list[AttemptRecord]
    submitted: Submission
    attempts: int
    crashes: int
    worker: str
    at: datetime


_encoder = msgspec.json.Encoder()
_task_record = msgspec.json.Decoder(TaskRecord)
_attempt_record = msgspec.json.Decoder(AttemptRecord)
_dead_letter = msgspec.json.Decoder(DeadLetter)


def encode(record: TaskRecord | AttemptRecord | DeadLetter) -> bytes:
    """Return a record as JSON."""
    return _encoder.encode(record)


def decode_task(data: bytes) -> TaskRecord:
    """Return the ledger record in ``data``.

    Raises:
        DecodeError: If it is none; other programs may write the subject too.
    """
    return _decode(_task_record, data)


def decode_attempt(data: bytes) -> AttemptRecord:
    """Return the attempt record in ``data``.

    Raises:
        DecodeError: If it is none.
    """
    return _decode(_attempt_record, data)


def decode_dead(data: bytes) -> DeadLetter:
    """Return the dead letter in ``data``.

    Raises:
        DecodeError: If it is none.
    """
    return _decode(_dead_letter, data)


def failure_of(error: BaseException, *, trace: str | None = None) -> Failure:
    """Return an exception as data: our own by code, a handler's by class name and its last frames.

    It is stored, and told to whoever asked: what looks like a secret in its text is taken out. Errors of HTTP and model
    libraries often quote the request with its key.
    """
    if isinstance(error, CallboardError):
        return Failure(
            code=error.code,
            message=_text_of(error)[:_MAX_MESSAGE],
            retryable=error.retryable,
            trace=_trace_of(trace) if trace else UNSET,
        )
    return Failure(
        code="handler",
        message=_text_of(error)[:_MAX_MESSAGE],
        retryable=True,
        type=_encodable(type(error).__name__),
        trace=_trace_of(trace) if trace else UNSET,
    )


def shortened(history: list[AttemptRecord], *, limit_bytes: int) -> list[AttemptRecord]:
    """Return the newest notes of a history, without traces and with short messages, up to ``limit_bytes``."""
    kept: list[AttemptRecord] = []
    size_bytes = 0
    for item in reversed(history):
        note = item
        if note.error is not UNSET:
            error = replace(note.error, message=note.error.message[:_SHORT_MESSAGE], trace=UNSET)
            note = replace(note, error=error)
        size_bytes += len(encode(note))
        if size_bytes > limit_bytes:
            break
        kept.append(note)
    return kept[::-1]


def stored_at(time_ns: int) -> datetime:
    """Return the broker's nanoseconds since 1970 as an aware time, to the microsecond."""
    # a double holds microseconds since 1970 exactly until the year 2255; adding a timedelta costs twice as much
    return datetime.fromtimestamp(time_ns // 1000 / 1_000_000, UTC)


def as_payload(data: bytes, *, is_json: bool) -> tuple[Raw | UnsetType, str | UnsetType]:
    """Return ``(payload, payload_b64)`` for a submission: JSON is embedded as it is, anything else as base64."""
    if not data:
        return UNSET, UNSET
    if is_json:
        return Raw(data), UNSET
    return UNSET, base64.b64encode(data).decode()


def payload_of(submitted: Submission) -> bytes:
    """Return the bytes that were submitted; empty for a claim check, whose payload lies in ``CB_BLOBS``."""
    if submitted.payload is not UNSET:
        return bytes(submitted.payload)
    if submitted.payload_b64 is not UNSET:
        return base64.b64decode(submitted.payload_b64)
    return b""


def is_json_text(data: bytes) -> bool:
    """Return whether ``data`` is one JSON value in UTF-8, so that it can stand inside a record."""
    try:
        data.decode()
        msgspec.json.decode(data)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return False
    return True


def _text_of(error: BaseException) -> str:
    name = error.code if isinstance(error, CallboardError) else type(error).__name__
    try:
        # before it is cut to length: half a secret does not look like one
        return redact_text(_encodable(str(error)[:MAX_TEXT_CHARS] or name))
    except BaseException:  # noqa: BLE001 - a broken __str__ of user code must not hide the failure
        return _encodable(name)


def _trace_of(trace: str) -> str:
    return redact_text(_encodable(trace)[-MAX_TEXT_CHARS:])[-_MAX_TRACE:]


def _encodable(text: str) -> str:
    """Return text that UTF-8 can carry: file names that are none come with lone surrogates in them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is not a record of version {VERSION}: {error}"
        raise DecodeError(message) from error
