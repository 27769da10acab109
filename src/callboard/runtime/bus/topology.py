"""The streams, buckets and consumers that Callboard stands on, declared as data.

Why each flag is what it is stands beside it, because most of them keep a promise. ``provision`` compares this with what
is there and changes it. All settings were accepted and read back unchanged by nats-server 2.15.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.bus.base import ConsumerConfig, Source, StreamConfig, StreamInfo
from callboard.runtime.config import TopologySettings, WorkSettings

WORK = "CB_WORK"
LATER = "CB_LATER"
LEDGER = "CB_LEDGER"
ACTORS = "CB_ACTORS"
AUDIT = "CB_AUDIT"
GAPS = "CB_AUDIT_GAPS"
POST = "CB_POST"
DEAD = "CB_DEAD"
TOKENS = "CB_TOKENS"
REGISTRY = "KV_CB_REGISTRY"
CONTEXT = "KV_CB_CONTEXT"
CONFIG = "KV_CB_CONFIG"
BLOBS = "OBJ_CB_BLOBS"

# From here on a stream's room is low: a person has a day to see to it.
FULL_SHARE = 0.8
LOW_HOURS = 24.0

CONFIG_HISTORY = 10
UNLIMITED = -1

_HOUR_S = 3600.0
_MIN_OBSERVED_S = 60.0


class ConsumerNumbers(Protocol):
    """The settings that a consumer needs; the section ``work`` and a worker's options both have them."""

    @property
    def ack_wait_s(self) -> float:
        """Seconds after which an unextended claim is handed out again."""
        ...

    @property
    def max_ack_pending(self) -> int:
        """Claims that may be out at once."""
        ...


class Topology(Struct, frozen=True, kw_only=True):
    """What should be there. Streams stand in the order of creation: a source before its copy."""

    streams: tuple[StreamConfig, ...]
    consumers: tuple[tuple[str, ConsumerConfig], ...] = ()


class Headroom(Struct, frozen=True, kw_only=True):
    """How much longer a stream takes writes.

    Attributes:
        bytes_left: Until its limit; None without a limit.
        hours_left: Until the limit at the observed rate; None without a limit, without a rate yet, or when messages
            age out before it is reached.
        bytes_per_hour: Observed rate at which it fills; None when it has been watched for less than a minute.
        when_full: What happens then: writes are refused, or the oldest messages are dropped.
    """

    bytes_left: int | None
    hours_left: float | None
    bytes_per_hour: float | None
    when_full: str


def declared(
    settings: TopologySettings,
    *,
    capabilities: Sequence[str] = (),
    work: WorkSettings | None = None,
    audit: bool = True,
) -> Topology:
    """Return all streams and, for the named capabilities, their consumers.

    Workers create the consumers of their own capabilities; naming them here is for clusters that scale from zero,
    where the autoscaler needs a consumer before the first worker, and for workers without the permission. Without
    ``audit`` the copies of actor messages are left out; streams of them that are there already stay.

    Raises:
        InvalidNameError: If a capability is not a valid name.
    """
    streams = (
        *_task_streams(settings),
        _dead(settings),
        _actors(settings),
        _post(settings),
        *(_audit_streams(settings) if audit else ()),
        _tokens(settings),
        # No rollup: with it, whoever may write one record deletes all of them in one write.
        _bucket(REGISTRY, settings, allow_msg_ttl=True, allow_rollup=False),
        # History and message TTL do not go together: the older revision comes back when the newer one expires.
        _bucket(CONTEXT, settings, history=settings.context_history, allow_atomic=True),
        _bucket(CONFIG, settings, history=CONFIG_HISTORY),
        _objects(settings),
    )
    lanes = work or WorkSettings()
    consumers = [
        (stream, consumer)
        for capability in dict.fromkeys(capabilities)
        for stream, consumer in (
            *((WORK, lane) for lane in task_consumers(capability, lanes)),
            (LATER, due_consumer(capability, lanes)),
        )
    ]
    return Topology(streams=streams, consumers=tuple(consumers))


def task_consumers(capability: str, settings: ConsumerNumbers) -> tuple[ConsumerConfig, ...]:
    """Return the durable consumers of a capability's three lanes on ``CB_WORK``: high, normal, low.

    Raises:
        InvalidNameError: If the capability is not a valid name.
    """
    subjects.check_name(capability, what="capability")
    return tuple(
        _consumer(subjects.consumer(capability, lane), subjects.task(capability, lane), settings)
        for lane in subjects.LANES
    )


def due_consumer(capability: str, settings: ConsumerNumbers) -> ConsumerConfig:
    """Return the durable consumer on ``CB_LATER`` of a capability's scheduled tasks that have fallen due.

    Raises:
        InvalidNameError: If the capability is not a valid name.
    """
    subjects.check_name(capability, what="capability")
    return _consumer(subjects.due_consumer(capability), subjects.due(capability), settings)


def fit(settings: TopologySettings, *, store_bytes: int) -> TopologySettings:
    """Return settings whose limits fit a small store together, scaled down evenly; unchanged when they fit.

    The server reserves a stream's limit when the stream is created and refuses what does not fit. A quarter stays
    free for the streams without a limit (actors, scheduled tasks, blobs).
    """
    names = ("queue_max_bytes", "ledger_max_bytes", "audit_max_bytes", "dead_max_bytes")
    wanted = sum(getattr(settings, name) for name in names) * settings.replicas
    room = store_bytes * 3 // 4
    if wanted <= room:
        return settings
    scaled = {name: max(1, getattr(settings, name) * room // wanted) for name in names}
    return settings.model_copy(update=scaled)


def headroom(info: StreamInfo, *, now: datetime, limit_bytes: int | None = None) -> Headroom:
    """Estimate how long a stream still takes writes, from its size and the age of its oldest message.

    Args:
        info: The stream as it is.
        now: The wall time.
        limit_bytes: The store's limit, for a stream without one of its own.
    """
    config = info.config
    limit = config.max_bytes if config.max_bytes > 0 else limit_bytes
    drops = config.discard == "old" and config.max_bytes > 0
    when_full = "the oldest messages are dropped" if drops else "writes are refused"
    age_s = (now - info.first_time).total_seconds() if info.first_time and info.messages else 0.0
    rate = info.size_bytes / age_s * _HOUR_S if age_s >= _MIN_OBSERVED_S else None
    left = max(0, limit - info.size_bytes) if limit is not None else None
    hours = None
    if left == 0:
        hours = 0.0
    elif left is not None and limit is not None and rate:
        # With an age limit the stream levels off at rate times age; below the limit it never fills.
        ages_out = config.max_age_s > 0 and rate * config.max_age_s / _HOUR_S <= limit
        hours = None if ages_out else left / rate
    return Headroom(bytes_left=left, hours_left=hours, bytes_per_hour=rate, when_full=when_full)


def is_low(*, used: float | None, hours_left: float | None) -> bool:
    """Return whether a stream needs a person: ``used`` is the share that is full, in ``hours_left`` all will be."""
    return (used is not None and used > FULL_SHARE) or (hours_left is not None and hours_left < LOW_HOURS)


def partition_transform(partitions: int) -> tuple[str, str]:
    """Return the transform that files mail under its partition, hashed over type and key."""
    return "cb.mail.*.*", f"cb.mbox.{{{{wildcard(1)}}}}.{{{{partition({partitions},1,2)}}}}.{{{{wildcard(2)}}}}"


def _task_streams(settings: TopologySettings) -> tuple[StreamConfig, ...]:
    work = StreamConfig(
        name=WORK,
        # Exactly these: with cb.task.> a misspelled lane would be stored and never run.
        subjects=("cb.task.*", "cb.task.*.high", "cb.task.*.low"),
        retention="workqueue",
        replicas=settings.replicas,
        discard="new",  # a full queue refuses the submitter; discarding old would lose acknowledged tasks
        max_bytes=settings.queue_max_bytes,
        duplicate_window_s=settings.dedup_window_s,
        allow_atomic=True,
        allow_direct=True,
        allow_msg_ttl=True,
    )
    # A stream of its own, because the server refuses schedules together with "discard new" (10052): a schedule that
    # cannot fire into a full stream gets stuck. Schedules fire only into their own stream (10190), so due tasks are
    # pulled from here. No limit may be set: with "discard old" it would drop waiting schedules in silence.
    later = StreamConfig(
        name=LATER,
        subjects=("cb.later.>", "cb.due.*"),
        retention="workqueue",
        replicas=settings.replicas,
        duplicate_window_s=settings.dedup_window_s,
        allow_atomic=True,
        allow_direct=True,
        allow_msg_ttl=True,
        allow_rollup=True,  # the server switches it on with schedules
        allow_schedules=True,
    )
    ledger = StreamConfig(
        name=LEDGER,
        subjects=("cb.result.*.*", "cb.attempt.*.*.*"),
        replicas=settings.replicas,
        max_msgs_per_subject=1,  # with the next two: the first record of a task stands, whoever writes
        discard="new",
        discard_new_per_subject=True,
        max_age_s=settings.result_ttl_s,
        max_bytes=settings.ledger_max_bytes,
        allow_atomic=True,
        allow_direct=True,
        deny_delete=True,
        deny_purge=True,
    )
    return work, later, ledger


def _dead(settings: TopologySettings) -> StreamConfig:
    return StreamConfig(
        name=DEAD,
        subjects=("cb.dead.>",),
        replicas=settings.replicas,
        discard="new",  # a task is terminated only after its dead letter is stored, so refusing loses nothing
        max_age_s=settings.dead_ttl_s,
        max_bytes=settings.dead_max_bytes,
        allow_direct=True,
    )


def _actors(settings: TopologySettings) -> StreamConfig:
    return StreamConfig(
        name=ACTORS,
        subjects=("cb.mail.*.*", "cb.state.>", "cb.step.>", "cb.event.>", "cb.timer.>", "cb.cursor.>"),
        subject_transform=partition_transform(settings.partitions),
        replicas=settings.replicas,
        # No max_age, bytes or message limit: state must outlive any age, and as a stream with schedules it can only
        # discard old, which would drop the state of the longest idle actor first. The store's limit refuses writes.
        max_consumers=settings.actor_max_consumers,  # explicit: unlimited means the server's default of 1,000
        duplicate_window_s=settings.dedup_window_s,
        allow_atomic=True,
        allow_direct=True,
        allow_msg_ttl=True,
        allow_rollup=True,
        allow_schedules=True,  # forbids deny_purge: the server switches it off in silence
    )


def _post(settings: TopologySettings) -> StreamConfig:
    return StreamConfig(
        name=POST,
        # Headers are not limited, subjects are: whoever may write into a stream with schedules may delete all of it
        # by a roll-up. Users who only give work write here, where the server refuses that; a host makes mail of it.
        subjects=("cb.tell.*.*",),
        replicas=settings.replicas,
        discard="new",
        duplicate_window_s=settings.dedup_window_s,
        allow_direct=True,
        deny_delete=True,
    )


def _audit_streams(settings: TopologySettings) -> tuple[StreamConfig, ...]:
    audit = StreamConfig(
        name=AUDIT,
        # One source with all filters: it copies in the order of the original, so the last copy says how far it is.
        sources=(Source(ACTORS, subjects.AUDITED),),
        replicas=settings.replicas,
        max_age_s=settings.audit_ttl_s,
        max_bytes=settings.audit_max_bytes or UNLIMITED,
        duplicate_window_s=0.0,  # nobody publishes here; the server reads back 0 for a stream of sources
        allow_direct=True,
        deny_delete=True,
        deny_purge=True,
        # TTL stays off, so copies outlive their originals. One server can write the copies without waiting for the
        # disk: after a power cut it copies again what it lost, from originals that are kept until the copy is on
        # disk. Replicated streams cannot.
        persist_async=settings.replicas == 1,
    )
    gaps = StreamConfig(
        name=GAPS,
        subjects=("cb.gap.>",),
        replicas=settings.replicas,
        max_msgs_per_subject=1,  # with the next two: each missed message is copied once, whoever repairs
        discard="new",
        discard_new_per_subject=True,
        max_age_s=settings.audit_ttl_s,
        duplicate_window_s=settings.dedup_window_s,
        allow_direct=True,
        deny_delete=True,
        deny_purge=True,
    )
    return audit, gaps


def _tokens(settings: TopologySettings) -> StreamConfig:
    return StreamConfig(
        name=TOKENS,
        subjects=("cb.token.>",),
        storage="memory",
        replicas=settings.replicas,
        max_age_s=settings.token_ttl_s,
        max_bytes=settings.tokens_max_bytes,
        duplicate_window_s=min(settings.dedup_window_s, settings.token_ttl_s),  # the server refuses a longer one
        allow_direct=True,
    )


def _bucket(
    name: str,
    settings: TopologySettings,
    *,
    history: int = 1,
    allow_msg_ttl: bool = False,
    allow_rollup: bool = True,
    allow_atomic: bool = False,
) -> StreamConfig:
    """Return the stream of a key-value bucket as NATS clients make it."""
    return StreamConfig(
        name=name,
        subjects=(f"$KV.{name.removeprefix('KV_')}.>",),
        replicas=settings.replicas,
        max_msgs_per_subject=history,
        discard="new",
        allow_direct=True,
        allow_msg_ttl=allow_msg_ttl,
        allow_rollup=allow_rollup,
        allow_atomic=allow_atomic,
        deny_delete=True,
    )


def _objects(settings: TopologySettings) -> StreamConfig:
    """Return the stream of the object bucket as NATS clients make it."""
    bucket = BLOBS.removeprefix("OBJ_")
    return StreamConfig(
        name=BLOBS,
        subjects=(f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"),
        replicas=settings.replicas,
        discard="new",
        allow_direct=True,
    )


def _consumer(name: str, filter_subject: str, settings: ConsumerNumbers) -> ConsumerConfig:
    return ConsumerConfig(
        name=name,
        filter_subject=filter_subject,
        ack_wait_s=settings.ack_wait_s,
        max_ack_pending=settings.max_ack_pending,
        max_deliver=-1,  # beyond a limit the broker would keep a task for ever without handing it out
    )
