"""What waits for one actor, oldest first, in bounded memory; beyond the bound it is read from the stream again."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from callboard.runtime import subjects
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.mail import Mail, mail_of
from callboard.runtime.bus.base import Bus, Stored

IN_MEMORY = 256


class Mailbox:
    """Unapplied mail of one actor. The stream holds all of it; this is the part next in turn.

    Attributes:
        arrived: Highest sequence ever pushed.
    """

    __slots__ = ("_address", "_cut_from", "_mails", "_partition", "arrived", "count")

    def __init__(self, address: Address, partition: int, *, read_from: int | None = None) -> None:
        """Begin empty; ``read_from`` says that mail from this sequence on may wait in the stream unseen."""
        self._address = address
        self._partition = partition
        self._mails: deque[Mail] = deque()
        self._cut_from = read_from
        self.arrived = 0
        self.count = 0

    def push(self, mail: Mail) -> bool:
        """Take a mail that came by; a repeat is left out. Returns whether it was new."""
        if mail.seq <= self.arrived:
            return False
        self.arrived = mail.seq
        self.count += 1
        if self._cut_from is None and len(self._mails) < IN_MEMORY:
            self._mails.append(mail)
        elif self._cut_from is None:
            self._cut_from = mail.seq
        return True

    @property
    def first_seq(self) -> int | None:
        """Sequence of the oldest waiting mail, or a lower bound of it; None when nothing waits."""
        return self._mails[0].seq if self._mails else self._cut_from

    @property
    def cut_from(self) -> int | None:
        """Sequence from which on mail waits in the stream only; None when all of it is here."""
        return self._cut_from

    @property
    def depth(self) -> int:
        """Mails waiting, as far as they were seen here."""
        return max(self.count, len(self._mails))

    @property
    def must_read(self) -> bool:
        """Whether the next mail has to be read from the stream."""
        return not self._mails and self._cut_from is not None

    def head(self) -> Mail | None:
        """Return the oldest mail, which stays."""
        return self._mails[0] if self._mails else None

    def oldest_but(self, handled: Collection[int]) -> int | None:
        """Return the sequence of the oldest waiting mail that is not among ``handled``, or a lower bound of it."""
        for mail in self._mails:
            if mail.seq not in handled:
                return mail.seq
        return self._cut_from

    def waiting(self) -> tuple[Mail, ...]:
        """Return what is in memory, oldest first."""
        return tuple(self._mails)

    def missed(self) -> None:
        """Take note that mail may have come by unseen: whatever follows the latest is read from the stream."""
        if self._cut_from is None:
            self._cut_from = self.arrived + 1

    def remove(self, seq: int) -> None:
        """Forget a handled mail."""
        if self._mails and self._mails[0].seq == seq:
            self._mails.popleft()
        else:
            kept = [mail for mail in self._mails if mail.seq != seq]
            if len(kept) == len(self._mails) and (self._cut_from is None or seq < self._cut_from):
                return
            self._mails = deque(kept)
        self.count = max(0, self.count - 1)

    async def read(self, bus: Bus, *, above: int) -> None:
        """Fill up from the stream with mail above ``above``. Mail that arrives meanwhile is not lost.

        Raises:
            BusError: If it cannot be read now.
        """
        start = max(above + 1, self._cut_from or 0)
        subject = subjects.mailbox(self._address.type, self._partition, self._address.key)
        found: list[Mail] = []
        is_whole = True
        stored = await next_stored(bus, start, subject)
        while stored is not None:
            if len(found) >= IN_MEMORY:
                is_whole = False
                break
            found.append(mail_of(stored))
            stored = await next_stored(bus, stored.seq + 1, subject)
        self._mails.extend(found)
        last = found[-1].seq if found else start - 1
        # what arrived while we read and lies beyond what we found is read next time
        if is_whole and self.arrived <= last:
            self._cut_from = None
        else:
            self._cut_from = last + 1
        self.arrived = max(self.arrived, last)
        self.count = max(self.count, len(self._mails))


async def next_stored(bus: Bus, seq: int, subject: str) -> Stored | None:
    """Return the next mail on ``subject`` from ``seq`` on. That there is none is the leader's word.

    Any server may answer a direct get, one that is behind too: mail that it has not yet would be taken for handled.

    Raises:
        BusError: If it cannot be read now.
    """
    found = await bus.get_next(subjects.ACTORS, seq, subject)
    return found if found is not None else await bus.get_next(subjects.ACTORS, seq, subject, from_leader=True)
