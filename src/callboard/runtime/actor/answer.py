"""What comes back to an asker: a value, or an error that becomes an exception of the same meaning."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from callboard.runtime import codec
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.record import ReplyError
from callboard.runtime.blobs import BlobStore, parse_claim
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.errors import (
    ActorError,
    ActorStoppedError,
    AskFailedError,
    AskTimeoutError,
    CallboardError,
    DeadlineError,
    DecodeError,
    InputError,
    InvalidNameError,
    MailboxFullError,
    MailLoopError,
    NoHostError,
    NotFoundError,
    ReplyGoneError,
    StateDecodeError,
    StateTooLargeError,
    TurnCancelledError,
    UnknownMessageError,
)

# Codes that mean the same to the asker as to whoever raised them; any other one failed inside the actor.
_SAME: dict[str, type[CallboardError]] = {
    kind.code: kind
    for kind in (
        ActorError,
        ActorStoppedError,
        AskTimeoutError,
        DeadlineError,
        DecodeError,
        InvalidNameError,
        MailboxFullError,
        MailLoopError,
        NoHostError,
        NotFoundError,
        ReplyGoneError,
        StateDecodeError,
        StateTooLargeError,
        TurnCancelledError,
        UnknownMessageError,
    )
}


class ErrorBody(Struct, frozen=True):
    """Body of an answer that is an error: ``{"error":{"code","message","type"}}``."""

    error: ReplyError


class _Maybe(Struct, frozen=True):
    """An answer to an order, of which only an error is of interest here."""

    error: ReplyError | UnsetType = UNSET


# Decodes into plain values.
anything = codec.decoder(Any)
_error = msgspec.json.Decoder(ErrorBody)
_maybe = msgspec.json.Decoder(_Maybe)


def is_unheard(message: Message) -> bool:
    """Return whether this is the server's word that nobody listens on the subject of the question."""
    return (
        not message.data and message.headers is not None and message.headers.get(header.STATUS) == header.NO_RESPONDERS
    )


async def value_of(message: Message, address: Address, bus: Bus, *, returns: object = None) -> object:
    """Return the value in an answer. No round trip, two when the value lies in the object store.

    Args:
        message: What came to the reply subject.
        address: Who was asked.
        bus: For the object store.
        returns: The type to decode into; None gives plain values.

    Raises:
        ActorError: One of its kinds, if the answer is an error.
        DecodeError: If the value does not fit ``returns``, or the answer is not JSON.
    """
    headers = message.headers or {}
    if header.ERROR in headers:
        raise failure(message, address)
    data = message.data
    if header.CLAIM_CHECK in headers:
        data = await BlobStore(bus).get(parse_claim(headers[header.CLAIM_CHECK]))
    if not data and returns is None:
        return None
    decode = anything if returns is None else codec.decoder(returns)
    return decode(data, headers.get(header.CONTENT_TYPE))


def failure(message: Message, address: Address) -> CallboardError:
    """Return the exception for an answer with ``Cb-Error``."""
    code = (message.headers or {}).get(header.ERROR, "")
    try:
        found = _error.decode(message.data).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = ReplyError(code=code or ActorError.code, message=message.data[:200].decode(errors="replace"))
    return exception(found, address)


def exception(error: ReplyError, address: Address) -> CallboardError:
    """Return the exception that an error of an answer stands for."""
    known = _SAME.get(error.code)
    # what a handler raised is its own affair, also when it is an error of Callboard's by name
    if known is not None and error.type in ("", known.__name__):
        return known(error.message)
    what = f"{error.type}: {error.message}" if error.type else error.message
    message = f"{address} answered with an error [{error.code}]: {what}"
    return AskFailedError(message, address=str(address), cause_code=error.code, cause_type=error.type)


def check_order(message: Message, address: Address) -> None:
    """Raise the error in an answer to an order, if it is one."""
    try:
        found = _maybe.decode(message.data).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = f"the owner of {address} answered with something that is no answer to an order: {error}"
        raise DecodeError(text) from error
    if found is UNSET:
        return
    known = InputError if found.code == InputError.code else _SAME.get(found.code, ActorError)
    raise known(found.message)
