"""Replies on their way to whoever asked: a value, or a ``Cb-Error`` header with its reason."""

from __future__ import annotations

import contextlib

import msgspec
from msgspec import UNSET, Raw

from callboard.runtime import codec, events, logs, subjects
from callboard.runtime.actor.execute import Done, Ending, Raised, Stopped
from callboard.runtime.actor.mail import Mail
from callboard.runtime.actor.record import Reply, ReplyError
from callboard.runtime.actor.services import Services
from callboard.runtime.blobs import claim_header
from callboard.runtime.bus import header
from callboard.runtime.errors import BusError, CallboardError, PayloadTooLargeError, TurnCancelledError
from callboard.runtime.record import Failure, failure_of
from callboard.runtime.redact import redact_text

_log = logs.get_logger(__name__)


def value_reply(reply_id: str, value: object) -> Reply:
    """Return the reply that holds a handler's result.

    Raises:
        EncodeError: If it has no JSON form.
    """
    return Reply(id=reply_id, value=Raw(codec.encode(value)))


def error_reply(reply_id: str, error: CallboardError) -> Reply:
    """Return the reply that is one of our errors."""
    return Reply(id=reply_id, error=ReplyError(code=error.code, message=redact_text(str(error))))


def failure_reply(reply_id: str, failure: Failure) -> Reply:
    """Return the reply that is a failure of a handler."""
    kind = failure.type if isinstance(failure.type, str) else ""
    return Reply(id=reply_id, error=ReplyError(code=failure.code, message=failure.message, type=kind))


async def stowed(services: Services, reply: Reply, *, is_kept: bool) -> Reply:
    """Return a reply as it travels and is kept: a large value goes to the object store.

    Raises:
        BusError: If it cannot be stored.
    """
    size_bytes = len(reply.value) if reply.value is not UNSET else 0
    limit_bytes = services.rules.reply_inline_bytes if is_kept else services.rules.claim_check_bytes
    if reply.value is UNSET or size_bytes <= limit_bytes:
        return reply
    return Reply(id=reply.id, blob=await services.blobs.put(bytes(reply.value)))


async def of(services: Services, mail: Mail, ending: Ending) -> Reply:
    """Return the reply that the end of a turn is, for one whose end is not committed by itself."""
    match ending:
        case Done(value=value):
            try:
                return await stowed(services, value_reply(mail.id, value), is_kept=mail.has_own_id)
            except CallboardError as error:
                return error_reply(mail.id, error)
        case Raised(error=raised):
            return failure_reply(mail.id, failure_of(raised))
        case Stopped(error=stopped):
            return error_reply(mail.id, stopped)
    return error_reply(mail.id, TurnCancelledError("the turn around it was stopped"))


async def send(services: Services, reply_to: str, reply: Reply) -> None:
    """Publish an answer. Best effort: a caller that misses it asks again under the same id.

    Nothing goes to a subject on which only workers write (see ``subjects.may_answer_on``).
    """
    if not subjects.may_answer_on(reply_to):
        _log.warning(events.REPLY_REFUSED, subject=reply_to[:200])
        return
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
    """Publish one part of a streamed answer.

    Raises:
        EncodeError: If it has no JSON form.
        PayloadTooLargeError: If it is over the server's limit.
    """
    data = codec.encode(value)
    if not subjects.may_answer_on(reply_to):
        return
    try:
        await services.bus.publish(reply_to, data, headers={header.PART: str(number)})
    except PayloadTooLargeError:
        raise
    except BusError:
        # parts are best effort: the reader sees a gap
        return


def error_body(error: ReplyError) -> bytes:
    """Return the body of an answer that is an error."""
    return msgspec.json.encode({"error": {"code": error.code, "message": error.message, "type": error.type}})
