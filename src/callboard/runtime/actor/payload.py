"""Messages too large to travel: the payload lies in the object store, the mail carries the claim check."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from callboard.runtime.actor.mail import Mail
from callboard.runtime.blobs import CLAIM_CHECK_BYTES, BlobStore, claim_header, parse_claim
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import BlobCorruptError, DecodeError, NotFoundError


async def stow(
    blobs: BlobStore, data: bytes, headers: dict[str, str], *, limit_bytes: int = CLAIM_CHECK_BYTES
) -> bytes:
    """Return what travels of a payload: all of it, or nothing with the claim check put into ``headers``.

    Costs nothing up to ``limit_bytes``; above, the round trips of ``BlobStore.put``.

    Raises:
        BusError: If it could not be put.
    """
    if len(data) <= limit_bytes:
        return data
    headers[header.CLAIM_CHECK] = claim_header(await blobs.put(data))
    return b""


async def stow_write(blobs: BlobStore, write: Write, *, limit_bytes: int = CLAIM_CHECK_BYTES) -> Write:
    """Return a write that travels, as ``stow``.

    Raises:
        BusError: If its payload could not be put.
    """
    if len(write.data) <= limit_bytes:
        return write
    headers = dict(write.headers or {})
    data = await stow(blobs, write.data, headers, limit_bytes=limit_bytes)
    return Write(write.subject, data, headers)


def is_stowed(headers: Mapping[str, str]) -> bool:
    """Return whether the payload lies in the object store."""
    return header.CLAIM_CHECK in headers


async def fetch(blobs: BlobStore, data: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the payload of a message, wherever it lies.

    Raises:
        DecodeError: If the claim check is malformed, or what it names is gone or damaged.
        BusError: If it cannot be read now.
    """
    claim = headers.get(header.CLAIM_CHECK)
    if claim is None:
        return data
    try:
        return await blobs.get(parse_claim(claim))
    except (NotFoundError, BlobCorruptError) as error:
        message = f"the payload cannot be had: {error}"
        raise DecodeError(message) from error


async def whole(blobs: BlobStore, mail: Mail) -> Mail:
    """Return a mail with its payload in it; what is wrong with that stands in ``problem``.

    Raises:
        BusError: If it cannot be read now.
    """
    if mail.problem or not is_stowed(mail.headers):
        return mail
    try:
        return replace(mail, data=await fetch(blobs, mail.data, mail.headers))
    except DecodeError as error:
        return replace(mail, problem=str(error))
