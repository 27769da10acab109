"""A mail's dead letter: what came, why it could not be handled, on ``cb.dead.mail.<type>.<key>.<seq>``."""

from __future__ import annotations

import base64
from datetime import datetime

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor.mail import Mail
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.errors import ConflictError, DecodeError
from callboard.runtime.record import Failure


class MailLetter(Struct, frozen=True, kw_only=True):
    """The dead letter of one mail.

    Attributes:
        seq: The mail's sequence in ``CB_ACTORS``.
        failure: Why it could not be handled.
        attempts: Runs of its handler in the host that gave up.
        data_b64: The mail's payload.
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
        """The mail's payload."""
        return base64.b64decode(self.data_b64)


_decoder = msgspec.json.Decoder(MailLetter)


def letter_of(mail: Mail, failure: Failure, *, attempts: int, worker: str, at: datetime) -> MailLetter:
    """Return the dead letter of ``mail``."""
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
        data_b64=base64.b64encode(mail.data).decode(),
        headers=dict(mail.headers),
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


async def write_letter(bus: Bus, mail: Mail, letter: MailLetter) -> None:
    """Store a dead letter; one that stands already stays. It must stand before the mail counts as handled.

    Raises:
        BusError: If it cannot be stored now; try again.
    """
    subject = subjects.dead_mail(mail.address.type, mail.address.key, mail.seq)
    try:
        await bus.store(Write(subject, msgspec.json.encode(letter), header.build(expected_seq=0)))
    except ConflictError:
        return
