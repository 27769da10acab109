"""Who owns which partition, as far as its cursor was seen."""

from __future__ import annotations

from collections.abc import Collection

from callboard.runtime import events, logs, subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.errors import DecodeError

_log = logs.get_logger(__name__)

READ_EVERY_S = 5.0
CURSORS = "cb.cursor.*.*"

Place = tuple[str, int]


class Owners:
    """The cursors of some types: all read now and then, and at once when one was heard to change."""

    def __init__(self, bus: Bus, worker: str) -> None:
        """Know none; ``worker`` is our own name."""
        self._bus = bus
        self._worker = worker
        self._known: dict[Place, Cursor] = {}
        self._read_s = float("-inf")

    def doubt(self) -> None:
        """Read all of them on the next occasion."""
        self._read_s = float("-inf")

    def learn(self, place: Place, found: Cursor) -> None:
        """Take in a cursor that was read or written."""
        self._known[place] = found

    def known(self, place: Place) -> Cursor:
        """Return a cursor as it was seen last; a first one when none was."""
        return self._known.get(place, Cursor())

    def is_ours(self, place: Place) -> bool:
        """Return whether a cursor names us."""
        return self.known(place).owner == self._worker

    def hear(self, place: Place, found: Cursor) -> bool:
        """Hear that a cursor is being written; return whether it may change its owner.

        It is a doorbell: the write may be refused, and then the next read shows it.
        """
        known = self._known.get(place)
        if known is not None and (known.epoch, known.owner) == (found.epoch, found.owner):
            return False
        self.doubt()
        return True

    async def read(self, kinds: Collection[str], now_s: float) -> list[tuple[Place, Cursor]]:
        """Read all cursors of these types, if it is time; return them, and nothing when it is not.

        Raises:
            BusError: If they cannot be read now.
        """
        if now_s - self._read_s < READ_EVERY_S:
            return []
        self._read_s = now_s
        read: list[tuple[Place, Cursor]] = []
        for stored in await self._bus.get_many(subjects.ACTORS, [f"cb.cursor.{name}.*" for name in kinds]):
            _, _, kind, number = stored.subject.split(".")
            if not number.isdecimal():
                # nobody's partition, whoever wrote that
                continue
            try:
                found = cursors.decode(stored.data)
            except DecodeError as error:
                _log.error(events.PARTITION_UNPLACED, code=error.code, message=f"{stored.subject}: {error}")
                continue
            self._known[kind, int(number)] = found
            read.append(((kind, int(number)), found))
        return read


def decoded(subject: str, stored: Stored | None) -> Cursor | None:
    """Return a cursor as stored, a first one when there is none, and None when it cannot be understood."""
    try:
        return cursors.decode(stored.data) if stored is not None else Cursor()
    except DecodeError as error:
        _log.debug(events.PARTITION_UNPLACED, code=error.code, message=f"{subject}: {error}")
        return None
