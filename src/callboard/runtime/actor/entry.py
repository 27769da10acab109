"""A turn's writes on their way to the stream, and what may become of them; decided without effects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from callboard.runtime.bus import header
from callboard.runtime.bus.base import MAX_BATCH, Stored, Write
from callboard.runtime.errors import (
    ApiError,
    BusClosedError,
    BusTimeoutError,
    CallboardError,
    ConflictError,
    InputError,
)

_UNAVAILABLE = 503


class Committed(Struct, frozen=True):
    """All writes of the entry stand; ``seqs`` are their sequences in the stream, in order."""

    seqs: tuple[int, ...]


class Fenced(Struct, frozen=True):
    """None of the writes is stored: another record stands on the first one's subject, or what stood there is gone.

    Attributes:
        current: What stands there, as the stream's leader told, or None.
    """

    current: Stored | None


class Refused(Struct, frozen=True):
    """The entry can never be stored as it is, or it is unguarded and nobody can say whether it was stored.

    A ``BusTimeoutError`` means the second. A ``BusClosedError`` means that the bus or the committer ended, perhaps in
    the middle of it.
    """

    error: CallboardError


Result = Committed | Fenced | Refused


class Entry(Struct, eq=False):
    """A turn's writes on their way, and whom to tell.

    Attributes:
        guard: Subject of the first write where that is guarded, else "".
        expected_seq: Sequence that must be the last there.
        order: Number of its arrival.
        tries: How often it came back from an attempt.
        is_flying: It is being sent and can no longer be dropped.
        is_over: Somebody was told, or nobody wants to know any more.
    """

    writes: tuple[Write, ...]
    done: Callable[[Result], None]
    guard: str
    expected_seq: int
    order: int = 0
    tries: int = 0
    is_flying: bool = False
    is_over: bool = False


def to_entry(writes: tuple[Write, ...], done: Callable[[Result], None]) -> Entry:
    """Return the entry of these writes.

    Raises:
        InputError: If there are none or more than a batch takes, one that is not the first is guarded, or one carries
            a message id: a batch with an id seen before is refused whole.
    """
    if not 1 <= len(writes) <= MAX_BATCH:
        message = f"a commit takes 1 to {MAX_BATCH} writes, this one has {len(writes)}"
        raise InputError(message)
    guard, expected_seq = "", 0
    for index, write in enumerate(writes):
        if not write.headers:
            continue
        if header.MSG_ID in write.headers:
            message = f"{write.subject}: a write of a turn takes no {header.MSG_ID}; its guard keeps it single"
            raise InputError(message)
        expected = write.headers.get(header.EXPECTED_SUBJECT_SEQ)
        if expected is None:
            continue
        if index or not expected.isdecimal():
            message = f"{write.subject}: only the first write takes an expected sequence, a number (not {expected!r})"
            raise InputError(message)
        guard, expected_seq = write.subject, int(expected)
    return Entry(writes, done, guard, expected_seq)


def judge(entry: Entry, current: Stored | None) -> Result | None:
    """Return what the record on its guarded subject means for an entry; None when it can still be stored.

    A record with our bytes is ours: it bears the writer, the epoch, the mail and the time.
    """
    if (current.seq if current else 0) == entry.expected_seq:
        return None
    if current is not None and current.data == entry.writes[0].data:
        return Committed(tuple(range(current.seq, current.seq + len(entry.writes))))
    return Fenced(current)


def fate(entry: Entry, error: CallboardError) -> Literal["refuse", "again", "look"]:
    """Return what to do with an entry that met ``error`` on its own: tell, send it again, or look what stands first."""
    if not entry.guard or isinstance(error, BusClosedError):
        return "refuse"
    if isinstance(error, BusTimeoutError):
        return "look"
    # a conflict although the expected sequence is the last: another write is on its way, and may fail
    return "again" if isinstance(error, ConflictError) or _is_passing(error) else "refuse"


def is_about_one(error: CallboardError) -> bool:
    """Return whether one entry of a group may be the cause, and the others could be stored."""
    return not _is_passing(error) and not isinstance(error, BusClosedError)


def _is_passing(error: CallboardError) -> bool:
    """Whether the same will go through later; a cluster without a leader answers with an error of its own."""
    return error.retryable or (isinstance(error, ApiError) and error.status == _UNAVAILABLE)
