"""A mail's dead letter: what came, why it could not be handled, on ``cb.dead.mail.<type>.<key>.<seq>``."""

from __future__ import annotations

import base64
from datetime import datetime

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import payload
from callboard.runtime.actor.mail import Mail
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
