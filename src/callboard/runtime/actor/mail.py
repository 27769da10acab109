"""A mail: one message in an actor's mailbox, as it is stored on ``cb.mail.<type>.<key>``.

A plain publish of JSON is a valid mail: every header is optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from msgspec import Struct

from callboard.runtime import subjects, tracing
from callboard.runtime.actor.address import Address
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored, Write
from callboard.runtime.errors import InvalidNameError

# Kinds of mail beside a user's message (no header): Callboard's own.
KIND_TIMER = "timer"
KIND_WAIT_TIMEOUT = "wait-timeout"
KINDS = frozenset({KIND_TIMER, KIND_WAIT_TIMEOUT})
_CHAIN_SEPARATOR = ","


class Link(Struct, frozen=True):
    """One turn in a chain of messages: whose, and the sequence of the mail that it handles."""

    address: Address
    seq: int

    def __str__(self) -> str:
        """Return ``type/<escaped key>@seq``."""
        return f"{self.address.type}/{self.address.token}@{self.seq}"


class Mail(Struct, frozen=True, kw_only=True):
    """One message to an actor.

    Attributes:
        seq: Its sequence in ``CB_ACTORS``: its place in the order, and its name for all that follows from it.
        id: The sender's idempotency key; ``~<seq>`` when there is none.
        has_own_id: Whether the sender gave the id: then a repeat gets the stored reply.
        type: Name of the message type, None when the sender did not say.
        kind: None for a user's message; else one of ``KINDS``.
        time: When it was stored.
        reply_to: Where the answer goes, "" for a tell.
        sender: Address of the actor that sent it, or what the sender called itself.
        chain: The turns that led to it, the first one first; empty when it came from outside.
        timer: Name of the timer that fired, with ``generation``.
        headers: All headers as they came.
    """

    address: Address
    seq: int
    id: str
    data: bytes
    time: datetime
    has_own_id: bool = False
    type: str | None = None
    kind: str | None = None
    content_type: str | None = None
    reply_to: str = ""
    deadline: datetime | None = None
    sender: str = ""
    chain: tuple[Link, ...] = ()
    timer: str = ""
    generation: int = 0
    problem: str = ""
    headers: Mapping[str, str] = {}


def mail_of(stored: Stored) -> Mail:
    """Return the mail in a stored message of ``cb.mbox.<type>.<partition>.<key>``. Never raises.

    What cannot be understood stands in ``problem``; such a mail is a dead letter, never run.
    """
    _, _, kind, _, token = stored.subject.split(".", 4)
    headers = header.without_batch(stored.headers) or {}
    problem = ""
    deadline = None
    chain: tuple[Link, ...] = ()
    try:
        deadline = _deadline(headers.get(header.DEADLINE))
    except ValueError:
        problem = f"{header.DEADLINE} is not an ISO time with zone: {headers[header.DEADLINE][:80]!r}"
    try:
        chain = parse_chain(headers.get(header.CHAIN, ""))
    except ValueError:
        problem = f"{header.CHAIN} is malformed"
    own_id = headers.get(header.MAIL_ID) or headers.get(header.MSG_ID)
    sign = headers.get(header.MAIL_KIND)
    if sign in KINDS and (header.REPLY_TO in headers or not _is_fired(headers, kind, token)):
        # ours come from the broker's schedules and want no answer; those that are stale are dropped in silence, which
        # nobody else's mail shall be
        problem = f"{header.MAIL_KIND}: {sign} is Callboard's own, for its timers alone: leave the header out"
    if header.REPLAY in headers:
        problem = f"it bears {header.REPLAY}: a replay of history has no effects, so nothing runs it"
    generation = headers.get(header.TIMER_GENERATION, "")
    return Mail(
        address=Address(kind, subjects.unescape(token)),
        seq=stored.seq,
        id=own_id or f"~{stored.seq}",
        has_own_id=bool(own_id),
        data=stored.data,
        time=stored.time,
        type=headers.get(header.TYPE),
        kind=sign if sign in KINDS else None,
        content_type=headers.get(header.CONTENT_TYPE),
        reply_to=headers.get(header.REPLY_TO, ""),
        deadline=deadline,
        sender=headers.get(header.SENDER, ""),
        chain=chain,
        timer=headers.get(header.TIMER, ""),
        generation=int(generation) if generation.isdecimal() and len(generation) < 19 else 0,  # noqa: PLR2004 - int64
        problem=problem,
        headers=headers,
    )


def mail_headers(
    *,
    type: str | None = None,  # noqa: A002 - the word of the wire contract
    id: str | None = None,  # noqa: A002 - as above
    reply_to: str = "",
    deadline: datetime | None = None,
    sender: str = "",
    chain: tuple[Link, ...] = (),
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the headers of a mail, those with a value only, and the trace that it belongs to."""
    headers = dict(extra) if extra else {}
    if type is not None:
        headers[header.TYPE] = type
    if id is not None:
        headers[header.MAIL_ID] = id
    if reply_to:
        headers[header.REPLY_TO] = reply_to
    if deadline is not None:
        headers[header.DEADLINE] = deadline.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if sender:
        headers[header.SENDER] = sender
    if chain:
        headers[header.CHAIN] = _CHAIN_SEPARATOR.join(str(link) for link in chain)
    tracing.inject(headers)
    return headers


def mail_write(to: Address, data: bytes, headers: Mapping[str, str] | None = None) -> Write:
    """Return the write that puts a mail into an actor's mailbox."""
    return Write(subjects.mail(to.type, to.key), data, dict(headers) if headers else None)


def is_key(key: str, token: str) -> bool:
    """Return whether ``token`` is how ``key`` stands in a subject."""
    try:
        return subjects.escape(key) == token
    except InvalidNameError:
        return False


def wrong_key(token: str) -> InvalidNameError:
    """Return the error for a key that stands in a subject in another way than ``subjects.escape`` writes it.

    Two spellings would be one actor with two mailboxes, in two partitions.
    """
    text = (
        f"{token[:80]!r} is no key: take 1 to {subjects.MAX_KEY_BYTES} bytes, each as itself or, where it must be, %XX"
    )
    return InvalidNameError(text, name=token[:80])


def parse_chain(text: str) -> tuple[Link, ...]:
    """Return the chain in a ``Cb-Chain`` header.

    Raises:
        ValueError: If it is malformed.
    """
    if not text:
        return ()
    links = []
    for part in text.split(_CHAIN_SEPARATOR):
        place, at, seq = part.rpartition("@")
        kind, slash, token = place.partition("/")
        if not (at and slash and kind and token):
            raise ValueError(part)
        links.append(Link(Address(kind, subjects.unescape(token)), int(seq)))
    return tuple(links)


def _is_fired(headers: Mapping[str, str], kind: str, token: str) -> bool:
    """Whether a schedule of this actor's has put the mail here: the broker then names it."""
    return headers.get(header.SCHEDULER, "").startswith(f"cb.timer.{kind}.{token}.")


def _deadline(text: str | None) -> datetime | None:
    if not text:
        return None
    deadline = datetime.fromisoformat(text)
    if deadline.tzinfo is None:
        raise ValueError(text)
    return deadline
