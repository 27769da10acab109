"""What the parent of a group of workers says once a second on ``cb.group.<id>``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct

from callboard.runtime import events, subjects
from callboard.runtime.backlog import Backlog
from callboard.runtime.bus.base import Message
from callboard.runtime.errors import DecodeError
from callboard.runtime.logs import get_logger

ProcessStatus = Literal["starting", "ready", "leaving"]
_SHOWN = 80
_log = get_logger(__name__)


class ProcessState(Struct, frozen=True, kw_only=True):
    """One child: its place in the group, its process id, and whether it serves, or finishes what it runs and ends."""

    slot: int
    pid: int
    status: ProcessStatus


class Bounds(Struct, frozen=True, kw_only=True):
    """How few and how many processes a group that scales itself may have."""

    min: int
    max: int


class GroupBeat(Struct, frozen=True, kw_only=True):
    """What the parent says of its group.

    Attributes:
        wanted: Processes that there shall be; those that leave do not count.
        bounds: Of a group that scales itself; None for one of a fixed size.
        why: What the last decision about its size was made of.
        backlog: The work of its capabilities, when it scales itself.
    """

    v: int
    group: str
    host: str
    pid: int
    version: str
    status: Literal["ready", "draining", "stopped"]
    started_at: datetime
    at: datetime
    labels: dict[str, str]
    wanted: int
    processes: list[ProcessState]
    bounds: Bounds | None = None
    why: str = ""
    capabilities: list[str] = []
    actors: list[str] = []
    backlog: list[Backlog] = []


_decoder = msgspec.json.Decoder(GroupBeat)


def decode_group(data: bytes) -> GroupBeat:
    """Return the group's beat in ``data``.

    Raises:
        DecodeError: If it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is not a group's beat: {error}"
        raise DecodeError(message) from error


def heard(message: Message) -> GroupBeat | None:
    """Return the group's beat that came in, None for what is none or speaks for another group than its subject."""
    try:
        beat = decode_group(message.data)
    except DecodeError:
        return None
    if message.subject != subjects.group(beat.group):
        _log.warning(events.BEAT_FORGED, subject=message.subject, worker=beat.group[:_SHOWN])
        return None
    return beat
