"""An actor's past, turn by turn: what came in, what was recorded on the way, what changed, what was answered."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import datetime

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import history
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.difference import Change, difference
from callboard.runtime.actor.history import Moment, Version
from callboard.runtime.actor.mail import Mail, mail_of
from callboard.runtime.actor.record import Parked, Reply, StateRecord, Timer
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.errors import HistoryError

# Mails, and mails with steps, that wait for their turn in memory; beyond it the oldest are forgotten.
MAX_WAITING = 10_000


class Arrival(Struct, frozen=True, kw_only=True):
    """The mail that a turn handled.

    Attributes:
        data: Payload, base64 in JSON.
        at: When it was stored; when it was copied, where the original is gone.
        kind: ``timer`` or ``wait-timeout`` for Callboard's own.
    """

    seq: int
    id: str
    data: bytes
    at: datetime
    type: str | None = None
    kind: str | None = None
    sender: str = ""
    reply_to: str = ""


class Noted(Struct, frozen=True, kw_only=True):
    """What a turn recorded on its way: a step, or an event that it emitted.

    Attributes:
        entry: ``<escaped name>.<digest>.<ordinal>`` of a step, "" for an event.
        data: The record as stored: JSON, where it is.
    """

    seq: int
    entry: str
    data: bytes


class Turn(Struct, frozen=True, kw_only=True):
    """One committed change of an actor's record.

    Attributes:
        version: The record after it.
        missing: Turns before it that are kept nowhere; 0 when it follows the one shown before.
        arrival: What it handled; None when that is kept no more, or a person's order changed the record.
        steps: What it recorded, in order.
        events: What it emitted, in order.
        changes: How the state changed.
        problem: Why the change cannot be told.
        replies: Answers that were kept for callers.
        timers: Timers set.
        untimed: Timers that are gone.
        parked: Turns that wait since.
        resumed: Sequences of turns that waited and do no more.
        status: The status, when it changed.
    """

    version: Version
    missing: int = 0
    arrival: Arrival | None = None
    steps: list[Noted] = []
    events: list[Noted] = []
    changes: list[Change] = []
    problem: str = ""
    replies: list[Reply] = []
    timers: dict[str, Timer] = {}
    untimed: list[str] = []
    parked: list[Parked] = []
    resumed: list[int] = []
    status: str = ""


async def turns(bus: Bus, address: Address, *, after: Moment | None = None) -> AsyncGenerator[Turn, None]:
    """Yield an actor's turns in order, from the beginning of what is kept, or those after a moment.

    Reads all that is kept of the actor once, in order; memory holds what waits for its turn.

    Raises:
        DecodeError: If a version is no state record.
        NotFoundError: If nothing is kept of it at all.
    """
    waiting = _Waiting()
    known: Version | None = None
    # A turn's record is the first of its writes, its events follow it.
    open_turn: Turn | None = None
    async with aclosing(history.messages(bus, address)) as messages:
        async for stored in messages:
            if stored.subject.startswith("cb.event."):
                if open_turn is not None:
                    open_turn.events.append(Noted(seq=stored.seq, entry="", data=stored.data))
            elif not waiting.take(stored, address):
                if open_turn is not None:
                    yield open_turn
                version = history.version_of(stored)
                turn = waiting.turn(version, known)
                open_turn = (
                    await _with_changes(bus, turn, known) if after is None or _is_after(version, after) else None
                )
                known = version
    if open_turn is not None:
        yield open_turn
    if known is None:
        _ = await history.version_at(bus, address)


async def compare(bus: Bus, old: Version, new: Version) -> list[Change]:
    """Return what differs between the states of two versions.

    Raises:
        HistoryError: If one of them lay in the object store and is there no more.
    """
    return difference(await history.state_of(bus, old), await history.state_of(bus, new))


class _Waiting:
    """What was read and belongs to a turn that has not been committed yet."""

    def __init__(self) -> None:
        self._mails: dict[int, Mail] = {}
        self._steps: dict[int, list[Noted]] = {}

    def take(self, stored: Stored, address: Address) -> bool:
        """Keep a message that is no state; return False for a state."""
        parts = stored.subject.split(".")
        match parts[1]:
            case "mbox":
                self._mails[stored.seq] = mail_of(stored)
                _bound(self._mails)
            case "step":
                noted = Noted(seq=stored.seq, entry=".".join(parts[5:]), data=stored.data)
                self._steps.setdefault(int(parts[4]), []).append(noted)
                _bound(self._steps)
            case _:
                return stored.subject != subjects.state(address.type, address.key)
        return True

    def turn(self, version: Version, before: Version | None) -> Turn:
        """Return the turn that wrote a version, with all that was waiting for it."""
        new = version.record
        old = before.record if before is not None else StateRecord()
        mail = self._mails.pop(new.mail, None) if before is None or new.mail != old.mail else None
        old_parked = {parked.seq for parked in old.parked}
        parked = [each for each in new.parked if each.seq not in old_parked or each not in old.parked]
        resumed = sorted(old_parked - {each.seq for each in new.parked})
        about = {new.mail, *resumed, *(each.seq for each in parked)}
        known = {reply.id for reply in old.replies}
        return Turn(
            version=version,
            missing=max(0, new.turns - old.turns - 1) if before is not None or new.turns > 1 else 0,
            arrival=_arrival(mail) if mail is not None else None,
            steps=sorted(_popped(self._steps, about), key=lambda noted: noted.seq),
            replies=[reply for reply in new.replies if reply.id not in known],
            timers={name: timer for name, timer in new.timers.items() if old.timers.get(name) != timer},
            untimed=sorted(old.timers.keys() - new.timers.keys()),
            parked=parked,
            resumed=resumed,
            status=new.status if new.status != old.status else "",
        )


async def _with_changes(bus: Bus, turn: Turn, before: Version | None) -> Turn:
    try:
        old = await history.state_of(bus, before) if before is not None else None
        changes = difference(old, await history.state_of(bus, turn.version))
    except HistoryError as error:
        return msgspec.structs.replace(turn, problem=str(error))
    return msgspec.structs.replace(turn, changes=changes)


def _popped(steps: dict[int, list[Noted]], seqs: Iterable[int]) -> list[Noted]:
    return [noted for seq in seqs for noted in steps.pop(seq, [])]


def _arrival(mail: Mail) -> Arrival:
    return Arrival(
        seq=mail.seq,
        id=mail.id,
        data=mail.data,
        at=mail.time,
        type=mail.type,
        kind=mail.kind,
        sender=mail.sender,
        reply_to=mail.reply_to,
    )


def _bound(waiting: dict[int, Mail] | dict[int, list[Noted]]) -> None:
    if len(waiting) > MAX_WAITING:
        del waiting[next(iter(waiting))]


def _is_after(version: Version, moment: Moment) -> bool:
    return version.seq > moment if isinstance(moment, int) else version.at > moment
