"""What a turn sends, kept back until its commit: mail, timers, events."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from msgspec import UNSET

from callboard.runtime import codec, subjects
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.mail import KIND_TIMER, KIND_WAIT_TIMEOUT, mail_headers
from callboard.runtime.actor.record import Parked, Timer
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import InputError

MAX_OUTGOING = 900
WAIT_TIMER = "~wait"
# Parts the rule of a timer from its time zone, in the actor's record only.
ZONE = " TZ="
_TIMERS = "cb.timer."


class Outbox:
    """The writes of one run of a turn, each known by what it says, so that a resumed turn does not send it again.

    Attributes:
        timers: Timers to be set, None for one to be taken away.
    """

    __slots__ = ("_ordinals", "_sent", "_writes", "timers")

    def __init__(self, sent: Iterable[str] = ()) -> None:
        """Begin empty; ``sent`` are the identities of what left with earlier parts of the turn."""
        self.timers: dict[str, Timer | None] = {}
        self._sent = frozenset(sent)
        self._writes: dict[str, Write] = {}
        self._ordinals: dict[str, int] = {}

    @property
    def writes(self) -> list[Write]:
        """All of it, in the order in which it was sent."""
        return list(self._writes.values())

    @property
    def sent(self) -> frozenset[str]:
        """Identities of everything sent up to the end of this run."""
        return self._sent | frozenset(self._writes)

    def identity(self, what: str, to: str, name: str, data: bytes) -> str:
        """Return what the next write of this content is known by."""
        digest = hashlib.blake2b(f"{what}\0{to}\0{name}\0".encode() + data, digest_size=8).hexdigest()
        stem = f"~out-{what}.{digest}"
        ordinal = self._ordinals.get(stem, 0)
        self._ordinals[stem] = ordinal + 1
        return f"{stem}.{ordinal}"

    def put(self, identity: str, write: Write) -> bool:
        """Keep a write for the commit; False for one that has left with an earlier part of the turn.

        Raises:
            InputError: If the turn sends too much.
        """
        if identity in self._sent:
            return False
        if len(self._writes) >= MAX_OUTGOING:
            text = f"a turn sends at most {MAX_OUTGOING} messages, timers and events: spread them over several turns"
            raise InputError(text)
        self._writes[identity] = write
        return True


def one_per_timer(writes: Iterable[Write]) -> list[Write]:
    """Return the writes with the last one only of each timer: a commit takes one write on the subject of a schedule."""
    given = list(writes)
    last = {write.subject: place for place, write in enumerate(given) if write.subject.startswith(_TIMERS)}
    return [write for place, write in enumerate(given) if last.get(write.subject, place) == place]


def timer_write(address: Address, name: str, timer: Timer, data: bytes, message_type: str | None) -> Write:
    """Return the write that has the server hold a timer."""
    target = subjects.mail(address.type, address.key)
    if timer.due is not UNSET:
        schedule = header.at(timer.due, target)
    else:
        rule, _, zone = timer.rule.partition(ZONE)
        schedule = header.recurring(rule, target, time_zone=zone or None)
    extra = schedule | {
        header.MAIL_KIND: KIND_TIMER,
        header.TIMER: name,
        header.TIMER_GENERATION: str(timer.generation),
    }
    return Write(subjects.timer(address.type, address.key, name), data, mail_headers(type=message_type, extra=extra))


def untimer_write(address: Address, name: str) -> Write:
    """Return the write that takes a timer away; a firing under way finds none of its generation and is dropped."""
    return Write(subjects.timer(address.type, address.key, name), b"", header.cancel_schedule())


def wait_timer_write(address: Address, parked: Parked, generation: int) -> Write:
    """Return the write that has the server end a wait in time."""
    if parked.until is UNSET:
        text = "a wait without an end has no timer"
        raise InputError(text)
    extra = header.at(parked.until, subjects.mail(address.type, address.key)) | {
        header.MAIL_KIND: KIND_WAIT_TIMEOUT,
        header.TIMER: f"{WAIT_TIMER}.{parked.seq}.{parked.waits}",
        header.TIMER_GENERATION: str(generation),
    }
    place = subjects.timer(address.type, address.key, f"{WAIT_TIMER}.{parked.seq}")
    return Write(place, b"null", extra)


def wait_over_write(address: Address, parked: Parked) -> Write:
    """Return the write that takes the timer of a wait away."""
    return untimer_write(address, f"{WAIT_TIMER}.{parked.seq}")


def event_write(address: Address, name: str, data: object, *, ttl_s: float) -> Write:
    """Return the write of an actor's event.

    Raises:
        EncodeError: If ``data`` has no JSON form.
    """
    headers = header.build(ttl_s=ttl_s, extra={header.TYPE: name})
    return Write(subjects.event(address.type, address.key), codec.encode(data), headers)
