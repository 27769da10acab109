"""Replies on their way to whoever asked: a value, or a ``Cb-Error`` header with its reason."""

from __future__ import annotations

import contextlib

import msgspec
from msgspec import UNSET, Raw

from callboard.runtime import codec
from callboard.runtime.actor.record import Reply, ReplyError
from callboard.runtime.actor.services import Services
from callboard.runtime.blobs import claim_header
from callboard.runtime.bus import header
from callboard.runtime.errors import BusError


def value_reply(reply_id: str, value: object) -> Reply:
    """Return the reply that holds a handler's result.

    Raises:
        EncodeError: If it has no JSON form.
    """
    return Reply(id=reply_id, value=Raw(codec.encode(value)))


async def send(services: Services, reply_to: str, reply: Reply) -> None:
    """Publish an answer. Best effort: a caller that misses it asks again under the same id."""
    headers: dict[str, str] | None = None
    if reply.error is not UNSET:
        headers = {header.ERROR: reply.error.code}
        data = error_body(reply.error)
    else:
        data = bytes(reply.value) if reply.value is not UNSET else b"null"
        if reply.blob is not UNSET and reply.blob.size_bytes > services.rules.claim_check_bytes:
            data, headers = b"", {header.CLAIM_CHECK: claim_header(reply.blob)}
        elif reply.blob is not UNSET:
            with contextlib.suppress(BusError):
                data = await services.blobs.get(reply.blob)
    with contextlib.suppress(BusError):
        await services.bus.publish(reply_to, data, headers=headers)


async def send_part(services: Services, reply_to: str, number: int, value: object) -> None:
    """Publish one part of a streamed answer."""
    with contextlib.suppress(BusError):
        await services.bus.publish(reply_to, codec.encode(value), headers={header.PART: str(number)})


def error_body(error: ReplyError) -> bytes:
    """Return the body of an answer that is an error."""
    return msgspec.json.encode({"error": {"code": error.code, "message": error.message, "type": error.type}})
