"""A worker's heartbeat: a page of load, once a second, on ``cb.beat.<worker>``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from callboard.runtime import events, logs, subjects
from callboard.runtime.bus.base import Message
from callboard.runtime.errors import DecodeError

_SHOWN = 80
_log = logs.get_logger(__name__)

# A beat with a number outside these is none: whoever adds them up or divides by them shall not fail.
Count = Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
WorkerStatus = Literal["starting", "ready", "deaf", "draining", "stopped"]


class CapabilityLoad(Struct, frozen=True, kw_only=True):
    """One capability's slots in a worker.

    Attributes:
        busy: Slots that run a task now.
        unsettled: Finished tasks whose record is on its way.
        backlog: Tasks the broker still had waiting at the last delivery.
        ended: Tasks it ended since its process began: completed, failed, cancelled or expired.
        again: Claims it gave up for another run since then: retried, returned, postponed, dropped or lapsed.
        run_times_s: Times of its latest runs of the handler, some 20 of the latest 256 spread evenly over their order.
        newest: By lane the last task that is known to have been handed out for the first time: when it was stored
            (microseconds since 1970) and its sequence.
        type: Actor type whose actors do it, "" for a plain function.
    """

    name: str
    pool: str
    slots: Count
    busy: Count
    unsettled: Count
    backlog: Count
    is_paused: bool = False
    ended: int = 0
    again: int = 0
    run_times_s: list[float] = []
    newest: dict[str, tuple[int, int]] = {}
    type: str = ""


class ActorLoad(Struct, frozen=True, kw_only=True):
    """One actor type that a worker hosts.

    Attributes:
        partitions: Those it owns now.
        active: Actors in its memory.
        running: Those of them in mid-turn.
        waiting: Those of them with mail that is not handled yet, the ones in mid-turn included.
        mails: Mails in their mailboxes, as far as the owner has read.
        ended: Turns committed since its process began.
        run_times_s: Of its latest turns, as in ``CapabilityLoad``.
        version: Version of the type's state.
        fingerprint: Of the type's handlers and state, so that hosts with other code can be told apart.
        of: Partitions of the deployment, by which an actor's partition follows from its key; 0 when it is not said.
        only: The partitions that the type has actors in, where those are not all.
        busy: Mails that run or wait, by key; at most 256 keys, those with the most. Who is not listed is idle.
    """

    kind: str
    partitions: list[Count]
    active: Count
    running: Count
    version: int
    fingerprint: str
    waiting: Count = 0
    mails: Count = 0
    ended: int = 0
    run_times_s: list[float] = []
    of: Count = 0
    only: list[Count] = []
    busy: dict[str, Count] = {}


class Beat(Struct, frozen=True, kw_only=True):
    """What a worker says of itself.

    Attributes:
        server: Name of the server that its keeper, who answers pings, is connected to; "" when it is not known.
        group: Id of the parent process that keeps it, which takes orders for all its children; "" without one.
        restarts: How often its parent has started a process anew in its place.
        fetched_at: When the broker last answered its pulls; a worker that is connected and deaf stops moving it.
    """

    v: int
    worker: str
    host: str
    pid: int
    version: str
    status: WorkerStatus
    started_at: datetime
    at: datetime
    fetched_at: datetime | None
    labels: dict[str, str]
    capabilities: list[CapabilityLoad]
    server: str = ""
    group: str = ""
    actors: list[ActorLoad] = []
    restarts: int = 0


_decoder = msgspec.json.Decoder(Beat)


def encode_beat(beat: Beat) -> bytes:
    """Return a beat as JSON."""
    return msgspec.json.encode(beat)


def decode_beat(data: bytes) -> Beat:
    """Return the beat in ``data``.

    Raises:
        DecodeError: If it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is not a heartbeat: {error}"
        raise DecodeError(message) from error


def heard(message: Message) -> Beat | None:
    """Return the beat that came in, None for what is none or speaks for another worker than its subject.

    The subject is the broker's word about who sent it, as far as its users are limited to theirs.
    """
    try:
        beat = decode_beat(message.data)
    except DecodeError:
        return None
    if message.subject != subjects.beat(beat.worker):
        _log.warning(events.BEAT_FORGED, subject=message.subject, worker=beat.worker[:_SHOWN])
        return None
    return beat
