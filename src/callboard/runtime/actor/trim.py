"""Sweeping what nobody needs any more out of the actors' stream: old mail that is handled, and superseded states.

Nothing goes that was not copied to the audit before, and nothing that is not handled, however old. Steps and events
carry a lifetime of their own and are not touched.

A server that writes copies without waiting for the disk may come back without the last of them. So an original goes
only when its copy has settled; and at the start and after every reconnect, which follows every death of a server, what
had not settled is compared, and copied late where a copy lacks. How far the copies have settled stands in a record.

Every purge names one literal subject: with a wildcard the server looks through all its blocks with the stream locked
(0.3 to 0.8 s at 600 MB were seen), with a literal one only through those from the subject's first message on. Purges
go one after another with pauses between, so that they take a bounded share of the stream's time.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from datetime import timedelta

from msgspec import Struct

from callboard.runtime import events, logs, subjects
from callboard.runtime.actor import archive, repair
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.archive import Extent
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.audit import closing
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.clock import Clock
from callboard.runtime.errors import NotFoundError

_log = logs.get_logger(__name__)

# A copy that the broker writes without waiting for the disk is on it after the server's sync interval, two minutes.
SETTLE_S = 180.0
# Share of the time during which a purge may be under way.
SHARE = 0.2
# Mails looked at in one call; the next call goes on.
MAX_MAILS = 5000
_LOOKS_PER_SETTLE = 30
# A sweep of a partition's mail begins this often in its retention: removing a few at a time would cost as much.
_SWEEPS_PER_RETENTION = 50
_EVERYTHING = sys.maxsize
# How far the copies have settled, in ``upto``; no actor type has such a name.
MARK = "cb.cursor.~audit.0"

Place = tuple[str, int]


class TrimReport(Struct, frozen=True, kw_only=True):
    """What one call has done.

    Attributes:
        mails: Handled mails removed.
        versions: Superseded states removed.
        waiting: Actors of this partition whose superseded states have to wait for the audit copy.
        safe: Everything up to this sequence may go as far as the audit is concerned.
        problem: Why nothing may go now; "" when it may.
    """

    mails: int = 0
    versions: int = 0
    waiting: int = 0
    safe: int = 0
    problem: str = ""


class _Mark(Struct):
    """What may go of one actor: all versions before ``below``; the latest that we know of is at ``latest``."""

    below: int
    latest: int


class _Sweep(Struct):
    """One pass over a partition's mail: when it began, and where it goes on; None when it is through."""

    began_s: float
    next_seq: int | None = 1


class Trimmer:
    """The sweeper of one worker, for all partitions that it owns. One call at a time.

    A host that lost a partition without knowing it does no harm here: that a mail is handled, or a state superseded,
    stays true whoever owns the partition.
    """

    def __init__(
        self, bus: Bus, *, clock: Clock, retention_s: float, audit: bool = True, settle_s: float = SETTLE_S
    ) -> None:
        """Prepare; nothing goes in the first ``settle_s`` after that.

        Args:
            bus: The connection.
            clock: Time.
            retention_s: How long handled mail is kept.
            audit: Whether what goes must have been copied to the audit before.
            settle_s: How long a copy must have been seen before its original may go, where the broker writes copies
                without waiting for the disk. A power cut takes what was not written, and the broker then copies it
                again, from the originals.
        """
        self._bus = bus
        self._clock = clock
        self._retention = timedelta(seconds=retention_s)
        self._audit = audit
        self._settle_s = settle_s
        # when it was looked at, and how far the copy was; ascending in both
        self._looks: deque[tuple[float, int]] = deque()
        self._extent = Extent()
        self._looked_s = float("-inf")
        self._problem = ""
        # How often the server may have come back without copies that we have seen, and how often of that we looked.
        self._doubts = 1
        self._checks = 0
        self._settled = 0
        self._noted = 0
        self._noted_s = float("-inf")
        bus.on_reconnect(self._reconnected)
        self._marks: dict[Place, dict[str, _Mark]] = {}
        self._sweeps: dict[Place, _Sweep] = {}

    async def trim(self, kind: str, partition: int, *, cursor: Cursor, dirty: Mapping[str, int]) -> TrimReport:
        """Sweep one partition. One round trip when there is nothing to do, and a purge for each actor that has some.

        Cancelling leaves the rest for later.

        Args:
            kind: Actor type.
            partition: Its number.
            cursor: The partition's cursor as it stands: it says what is handled.
            dirty: Keys that were committed since the last call, each with the sequence of its latest state. What
                cannot go yet is remembered here.

        Raises:
            BusError: If the broker does not answer, or refuses.
        """
        marks = self._marks.setdefault((kind, partition), {})
        for key, seq in dirty.items():
            # An earlier mark stands: what it covers goes first, and what comes after it is marked then.
            marks.setdefault(key, _Mark(seq, seq)).latest = seq
        safe, problem = await self._safe()
        self._tell(problem)
        versions = await self._trim_states(kind, marks, safe=safe) if safe else 0
        mails = await self._trim_mail(kind, partition, cursor, safe=safe) if safe else 0
        return TrimReport(mails=mails, versions=versions, waiting=len(marks), safe=safe, problem=problem)

    def forget(self, kind: str, partition: int) -> None:
        """Forget a partition that somebody else owns now. What was left there goes after its next commits."""
        self._marks.pop((kind, partition), None)
        self._sweeps.pop((kind, partition), None)

    # --- how far the audit is

    def _reconnected(self) -> None:
        self._doubts += 1
        self._looked_s = float("-inf")

    async def _safe(self) -> tuple[int, str]:
        """Return up to where everything may go, and the problem if nothing may."""
        if not self._audit:
            return _EVERYTHING, ""
        now_s = self._clock.monotonic()
        if now_s - self._looked_s >= self._settle_s / _LOOKS_PER_SETTLE:
            self._looked_s = now_s
            self._extent = found = await archive.extent(self._bus)
            if found.problem or (self._looks and found.upto < self._looks[-1][1]):
                # what was seen of it may be gone, with the stream
                self._looks.clear()
                self._doubts += 1
            if found.is_async and self._checks != self._doubts:
                self._extent = found = await self._checked(found)
            if not found.problem:
                self._looks.append((now_s, found.upto))
        if self._extent.problem:
            return 0, self._extent.problem
        if not self._extent.is_async:
            return self._extent.upto, ""
        settled_s = now_s - self._settle_s
        while len(self._looks) > 1 and self._looks[1][0] <= settled_s:
            self._looks.popleft()
        # empty when the look was cut short: the broker did not answer while the copies were compared
        seen_s, upto = self._looks[0] if self._looks else (now_s, 0)
        if seen_s > settled_s or not upto:
            return 0, ""
        self._settled = max(self._settled, upto)
        await self._note(now_s)
        return upto, ""

    async def _checked(self, found: Extent) -> Extent:
        """Copy late what the audit lacks of what had not settled; return the extent, with the problem if one came."""
        doubts = self._doubts
        self._looks.clear()
        if not self._settled:
            stored = await self._bus.get_last(subjects.ACTORS, MARK)
            self._settled = self._noted = cursors.decode(stored.data).upto if stored is not None else 0
        try:
            compared = await repair.compare(self._bus, repair=True, above=self._settled)
        except NotFoundError as error:
            return Extent(problem=str(error))
        self._checks = doubts
        if compared.missed:
            _log.warning(events.AUDIT_REPAIRED, messages=compared.missed, first=compared.missing[0])
        return found

    async def _note(self, now_s: float) -> None:
        """Write down how far the copies have settled, now and then: the next worker begins to compare there."""
        if self._settled > self._noted and now_s - self._noted_s >= self._settle_s / 3:
            self._noted, self._noted_s = self._settled, now_s
            mark = Cursor(upto=self._settled)
            await self._bus.store(Write(MARK, cursors.encode(mark), header.build(rollup=True)))

    def _tell(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.warning(events.ACTOR_TRIM_HELD, message=problem)
        self._problem = problem

    # --- states

    async def _trim_states(self, kind: str, marks: dict[str, _Mark], *, safe: int) -> int:
        """Remove the versions before each mark that are all copied; mark anew what was committed meanwhile."""
        count = 0
        for key, mark in list(marks.items()):
            if mark.below > safe + 1:
                continue
            count += await self._purge(subjects.state(kind, key), mark.below)
            if mark.latest > mark.below:
                mark.below = mark.latest
            else:
                del marks[key]
        return count

    # --- mail

    async def _trim_mail(self, kind: str, partition: int, cursor: Cursor, *, safe: int) -> int:
        sweep = self._sweep(kind, partition)
        if sweep.next_seq is None:
            return 0
        end = min(cursor.upto, safe) + 1
        cutoff = self._clock.now() - self._retention
        old: dict[str, int] = {}
        looked = 0
        next_seq: int | None = None
        mailbox = subjects.mailbox(kind, partition)
        first = await self._bus.get_next(subjects.ACTORS, sweep.next_seq, mailbox)
        if first is not None and first.seq < end and first.time <= cutoff:
            mails = self._bus.read(subjects.ACTORS, subjects=(mailbox,), start_seq=first.seq)
            async with closing(mails):
                async for mail in mails:
                    if mail.seq >= end or mail.time > cutoff:
                        break
                    if looked == MAX_MAILS:
                        next_seq = mail.seq
                        break
                    looked += 1
                    if mail.seq < _first_kept(mail.subject, cursor):
                        old[mail.subject] = mail.seq + 1
        count = 0
        for subject, below in old.items():
            count += await self._purge(subject, below)
        sweep.next_seq = next_seq
        return count

    def _sweep(self, kind: str, partition: int) -> _Sweep:
        """Return the pass under way, a new one when it is time, or the finished one."""
        now_s = self._clock.monotonic()
        sweep = self._sweeps.get((kind, partition))
        pause_s = self._retention.total_seconds() / _SWEEPS_PER_RETENTION
        if sweep is None or (sweep.next_seq is None and now_s - sweep.began_s >= pause_s):
            sweep = self._sweeps[kind, partition] = _Sweep(now_s)
        return sweep

    async def _purge(self, subject: str, below: int) -> int:
        began_s = self._clock.monotonic()
        count = await self._bus.purge(subjects.ACTORS, subject=subject, below_seq=below)
        took_s = self._clock.monotonic() - began_s
        await self._clock.sleep(took_s * (1 / SHARE - 1))
        return count


def _first_kept(subject: str, cursor: Cursor) -> int:
    """Return the sequence from which on mail on this subject may be unhandled, by the cursor."""
    key = subjects.unescape(subject.split(".", 4)[4])
    if key in cursor.pending:
        return cursor.pending[key]
    return 0 if key in cursor.held else cursor.upto + 1
