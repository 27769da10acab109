"""Comparing the audit copy with its original, and copying late what it missed.

The broker writes copies without waiting for the disk where it can, so a power cut may take some. It goes on from where
it believes it was; what is missing before that it does not copy again. A source cannot be sent back, and nobody can
write to a stream of copies. So late copies stand in a stream of their own, once each, and everything that reads the
audit reads both.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import archive, record
from callboard.runtime.audit import closing
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored, Write
from callboard.runtime.errors import BusError, ConflictError, DecodeError, NotFoundError

# Late copies under way at once.
_IN_FLIGHT = 64
# What would be an order to the broker, or is a note about its own doing.
_BROKERS = "Nats-"


class Gap(Struct, frozen=True, kw_only=True):
    """Turns of an actor of which no copy is left anywhere.

    Attributes:
        actor: ``type/escaped key``.
        first: Number of the first turn missing.
        last: Number of the last one.
    """

    actor: str
    first: int
    last: int


class Comparison(Struct, frozen=True, kw_only=True):
    """How the audit copy and its original compare.

    Attributes:
        first: First sequence that was compared; what is older has aged out of the audit.
        upto: Last one: how far the copy is.
        compared: Messages of the original in between.
        copies: Messages of the audit that were looked at.
        missing: Sequences that the audit lacked, at most 1,000 of them.
        missed: How many it lacked.
        repaired: How many of them were copied late now.
        lost: Turns that are in neither; found by their numbers.
        behind: Messages of the original that are not copied yet; they are on their way.
    """

    first: int
    upto: int
    compared: int = 0
    copies: int = 0
    missing: list[int] = []
    missed: int = 0
    repaired: int = 0
    lost: list[Gap] = []
    behind: int = 0


MAX_TOLD = 1000


async def compare(bus: Bus, *, repair: bool, above: int = 0) -> Comparison:
    """Compare the two streams over what the audit keeps, and with ``repair`` copy late what it lacks.

    Reads both once, some 100,000 messages a second; holds 8 bytes for each copy in memory. Repairing twice, or from two
    places at once, is harmless.

    Args:
        bus: Where.
        repair: Whether to copy.
        above: Compare only what has a higher sequence.

    Raises:
        NotFoundError: If a stream is missing.
        DecodeError: If the audit holds what is no copy.
        BusError: If the broker does not answer, or the audit's extent is unknown now.
    """
    extent = await archive.extent(bus)
    if extent.problem:
        raise BusError(extent.problem)
    turns = _Turns()
    copied, first = await _copied(bus, turns, above=above)
    # a read that begins beyond the stream's end would wait for it
    start = max(1, min(first, extent.upto))
    missing: list[int] = []
    missed = repaired = compared = behind = 0
    waiting: list[Write] = []
    async with closing(bus.read(subjects.ACTORS, subjects=subjects.AUDITED, start_seq=start)) as originals:
        async for stored in originals:
            turns.see(stored)
            if stored.seq > extent.upto:
                behind += 1
                continue
            if stored.seq < first:
                continue
            compared += 1
            if _has(copied, stored.seq):
                continue
            missed += 1
            if len(missing) < MAX_TOLD:
                missing.append(stored.seq)
            waiting.append(_late(stored))
            if repair and len(waiting) == _IN_FLIGHT:
                repaired += await _store(bus, waiting)
            if len(waiting) == _IN_FLIGHT:
                waiting.clear()
    if repair:
        repaired += await _store(bus, waiting)
    return Comparison(
        first=first,
        upto=extent.upto,
        compared=compared,
        copies=len(copied),
        missing=missing,
        missed=missed,
        repaired=repaired,
        lost=turns.gaps()[:MAX_TOLD],
        behind=behind,
    )


class _Turns:
    """The numbers of turns whose records were seen, as runs, by actor."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[int, int]]] = {}

    def see(self, stored: Stored) -> None:
        parts = stored.subject.split(".")
        if parts[1] != "state" or len(parts) != 4:  # noqa: PLR2004 - cb.state.<type>.<key>; parked turns have more
            return
        try:
            number = record.decode(stored.data).turns
        except DecodeError:
            return
        runs = self._seen.setdefault(f"{parts[2]}/{parts[3]}", [])
        if runs and runs[-1][0] <= number <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(number, runs[-1][1]))
        else:
            runs.append((number, number))

    def gaps(self) -> list[Gap]:
        """Return what lies between the runs of each actor; what came before the first one has aged out."""
        found = []
        for actor, runs in sorted(self._seen.items()):
            upto = None
            for first, last in sorted(runs):
                if upto is not None and first > upto + 1:
                    found.append(Gap(actor=actor, first=upto + 1, last=first - 1))
                upto = last if upto is None else max(upto, last)
        return found


async def _copied(bus: Bus, turns: _Turns, *, above: int) -> tuple[array[int], int]:
    """Return the sequences of everything that was copied, in time or late, ascending, and the first to look for."""
    info = await bus.stream_info(subjects.AUDIT)
    start = 1
    if above and info is not None:
        _, after = await archive.seek(
            bus, subjects.AUDIT, ">", lambda copy: archive.original(copy).seq > above, last_seq=info.last_seq
        )
        start = after.seq if after is not None else info.last_seq + 1
    found = array("Q")
    async for stored in _copies(bus, subjects.AUDIT, start_seq=start):
        found.append(stored.seq)
        turns.see(stored)
    # Where the audit begins later than asked for, what is older has aged out. Its own first message still there says
    # that nothing has.
    has_aged = info is not None and info.first_seq > 1 and start <= info.first_seq
    first = found[0] if has_aged and found else above + 1
    in_time = len(found)
    async for stored in _copies(bus, subjects.GAPS):
        found.append(stored.seq)
        turns.see(stored)
    return (found if len(found) == in_time else array("Q", sorted(found))), first


async def _copies(bus: Bus, stream: str, *, start_seq: int = 1) -> AsyncIterator[Stored]:
    if await bus.stream_info(stream) is None:
        message = f"stream {stream} does not exist: run `callboard provision`"
        raise NotFoundError(message)
    async with closing(bus.read(stream, start_seq=start_seq)) as stored_ones:
        async for stored in stored_ones:
            yield archive.original(stored)


def _has(copied: array[int], seq: int) -> bool:
    place = bisect_left(copied, seq)
    return place < len(copied) and copied[place] == seq


def _late(stored: Stored) -> Write:
    """Return the write of a late copy: without the broker's headers, which would be orders, and with the time."""
    headers = {name: value for name, value in (stored.headers or {}).items() if not name.startswith(_BROKERS)}
    headers[header.STORED_AT] = stored.time.isoformat()
    return Write(subjects.gap(stored.subject, stored.seq), stored.data, headers)


async def _store(bus: Bus, writes: list[Write]) -> int:
    count = 0
    for answer in await bus.store_many(writes):
        if isinstance(answer, ConflictError):
            continue  # somebody else has copied it meanwhile
        if isinstance(answer, BusError):
            raise answer
        count += 1
    return count
