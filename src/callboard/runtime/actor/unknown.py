"""Steps with ``once=True`` that began and left no result: find them, and settle them by hand."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from callboard.runtime import codec, subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.blobs import CLAIM_CHECK_BYTES, BlobRef, BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored, Write
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import ConflictError, NotFoundError


class UnknownStep(Struct, frozen=True):
    """A step of which nobody knows whether it took effect."""

    id: str
    record: StepRecord


async def unknown_steps(bus: Bus, address: Address, seq: int) -> list[UnknownStep]:
    """Return the steps of a turn that began with ``once=True`` and left no result, oldest first.

    One of them may still be running. One round trip.
    """
    found = await bus.get_many(subjects.ACTORS, [subjects.steps(address.type, address.key, seq)], from_leader=True)
    records = [(stored, step.decode(stored.data)) for stored in found]
    turn = f"{address}/{seq}"
    return [
        UnknownStep(step.id_of(turn, step.entry_of(stored.subject)), record)
        for stored, record in records
        if record.kind == "intent"
    ]


async def settle_unknown(
    bus: Bus,
    step_id: str,
    value: object,
    *,
    by: str,
    clock: Clock = SYSTEM_CLOCK,
    claim_check_bytes: int = CLAIM_CHECK_BYTES,
) -> None:
    """Record what an unknown step returned: it took effect. The turn's next run takes ``value`` as its result.

    Args:
        bus: A connection that may write steps.
        step_id: As ``StepUnknownError`` and ``unknown_steps`` tell it.
        value: What the step would have returned.
        by: Who says so; stands in the record as its worker.
        clock: Time.
        claim_check_bytes: Values above this are stored as objects.

    Raises:
        InvalidNameError: If ``step_id`` is none.
        NotFoundError: If no such step began.
        ConflictError: If it has a result or was withdrawn, also meanwhile.
        EncodeError: If the value has no JSON form.
        BusTimeoutError: If the outcome is unknown; do it again, a ``ConflictError`` then may mean that it was done.
    """
    stored, record = await _standing(bus, step_id)
    data = codec.encode(value)
    if len(data) > claim_check_bytes:
        blob = await BlobStore(bus, clock=clock).put(data)
        await _replace(bus, stored, record, "done", by=by, clock=clock, blob=blob)
    else:
        await _replace(bus, stored, record, "done", by=by, clock=clock, value=Raw(data))


async def withdraw_unknown(bus: Bus, step_id: str, *, by: str, clock: Clock = SYSTEM_CLOCK) -> None:
    """Record that an unknown step had no effect: the turn's next run runs it. Arguments and errors as above.

    Be sure that its first run has ended: a host that is only cut off would go on with it.
    """
    stored, record = await _standing(bus, step_id)
    await _replace(bus, stored, record, "withdrawn", by=by, clock=clock)


async def _standing(bus: Bus, step_id: str) -> tuple[Stored, StepRecord]:
    address, seq, entry = step.parse_id(step_id)
    stored = await bus.get_last(subjects.ACTORS, subjects.step(address.type, address.key, seq, entry), from_leader=True)
    if stored is None:
        message = f"no step {step_id} began, or its records are gone"
        raise NotFoundError(message)
    record = step.decode(stored.data)
    if record.kind != "intent":
        message = (
            f"step {step_id} is not unknown: it is {record.kind}, written {record.at.isoformat()} by {record.worker}"
        )
        raise ConflictError(message, last_seq=stored.seq)
    return stored, record


async def _replace(
    bus: Bus,
    stored: Stored,
    record: StepRecord,
    kind: step.Kind,
    *,
    by: str,
    clock: Clock,
    value: Raw | UnsetType = UNSET,
    blob: BlobRef | UnsetType = UNSET,
) -> None:
    changed = msgspec.structs.replace(record, kind=kind, at=clock.now(), worker=by, nonce="", value=value, blob=blob)
    # without a lifetime, as the intent below it
    await bus.store(Write(stored.subject, step.encode(changed), header.build(expected_seq=stored.seq)))
