"""Parked turns: what is kept of them, and how it is read back."""

from __future__ import annotations

from datetime import timedelta

from msgspec import UNSET, Raw
from msgspec.structs import replace

from callboard.runtime import codec, subjects
from callboard.runtime.actor import payload, verdict
from callboard.runtime.actor.mail import KIND_WAIT_TIMEOUT, Mail, mail_of
from callboard.runtime.actor.outbox import wait_over_write, wait_timer_write
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.record import Parked, ParkedTurn, Waited, decode_parked, encode
from callboard.runtime.actor.turn import Turn, Wait
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored, Write
from callboard.runtime.errors import BusError, DecodeError

TOMBSTONE_TTL_S = 3600.0
_RETRY_S = 0.25


async def kept_writes(activation: Staged, turn: Turn, wait: Wait, waiting: Parked | None) -> tuple[Parked, list[Write]]:
    """Return the entry of a turn that parks, and the writes that keep it: its input with its journal, and its timer.

    All of that is one object in the store when it is too large for a message.

    Raises:
        BusError: If the object cannot be stored now.
    """
    now = activation.services.clock.now()
    parked = Parked(
        seq=turn.mail.seq,
        awaiting=wait.awaiting,
        since=now,
        where=Raw(codec.encode(dict(wait.where))) if wait.where is not None else UNSET,
        until=now + timedelta(seconds=wait.timeout_s) if wait.timeout_s is not None else UNSET,
        hold=wait.hold,
        waits=len(turn.waits),
        id=verdict.digest_of(turn.mail.id) if turn.mail.has_own_id else "",
        askers=waiting.askers if waiting is not None else [],
    )
    steps = {name: Raw(data) for name, data in turn.journal.entries.items()}
    steps |= {name: Raw(b"true") for name in turn.sent}
    bundle = ParkedTurn(
        seq=turn.mail.seq,
        id=turn.mail.id,
        data=b"" if payload.is_stowed(turn.mail.headers) else turn.mail.data,
        headers=dict(turn.mail.headers),
        time=turn.mail.time,
        has_own_id=turn.mail.has_own_id,
        steps=steps,
        waits=turn.waits,
    )
    services = activation.services
    subject = subjects.parked(activation.address.type, activation.address.key, parked.seq)
    write = Write(subject, encode(bundle), header.build(rollup=True))
    writes = [await payload.stow_write(services.blobs, write, limit_bytes=services.rules.claim_check_bytes)]
    if parked.until is not UNSET:
        writes.append(wait_timer_write(activation.address, parked, turn.cause_seq))
    elif waiting is not None and waiting.until is not UNSET:
        writes.append(wait_over_write(activation.address, waiting))
    return parked, writes


def end_writes(activation: Staged, parked: Parked) -> list[Write]:
    """Return the writes that end a parked turn's record and its timer."""
    address = activation.address
    subject = subjects.parked(address.type, address.key, parked.seq)
    writes = [Write(subject, b"", header.build(rollup=True, ttl_s=TOMBSTONE_TTL_S))]
    if parked.until is not UNSET:
        writes.append(wait_over_write(address, parked))
    return writes


async def read(activation: Staged, seq: int) -> ParkedTurn | None:
    """Return what was kept of a parked turn, None when it has ended. Waits for the broker.

    Raises:
        DecodeError: If it cannot be understood, or its object is gone.
    """
    services = activation.services
    subject = subjects.parked(activation.address.type, activation.address.key, seq)
    while True:
        try:
            stored = await services.bus.get_last(subjects.ACTORS, subject, from_leader=True)
            if stored is None:
                return None
            data = await payload.fetch(services.blobs, stored.data, stored.headers or {})
        except BusError as error:
            if not error.retryable:
                raise
            await services.clock.sleep(_RETRY_S)
            continue
        return decode_parked(data) if data else None


async def first_mail(activation: Staged, kept: ParkedTurn) -> Mail:
    """Return the mail that a parked turn began with.

    Raises:
        DecodeError: If its payload is gone.
        BusError: If it cannot be read now.
    """
    mail = await payload.whole(activation.services.blobs, sender_of(activation, kept))
    if mail.problem:
        raise DecodeError(mail.problem)
    return mail


def sender_of(activation: Staged, kept: ParkedTurn) -> Mail:
    """Return the mail that a parked turn began with, as it came: good for answering it."""
    address = activation.address
    subject = subjects.mailbox(address.type, activation.owner.number, address.key)
    stored = Stored(subject=subject, data=kept.data, seq=kept.seq, time=kept.time, headers=kept.headers or None)
    return mail_of(stored)


def resumed(kept: ParkedTurn, mail: Mail) -> ParkedTurn:
    """Return a parked turn with the end of its wait: ``mail`` is what it waited for, or says that time is up."""
    if mail.kind == KIND_WAIT_TIMEOUT:
        waited = Waited(timed_out=True)
    else:
        waited = Waited(data=verdict.said(mail)[1], content_type=mail.content_type or "")
    return replace(kept, waits=[*kept.waits, waited])
