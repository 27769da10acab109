"""Our settings and errors in the words of the JetStream API, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import Struct, json
from msgspec.json import Decoder

from callboard.runtime.bus.base import (
    ConsumerConfig,
    ConsumerInfo,
    Delivery,
    PubAck,
    Source,
    Stored,
    StreamConfig,
    StreamInfo,
)
from callboard.runtime.bus.jetstream_link import Raw
from callboard.runtime.errors import (
    ApiError,
    BackpressureError,
    BusError,
    BusTimeoutError,
    ConflictError,
    NoLeaderError,
    NotFoundError,
    PayloadTooLargeError,
    QuotaExceededError,
)

Json = dict[str, Any]

DELETE_FAILED = 10057
STREAM_MISSING = 10059
CONSUMER_MISSING = 10014

# 10164: another write of the subject, which may yet fail, is on its way through the replicas
_CONFLICTS = {10070, 10071, 10164, 10177, 10201}
# the first copy of a message is on its way through the replicas and may yet fail: nobody knows, so ask again
_UNDECIDED = {10158}
_LEADERLESS = 10008
# a leader hears of its followers once a second
_IN_TOUCH_NS = 3_000_000_000
# as long as it may have been cut off since, it proves nothing
_JUST_NOW_NS = 1_500_000_000
_FULL = {10023, 10047, 10077, 10122, 10175, 10210, 10211}
# of the account: resources, consumers, streams, memory
_QUOTA = {10002, 10026, 10027, 10028}
_TOO_LARGE = {10054, 10097, 10199}
_MISSING = {CONSUMER_MISSING, STREAM_MISSING, 10037, 10043}
_LAST_SEQ = re.compile(r"wrong last sequence: (\d+)")
_NS = 1_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BATCH_LIMIT = 429
# What a direct get adds to the stored headers.
_DIRECT = {"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"}

# $JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<consumer seq>.<time>.<pending>; the longer form has <domain>.<account>
# before the stream and may have one more token at its end.
_SHORT_TOKENS = 9
_SHORT_OFFSET = 4
_LONG_OFFSET = 6

_PLAIN_STREAM = {
    "name": "name",
    "retention": "retention",
    "storage": "storage",
    "replicas": "num_replicas",
    "discard": "discard",
    "discard_new_per_subject": "discard_new_per_subject",
    "max_bytes": "max_bytes",
    "max_msgs": "max_msgs",
    "max_msgs_per_subject": "max_msgs_per_subject",
    "max_msg_bytes": "max_msg_size",
    "max_consumers": "max_consumers",
    "allow_atomic": "allow_atomic",
    "allow_direct": "allow_direct",
    "allow_rollup": "allow_rollup_hdrs",
    "allow_msg_ttl": "allow_msg_ttl",
    "allow_schedules": "allow_msg_schedules",
    "deny_delete": "deny_delete",
    "deny_purge": "deny_purge",
}
_OPTIONAL_STREAM = ("subjects", "sources", "subject_transform", "persist_mode")


class _Failure(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _PubAckBody(Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    count: int = 1
    error: _Failure | None = None


_PUB_ACK = Decoder(_PubAckBody)


# --- answers


def to_pub_ack(raw: Raw, subject: str) -> PubAck | BusError | None:
    """Return the broker's word on a write; None for the empty receipt of a batch's first message."""
    if not raw.data:
        return None
    try:
        body = _PUB_ACK.decode(raw.data)
    except ValueError:
        body = _PubAckBody()
    if body.error is not None:
        return to_error(body.error.code, body.error.err_code, body.error.description, what=subject)
    if not body.stream:
        return BusError(f"{subject}: what answered is no stream")
    return PubAck(body.stream, body.seq, body.duplicate, body.count)


def proves(answer: object) -> bool | None:
    """Return whether an answer to a write, or to an acknowledgement, shows a leader with a majority; None: neither.

    A leader that was cut off refuses writes and tells of duplicates by what it knows itself. That a first copy is on
    its way through the replicas it says for as long as it thinks that it leads.
    """
    if isinstance(answer, NoLeaderError | BusTimeoutError):
        return False
    if isinstance(answer, PubAck):
        return True if not answer.is_duplicate else None
    return True if answer is True else None


def hears_majority(cluster: Json, *, within_ns: int = _IN_TOUCH_NS) -> bool:
    """Return whether the leader that tells of its stream was in touch with a majority a moment ago.

    One that was cut off goes on as leader for ten seconds and more, and answers.
    """
    replicas = cluster.get("replicas") or ()
    heard = sum(not each.get("offline") and each.get("active", 0) < within_ns for each in replicas)
    return bool(2 * (heard + 1) > len(replicas) + 1)


def is_led(info: Json) -> bool | None:
    """Return whether an answer about a stream comes from a leader with a majority; None: that it does not tell."""
    cluster = info.get("cluster") or {}
    if "config" not in info or (cluster and not cluster.get("leader")):
        return None
    if hears_majority(cluster, within_ns=_JUST_NOW_NS):
        return True
    return None if hears_majority(cluster) else False


def shows_leader(data: bytes) -> bool:
    """Return whether the body of an answer about a stream shows a leader with a majority."""
    try:
        info = json.decode(data)
    except ValueError:
        return False
    return isinstance(info, dict) and is_led(info) is True


def to_error(code: int, err_code: int, text: str, *, what: str) -> BusError:
    """Return our error for one of the API; its text names ``what`` and the broker's number."""
    message = f"{what}: {text or 'refused'} ({err_code or code})"
    if err_code in _CONFLICTS or (err_code in _FULL and "per subject" in text):
        found = _LAST_SEQ.search(text)
        return ConflictError(message, last_seq=int(found[1]) if found else 0)
    if err_code in _UNDECIDED:
        return BusTimeoutError(message)
    if err_code == _LEADERLESS:
        return NoLeaderError(message)
    if err_code in _TOO_LARGE:
        return PayloadTooLargeError(message)
    if err_code in _QUOTA:
        return QuotaExceededError(f"{message}: the account is at its limit; make room or have an operator raise it")
    if err_code in _FULL or code == _BATCH_LIMIT:
        return BackpressureError(message)
    if err_code in _MISSING:
        return NotFoundError(message)
    return ApiError(message, code=code, err_code=err_code)


# --- messages


def to_delivery(raw: Raw) -> Delivery:
    """Return what a consumer has handed out, read from its reply subject.

    Raises:
        ValueError: If that is no delivery's reply subject.
    """
    tokens = raw.reply.split(".")
    return _delivery(raw, tokens, _SHORT_OFFSET if len(tokens) == _SHORT_TOKENS else _LONG_OFFSET)


def to_ordered(raw: Raw) -> tuple[Delivery, int]:
    """Return what a consumer has handed out and its place in the consumer's numbering, 1 for the first.

    Raises:
        ValueError: If that is no delivery's reply subject.
    """
    tokens = raw.reply.split(".")
    at = _SHORT_OFFSET if len(tokens) == _SHORT_TOKENS else _LONG_OFFSET
    return _delivery(raw, tokens, at), int(tokens[at + 2])


def to_stored(raw: Raw) -> Stored:
    """Return the message that a direct get has answered with."""
    headers = raw.headers or {}
    kept = {name: value for name, value in headers.items() if name not in _DIRECT}
    return Stored(
        headers.get("Nats-Subject", ""),
        raw.data,
        int(headers.get("Nats-Sequence", "0")),
        to_time(headers.get("Nats-Time-Stamp", "")) or _EPOCH,
        kept or None,
    )


def delivered_as_stored(delivery: Delivery) -> Stored:
    """Return a delivery of a reader as the message it is."""
    time = _EPOCH + timedelta(microseconds=delivery.time_ns // 1000)
    return Stored(delivery.subject, delivery.data, delivery.seq, time, delivery.headers)


def _delivery(raw: Raw, tokens: list[str], at: int) -> Delivery:
    return Delivery(
        raw.subject,
        raw.data,
        raw.headers,
        raw.reply,
        int(tokens[at + 1]),
        int(tokens[at]),
        int(tokens[at + 4]),
        int(tokens[at + 3]),
    )


def to_time(text: str) -> datetime | None:
    """Return an API time, to the microsecond; None for the zero time."""
    if not text or text.startswith("0001-"):
        return None
    return datetime.fromisoformat(text).astimezone(UTC)


# --- streams


def from_stream(config: StreamConfig) -> Json:
    """Return the API's form of a stream's settings; what is not set is left out."""
    body: Json = {theirs: getattr(config, ours) for ours, theirs in _PLAIN_STREAM.items()}
    body["max_age"] = round(config.max_age_s * _NS)
    body["duplicate_window"] = round(config.duplicate_window_s * _NS)
    if config.subjects:
        body["subjects"] = list(config.subjects)
    if config.sources:
        body["sources"] = [_from_source(source) for source in config.sources]
    if config.subject_transform is not None:
        body["subject_transform"] = dict(zip(("src", "dest"), config.subject_transform, strict=True))
    if config.persist_async:
        body["persist_mode"] = "async"
    return body


def overlay(found: Json, config: StreamConfig) -> Json:
    """Return ``found`` with our settings on top, so that an update keeps what we do not know (placement, metadata)."""
    kept = {name: value for name, value in found.items() if name not in _OPTIONAL_STREAM}
    return kept | from_stream(config)


def to_stream(body: Mapping[str, Any]) -> StreamConfig:
    """Return a stream's settings from the API's form; the server leaves out what is off."""
    plain = {ours: body[theirs] for ours, theirs in _PLAIN_STREAM.items() if body.get(theirs) is not None}
    transform = body.get("subject_transform")
    return StreamConfig(
        **plain,
        subjects=tuple(body.get("subjects") or ()),
        max_age_s=body.get("max_age", 0) / _NS,
        duplicate_window_s=body.get("duplicate_window", 0) / _NS,
        persist_async=body.get("persist_mode") == "async",
        sources=_to_sources(body.get("sources") or ()),
        subject_transform=(transform.get("src", ""), transform.get("dest", "")) if transform else None,
    )


def to_stream_info(body: Mapping[str, Any], *, has_details: bool = False) -> StreamInfo:
    """Return a stream's settings and state from STREAM.INFO (asked for details or not) or STREAM.CREATE."""
    state = body.get("state") or {}
    cluster = body.get("cluster")
    return StreamInfo(
        config=to_stream(body["config"]),
        messages=state.get("messages", 0),
        size_bytes=state.get("bytes", 0),
        first_seq=state.get("first_seq", 0),
        last_seq=state.get("last_seq", 0),
        consumers=state.get("consumer_count", 0),
        first_time=to_time(state.get("first_ts", "")),
        leader="" if cluster is None else cluster.get("leader") or None,
        lagging=tuple(_lag(peer) for peer in (cluster or {}).get("replicas") or () if not _is_current(peer)),
        # an empty stream says 1 (seen with nats-server 2.15.1)
        deleted=state.get("num_deleted", 0) if state.get("messages") else 0,
        lost_bytes=(state.get("lost") or {}).get("bytes", 0) if has_details else None,
    )


def _is_current(peer: Mapping[str, Any]) -> bool:
    return bool(peer.get("current")) and not peer.get("offline")


def _lag(peer: Mapping[str, Any]) -> str:
    how = "is offline" if peer.get("offline") else f"is {peer.get('lag', 0)} operations behind"
    return f"{peer.get('name', 'a follower')} {how}"


def _from_source(source: Source) -> Json:
    match source.filters:
        case ():
            return {"name": source.name}
        case (only,):
            return {"name": source.name, "filter_subject": only}
        case several:
            # An empty destination keeps the subject.
            return {"name": source.name, "subject_transforms": [{"src": each, "dest": ""} for each in several]}


def _to_sources(bodies: Iterable[Mapping[str, Any]]) -> tuple[Source, ...]:
    found: dict[str, tuple[str, ...]] = {}
    for body in bodies:
        single = body.get("filter_subject")
        filters = (single,) if single else tuple(each["src"] for each in body.get("subject_transforms") or ())
        # One stream may stand there several times, once for each filter.
        found[body["name"]] = found.get(body["name"], ()) + filters
    return tuple(Source(name, filters) for name, filters in found.items())


# --- consumers


def from_consumer(config: ConsumerConfig) -> Json:
    """Return the API's form of a durable consumer's settings."""
    return {
        "name": config.name,
        "durable_name": config.name,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "filter_subject": config.filter_subject,
        "ack_wait": round(config.ack_wait_s * _NS),
        "max_deliver": config.max_deliver,
        "max_ack_pending": config.max_ack_pending,
    }


def to_consumer_info(body: Mapping[str, Any]) -> ConsumerInfo:
    """Return a consumer's settings and state from CONSUMER.INFO."""
    config = body["config"]
    delivered = body.get("delivered", {})
    filters = config.get("filter_subjects") or [config.get("filter_subject", "")]
    return ConsumerInfo(
        stream=body["stream_name"],
        config=ConsumerConfig(
            name=body["name"],
            filter_subject=filters[0],
            ack_wait_s=config.get("ack_wait", 0) / _NS,
            max_ack_pending=config.get("max_ack_pending", 0),
            max_deliver=config.get("max_deliver", -1),
        ),
        pending=body.get("num_pending", 0),
        ack_pending=body.get("num_ack_pending", 0),
        redelivered=body.get("num_redelivered", 0),
        deliveries=delivered.get("consumer_seq", 0),
        delivered_seq=delivered.get("stream_seq", 0),
    )
