"""What an actor was at a moment of the past: the versions of its state record, wherever they are kept.

A version is kept in ``CB_AUDIT`` for as long as that stream keeps its messages, the latest ones in ``CB_ACTORS`` too,
and the last one there for ever. Both are asked, so that neither the copy's lag nor its age limit shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

from msgspec import UNSET, Raw, Struct

from callboard.runtime import subjects
from callboard.runtime.actor import archive, record
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.audit import closing
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.errors import BlobCorruptError, HistoryError, NotFoundError

Moment = int | datetime
"""A sequence of ``CB_ACTORS``, or a time."""


class Version(Struct, frozen=True, kw_only=True):
    """One version of an actor's state record.

    Attributes:
        seq: Its sequence in ``CB_ACTORS``.
        at: When it was written, by the clock of the host that wrote it.
        data: The record as it was stored.
    """

    seq: int
    at: datetime
    data: bytes
    record: StateRecord

    @property
    def digest(self) -> str:
        """SHA-256 of the record as it was stored, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


def version_of(stored: Stored) -> Version:
    """Return the version in a message of a state's subject, with the original's sequence.

    Raises:
        DecodeError: If it holds no record.
    """
    found = record.decode(stored.data)
    at = found.at if found.at is not UNSET else stored.time
    return Version(seq=stored.seq, at=at, data=stored.data, record=found)


async def version_at(bus: Bus, address: Address, moment: Moment | None = None) -> Version:
    """Return the last version at or before a moment; None: the latest.

    Some 40 direct gets for a million messages, whatever the number of versions.

    Raises:
        HistoryError: If the moment lies before everything that is kept of it; the text says what is kept.
        NotFoundError: If nothing is kept of it at all.
        DecodeError: If what stands there is no state record.
    """
    subject = subjects.state(address.type, address.key)
    found = [version_of(late) for late in await late_copies(bus, [subject])]
    for stream in (subjects.ACTORS, subjects.AUDIT):
        info = await bus.stream_info(stream)
        if info is None:
            continue

        def is_after(stored: Stored, stream: str = stream) -> bool:
            return _is_later(version_of(_original(stream, stored)), moment)

        pair = await archive.seek(bus, stream, subject, is_after, last_seq=info.last_seq)
        found += [version_of(_original(stream, stored)) for stored in pair if stored is not None]
    before = [version for version in found if not _is_later(version, moment)]
    if not before:
        raise _unknown(address, moment, min(found, key=lambda version: version.seq, default=None))
    return max(before, key=lambda version: version.seq)


async def messages(bus: Bus, address: Address) -> AsyncGenerator[Stored, None]:
    """Yield all that is kept of an actor, as originals in their order: states, mail, steps, events, parked turns.

    A message that stands in several streams comes once. Reads them side by side, from the beginning to their end.
    """
    kind, token = address.type, address.token
    wanted = [f"cb.state.{kind}.{token}", f"cb.state.{kind}.{token}.parked.*", f"cb.mbox.{kind}.*.{token}"]
    wanted += [f"cb.step.{kind}.{token}.>", f"cb.event.{kind}.{token}"]
    # In the order of preference: an original knows when it was stored.
    readers = [_read(bus, stream, wanted) for stream in (subjects.ACTORS, subjects.AUDIT)]
    readers.append(_listed(await late_copies(bus, wanted)))
    try:
        heads = [await anext(reader, None) for reader in readers]
        while any(heads):
            first = min((head for head in heads if head is not None), key=lambda head: head.seq)
            yield first
            for place, reader in enumerate(readers):
                while (head := heads[place]) is not None and head.seq <= first.seq:
                    heads[place] = await anext(reader, None)
    finally:
        for reader in readers:
            await reader.aclose()


async def late_copies(bus: Bus, wanted: Sequence[str]) -> list[Stored]:
    """Return what ``CB_AUDIT_GAPS`` holds of these subjects (wildcards allowed), as originals, by sequence."""
    if await bus.stream_info(subjects.GAPS) is None:
        return []
    copies = [_original(subjects.GAPS, copy) async for copy in bus.read(subjects.GAPS, subjects=_gaps_of(wanted))]
    return sorted(copies, key=lambda copy: copy.seq)


async def state_of(bus: Bus, version: Version) -> Raw | None:
    """Return the state that a version holds, as JSON; None when it was never changed.

    Raises:
        HistoryError: If it lay in the object store and is there no more.
    """
    found = version.record
    if found.blob is UNSET:
        return found.state if found.state is not UNSET else None
    try:
        return Raw(await BlobStore(bus).get(found.blob))
    except (NotFoundError, BlobCorruptError) as error:
        message = f"the state of version {version.seq} was too large for a record, and its object is gone: {error}"
        raise HistoryError(message) from error


async def _read(bus: Bus, stream: str, wanted: Sequence[str]) -> AsyncGenerator[Stored, None]:
    if await bus.stream_info(stream) is None:
        return
    async with closing(bus.read(stream, subjects=wanted)) as stored_ones:
        async for stored in stored_ones:
            yield _original(stream, stored)


async def _listed(found: Sequence[Stored]) -> AsyncGenerator[Stored, None]:
    for stored in found:
        yield stored


def _original(stream: str, stored: Stored) -> Stored:
    return stored if stream == subjects.ACTORS else archive.original(stored)


def _gaps_of(wanted: Sequence[str]) -> list[str]:
    return [f"cb.gap.{subject.removeprefix('cb.')}" + ("" if subject.endswith(">") else ".*") for subject in wanted]


def _is_later(version: Version, moment: Moment | None) -> bool:
    if moment is None:
        return False
    return version.seq > moment if isinstance(moment, int) else version.at > moment


def _unknown(address: Address, moment: Moment | None, first: Version | None) -> HistoryError | NotFoundError:
    if first is None:
        return NotFoundError(f"nothing is kept of {address}: it has never run, or its type or key is spelled otherwise")
    begun = f"sequence {first.seq} at {first.at.isoformat(timespec='seconds')}"
    when = f"sequence {moment}" if isinstance(moment, int) else f"{moment}"
    if first.record.turns <= 1:
        return HistoryError(f"{address} did not exist at {when}: its first state is {begun}")
    message = (
        f"what {address} was at {when} is kept no more: the oldest state kept is {begun}, of turn {first.record.turns}"
    )
    return HistoryError(message)
