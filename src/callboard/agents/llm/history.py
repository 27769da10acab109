"""Calls that were made, read back from the journal of turns and from the audit's copies of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from msgspec import UNSET, Raw

from callboard.agents.llm import record
from callboard.agents.llm.record import ModelCall, Record
from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.errors import DecodeError, NotFoundError


async def read_calls(bus: Bus, *, since: datetime | None = None) -> AsyncIterator[Record]:
    """Read the records of all calls, oldest first within a stream: first the audit's copies, then what is not copied.

    Reads every step of every actor since then. A record that stands in both streams comes once.

    Args:
        bus: A connection that may read CB_AUDIT and CB_ACTORS.
        since: Only what was stored after it; None for all that is kept.
    """
    seen: set[tuple[str, str, int]] = set()
    blobs = BlobStore(bus)
    for stream in (subjects.AUDIT, subjects.ACTORS):
        try:
            async for stored in bus.read(stream, subjects=("cb.step.>",), start_time=since):
                found = await _record(stored, blobs)
                if found is None:
                    continue
                key = (type(found).__name__, found.step, found.attempt)
                if key not in seen:
                    seen.add(key)
                    yield found
        except NotFoundError:
            # a deployment without an audit
            continue


async def find_call(bus: Bus, step_id: str) -> ModelCall | None:
    """Return the record of a call by the id of its step; None while there is none. One or two gets.

    Raises:
        InvalidNameError: If it is no id of a step.
    """
    address, seq, entry = step.parse_id(step_id)
    subject = subjects.step(address.type, address.key, seq, entry)
    stored = await bus.get_last(subjects.ACTORS, subject) or await _copy(bus, subject)
    found = None if stored is None else await _record(stored, BlobStore(bus))
    return found if isinstance(found, ModelCall) else None


async def _copy(bus: Bus, subject: str) -> Stored | None:
    try:
        return await bus.get_last(subjects.AUDIT, subject)
    except NotFoundError:
        return None


async def _record(stored: Stored, blobs: BlobStore) -> Record | None:
    """Return the record of a call that a step's message holds, None if it is another step."""
    try:
        found = step.decode(stored.data)
        data = await _value(found, blobs)
        return record.decode(data) if record.is_record(data) else None
    except (DecodeError, NotFoundError):
        # a step of a later version, or a large value that is gone: no call that could be counted
        return None


async def _value(found: StepRecord, blobs: BlobStore) -> bytes:
    if found.blob is not UNSET:
        return await blobs.get(found.blob)
    return bytes(found.value) if isinstance(found.value, Raw) else b""
