"""A mail's dead letter: what came, why it could not be handled, on ``cb.dead.mail.<type>.<key>.<seq>``."""

from __future__ import annotations

import base64
from collections import Counter
from datetime import datetime

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import payload
from callboard.runtime.actor.address import check_type
from callboard.runtime.actor.mail import Mail
from callboard.runtime.audit import newest_stored
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored, Write
from callboard.runtime.errors import ConflictError, DecodeError
from callboard.runtime.record import Failure
from callboard.runtime.redact import without_secrets


class MailLetter(Struct, frozen=True, kw_only=True):
    """The dead letter of one mail.

    Attributes:
        seq: The mail's sequence in ``CB_ACTORS``.
        failure: Why it could not be handled.
        attempts: Runs of its handler in the host that gave up.
        data_b64: The mail's payload; empty when it lies in the object store, as the claim check in ``headers`` says.
        headers: The mail's headers.
    """

    v: int
    address: str
    seq: int
    id: str
    failure: Failure
    attempts: int
    worker: str
    at: datetime
    mailed_at: datetime
    data_b64: str
    headers: dict[str, str] = {}

    @property
    def data(self) -> bytes:
        """The mail's payload; empty when it lies in the object store."""
        return base64.b64decode(self.data_b64)


class Buried(Struct, frozen=True, kw_only=True):
    """A dead letter and where it lies."""

    seq: int
    stored_at: datetime
    letter: MailLetter


_decoder = msgspec.json.Decoder(MailLetter)


async def letter_of(
    mail: Mail, failure: Failure, *, attempts: int, worker: str, at: datetime, blobs: BlobStore
) -> MailLetter:
    """Return the dead letter of ``mail``; a payload too large for it goes to the object store.

    Raises:
        BusError: If that cannot be stored now.
    """
    headers = without_secrets(mail.headers)
    data = b"" if payload.is_stowed(headers) else await payload.stow(blobs, mail.data, headers)
    return MailLetter(
        v=1,
        address=str(mail.address),
        seq=mail.seq,
        id=mail.id,
        failure=failure,
        attempts=attempts,
        worker=worker,
        at=at,
        mailed_at=mail.time,
        data_b64=base64.b64encode(data).decode(),
        headers=headers,
    )


def decode_letter(data: bytes) -> MailLetter:
    """Return the dead letter in ``data``.

    Raises:
        DecodeError: If it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is not a mail's dead letter: {error}"
        raise DecodeError(message) from error


async def write_letter(bus: Bus, mail: Mail, letter: MailLetter, *, token: str | None = None) -> None:
    """Store a dead letter; one that stands already stays. It must stand before the mail counts as handled.

    Args:
        bus: Where.
        mail: The mail.
        letter: Its letter.
        token: The key as it stood in the mail's subject, where that is no key.

    Raises:
        BusError: If it cannot be stored now; try again.
    """
    kind = mail.address.type
    subject = subjects.dead_mail(kind, mail.address.key, mail.seq) if token is None else f"cb.dead.mail.{kind}.{token}"
    if token is not None:
        subject = f"{subject}.{mail.seq}"
    try:
        await bus.store(Write(subject, msgspec.json.encode(letter), header.build(expected_seq=0)))
    except ConflictError:
        return


async def letters(
    bus: Bus,
    kind: str,
    key: str | None = None,
    *,
    cause: str | None = None,
    since: datetime | None = None,
    limit: int = 100,
) -> list[Buried]:
    """Return dead letters of an actor type's mail, newest first.

    Args:
        bus: Where.
        kind: The type.
        key: Only of this one actor.
        cause: Only with this error code, or this class of a handler's exception.
        since: Only those written since.
        limit: How many at most.

    Raises:
        InvalidNameError: If type or key cannot be used.
        NotFoundError: If the stream does not exist.
    """
    token = "*" if key is None else subjects.escape(key)

    def keeps(stored: Stored) -> bool:
        found = _decode_mail(stored)
        return found is not None and (cause is None or cause in (found.letter.failure.code, found.letter.failure.type))

    wildcard = f"cb.dead.mail.{check_type(kind)}.{token}.*"
    found = await newest_stored(bus, subjects.DEAD, filters=(wildcard,), limit=limit, since=since, keeps=keeps)
    return [letter for stored in found if (letter := _decode_mail(stored)) is not None]


async def counts(bus: Bus) -> dict[str, int]:
    """Return how many dead letters the mail of each actor type has left. One request."""
    found: Counter[str] = Counter()
    for subject, count in (await bus.subject_counts(subjects.DEAD, "cb.dead.mail.*.*.*")).items():
        found[subject.split(".")[3]] += count
    return dict(sorted(found.items()))


def _decode_mail(stored: Stored) -> Buried | None:
    try:
        return Buried(seq=stored.seq, stored_at=stored.time, letter=decode_letter(stored.data))
    except DecodeError:
        return None
