"""The audit copy of the actors' stream: how far it is, and finding a place in it.

The broker copies messages and states from ``CB_ACTORS`` to ``CB_AUDIT`` in their order, so the last copy tells how
far it is. What it missed all the same is copied late to ``CB_AUDIT_GAPS``, on ``cb.gap.<subject>.<sequence>``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.errors import DecodeError

# What the broker writes on a copy: stream, sequence, filters, transforms, original subject, id.
SOURCE = "Nats-Stream-Source"
_FIELDS = 3
_GAP = "cb.gap."


class Origin(Struct, frozen=True):
    """Where a copy comes from.

    Attributes:
        filters: What is copied along with it, in one order; empty for all.
    """

    stream: str
    seq: int
    filters: tuple[str, ...] = ()


class Extent(Struct, frozen=True, kw_only=True):
    """How far the audit copy is.

    Attributes:
        upto: Everything up to this sequence of ``CB_ACTORS`` is copied.
        problem: Why nothing can be said; ``upto`` is 0 then.
        is_async: Whether copies reach the disk later than they are seen.
    """

    upto: int = 0
    problem: str = ""
    is_async: bool = False


def origin_of(stored: Stored) -> Origin | None:
    """Return where a message of an audit stream comes from; None for one that is no copy."""
    if stored.subject.startswith(_GAP):
        seq = stored.subject.rpartition(".")[2]
        return Origin(subjects.ACTORS, int(seq)) if seq.isdecimal() else None
    text = (stored.headers or {}).get(SOURCE, "")
    # Never a bare split(): several filters are joined by form feeds.
    fields = text.split(" ")
    if len(fields) < _FIELDS or not fields[1].isdecimal():
        return None
    filters = tuple(each for each in fields[2].split("\f") if each != ">")
    return Origin(fields[0], int(fields[1]), filters)


def original(stored: Stored) -> Stored:
    """Return a message of an audit stream as what it is a copy of: its subject and sequence, and the copy's time.

    The broker does not keep the original's time; the copy's is later by the copy's lag. A late copy of
    ``CB_AUDIT_GAPS`` knows it.

    Raises:
        DecodeError: If it is no copy.
    """
    origin = origin_of(stored)
    if origin is None or origin.stream != subjects.ACTORS:
        message = f"message {stored.seq} on {stored.subject} is no copy of {subjects.ACTORS}: somebody else wrote it"
        raise DecodeError(message)
    headers = dict(stored.headers or {})
    headers.pop(SOURCE, None)
    at = headers.pop(header.STORED_AT, None)
    subject = stored.subject
    if subject.startswith(_GAP):
        subject = "cb." + subject.removeprefix(_GAP).rpartition(".")[0]
    time = datetime.fromisoformat(at) if at is not None else stored.time
    return replace(stored, subject=subject, seq=origin.seq, time=time, headers=headers or None)


async def extent(bus: Bus) -> Extent:
    """Return how far the audit copy is. Two round trips.

    Only one source that copies everything in one order says it; with separate sources each has a place of its own.

    Raises:
        BusError: If the broker does not answer.
    """
    info = await bus.stream_info(subjects.AUDIT)
    if info is None:
        return Extent(
            problem=f"stream {subjects.AUDIT} does not exist: run `callboard provision`, or set actors.audit off"
        )
    if info.leader is None:
        return Extent(problem=f"stream {subjects.AUDIT} has no leader now")
    if not info.messages:
        return Extent(is_async=info.config.persist_async)
    last = await bus.get_seq(subjects.AUDIT, info.last_seq)
    origin = origin_of(last) if last is not None else None
    if origin is None or origin.stream != subjects.ACTORS:
        return Extent(problem=f"the last message of {subjects.AUDIT} cannot be read or is no copy of {subjects.ACTORS}")
    missing = [each for each in subjects.AUDITED if origin.filters and each not in origin.filters]
    if missing:
        text = f"{subjects.AUDIT} does not copy {', '.join(missing)} in one order with the rest: one source must do it"
        return Extent(problem=text)
    return Extent(upto=origin.seq, is_async=info.config.persist_async)


async def seek(
    bus: Bus, stream: str, subject: str, is_after: Callable[[Stored], bool], *, last_seq: int
) -> tuple[Stored | None, Stored | None]:
    """Return the last message on a subject before a border and the first one after it; None for what is not there.

    Args:
        bus: Where to look.
        stream: Its name.
        subject: Wildcards allowed.
        is_after: Says of a message whether it lies behind the border; all later ones then do too.
        last_seq: Where the stream ends.

    Cost: some 20 direct gets for a million messages.
    """
    low, high = 1, last_seq + 1
    before: Stored | None = None
    after: Stored | None = None
    while low < high:
        middle = (low + high) // 2
        found = await bus.get_next(stream, middle, subject)
        if found is None or found.seq >= high:
            high = middle
        elif is_after(found):
            after, high = found, middle
        else:
            before, low = found, found.seq + 1
    return before, after
