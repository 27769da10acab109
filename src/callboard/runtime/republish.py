"""Sending a slice of history again, at a set rate, onto a subject of the reader's own.

Nothing acts on what is sent: it bears ``Cb-Replay``, which no worker and no actor of Callboard runs, none of the
headers that make the broker or a worker do something, and it may not go onto Callboard's own subjects.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime

from msgspec import UNSET, Struct

from callboard.runtime import audit, record, subjects
from callboard.runtime.actor import archive
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import DecodeError, InvalidNameError

STREAMS = (subjects.LEDGER, subjects.AUDIT, subjects.GAPS, subjects.DEAD)
RATE = 100.0
# stands for the subject of the original, in a target
PLACEHOLDER = "{subject}"
FLUSH_EVERY = 256
# What says something about a message and makes nobody do anything.
_TELLING = frozenset(
    name.lower()
    for name in (header.TYPE, header.SENDER, header.CORRELATION, header.CAUSATION, header.RUN, header.SCHEMA)
)
_ACTING = ("nats-", "cb-")
_TARGET = re.compile(r"[!-)+-\-/-=?-~]+(\.[!-)+-\-/-=?-~]+)*")
_OWN = ("cb.", "$", "_INBOX")


class Slice(Struct, frozen=True, kw_only=True):
    """What to send again.

    Attributes:
        stream: One of ``STREAMS``.
        subjects: Patterns; none for all.
        since: Nothing stored earlier; None from the beginning.
        until: Nothing stored later; None to the present end.
        limit: Messages at most; None for all.
        submitted: Of ledger records send what was submitted in place of the record. Attempts, and tasks whose payload
            lies in the object store, are left out then.
    """

    stream: str = subjects.LEDGER
    subjects: Sequence[str] = ()
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None
    submitted: bool = False


class Sent(Struct, frozen=True, kw_only=True):
    """What became of it.

    Attributes:
        messages: Sent, all taken by the server.
        left_out: Of the slice, and not sendable: see ``Slice.submitted``.
        first_seq: Sequence of the first one, 0 when there was none.
        last_seq: Sequence of the last one.
    """

    messages: int
    left_out: int
    first_seq: int
    last_seq: int


async def republish(
    source: Bus,
    target: Bus,
    wanted: Slice,
    *,
    to: str,
    rate: float = RATE,
    clock: Clock = SYSTEM_CLOCK,
    on_sent: Callable[[str, Stored], None] | None = None,
) -> Sent:
    """Send a slice of a stream again. What was sent before an error stays sent.

    Args:
        source: Where it is read.
        target: Where it is sent; the same connection, or another account's.
        wanted: The slice.
        to: The subject; ``{subject}`` in it stands for the original's.
        rate: Messages a second at most; spread evenly, without bursts.
        clock: Time.
        on_sent: Told of each, with its subject.

    Raises:
        InvalidNameError: If the subject cannot be used.
        NotFoundError: If the stream does not exist.
        BusError: If the broker is away.
    """
    check_target(to)
    count, left_out, first_seq, last_seq = 0, 0, 0, 0
    due_s = clock.monotonic()
    async with audit.closing(_read(source, wanted)) as messages:
        async for stored in messages:
            found = _content(stored, submitted=wanted.submitted)
            if found is None:
                left_out += 1
                continue
            data, headers = found
            await clock.sleep(max(0.0, due_s - clock.monotonic()))
            due_s = max(due_s, clock.monotonic() - 1.0 / rate) + 1.0 / rate
            subject = to.replace(PLACEHOLDER, stored.subject)
            await target.publish(subject, data, headers=headers | _mark(wanted.stream, stored))
            if on_sent is not None:
                on_sent(subject, stored)
            count += 1
            first_seq, last_seq = first_seq or stored.seq, stored.seq
            if count % FLUSH_EVERY == 0:
                await target.flush()
            if count == wanted.limit:
                break
    await target.flush()
    return Sent(messages=count, left_out=left_out, first_seq=first_seq, last_seq=last_seq)


def check_target(to: str) -> None:
    """Check a subject that history may be sent to.

    Raises:
        InvalidNameError: If it is none, or Callboard's or the broker's own.
    """
    plain = to.replace(PLACEHOLDER, "x")
    if not _TARGET.fullmatch(plain):
        message = f"{to!r} is no subject to publish on: take tokens joined by dots, without wildcards and spaces"
        raise InvalidNameError(message, name=to)
    if to.startswith(_OWN) or to.startswith(PLACEHOLDER):
        message = (
            f"{to!r} is a subject that Callboard or the broker acts on, and a replay must have no effect: take one of "
            f"your own, such as replay.{PLACEHOLDER}"
        )
        raise InvalidNameError(message, name=to)


async def _read(bus: Bus, wanted: Slice) -> AsyncIterator[Stored]:
    async with audit.closing(bus.read(wanted.stream, subjects=wanted.subjects, start_time=wanted.since)) as messages:
        async for stored in messages:
            if wanted.until is not None and stored.time > wanted.until:
                return
            yield stored


def _content(stored: Stored, *, submitted: bool) -> tuple[bytes, dict[str, str]] | None:
    if not submitted:
        return stored.data, _kept(stored.headers)
    if not stored.subject.startswith("cb.result."):
        return None
    try:
        found = record.decode_task(stored.data).submitted
    except DecodeError:
        return None
    if found is UNSET or found.claim_check is not UNSET:
        return None
    return record.payload_of(found), _kept(found.headers if found.headers is not UNSET else None)


def _kept(headers: Mapping[str, str] | None) -> dict[str, str]:
    found = headers or {}
    return {name: value for name, value in found.items() if name.lower() in _TELLING or not _acts(name)}


def _acts(name: str) -> bool:
    return name.lower().startswith(_ACTING)


def _mark(stream: str, stored: Stored) -> dict[str, str]:
    origin = archive.origin_of(stored)
    stream, seq = (origin.stream, origin.seq) if origin is not None else (stream, stored.seq)
    return {
        header.REPLAY: f"{stream}/{seq}",
        header.REPLAY_SUBJECT: stored.subject,
        header.STORED_AT: stored.time.isoformat().replace("+00:00", "Z"),
    }
