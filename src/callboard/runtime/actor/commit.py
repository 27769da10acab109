"""Group commit of turns: each all or nothing, many actors in one write, and the truth about every one of them.

An entry is a turn's writes. Its first may be guarded: it carries the sequence that must be its subject's last, so that
a stale writer is refused. A guarded entry is sent again until it stands or another record does; sending it twice is
harmless, because only one of two equal guards can hold. An unguarded entry is sent once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from callboard.runtime import crash, subjects
from callboard.runtime.actor.entry import (
    Committed,
    Entry,
    Fenced,
    Refused,
    Result,
    fate,
    is_about_one,
    judge,
    to_entry,
)
from callboard.runtime.bus.base import MAX_BATCH, Bus, PubAck, Stored, Write
from callboard.runtime.clock import Clock
from callboard.runtime.commit import MAX_GROUP_BYTES, SINGLES_IN_FLIGHT, TRIAL_RECORDS, Chooser, backoff_s
from callboard.runtime.errors import BusClosedError, CallboardError, ConflictError

# With several batches under way, each is this large, and more than one is used only when more than this many wait.
WIDE_BATCH = 100
# After a batch the next one is held back while more comes, for this share of the time that it took at most.
GATHER_SHARE = 0.5
_GATHER_STEP_S = 0.001

__all__ = ["Committed", "Fenced", "Refused", "Result", "TurnCommitter"]


class TurnCommitter:
    """Stores the turns of all actors of a host, in groups.

    Bounded by its callers: an actor has one turn at a time. Entries of several writes go in batches, those of one in
    whichever way ``chooser`` found cheaper.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        stream: str = subjects.ACTORS,
        clock: Clock,
        max_group: int = MAX_BATCH,
        in_flight_batches: int = 1,
    ) -> None:
        """Prepare; nothing is sent before ``run``.

        Args:
            bus: The connection.
            stream: Where all writes go.
            clock: Measures what a commit takes and times the attempts.
            max_group: Messages in one batch, 1 to 1,000. An entry with more goes alone.
            in_flight_batches: Batches under way at once while many entries wait. Several help on a replicated stream
                only.
        """
        self._bus = bus
        self._stream = stream
        self._clock = clock
        self._max_group = max_group
        self._in_flight_batches = in_flight_batches
        self._open: set[Entry] = set()
        self._singles: deque[Entry] = deque()
        self._groups: deque[Entry] = deque()
        # guarded subjects with an entry under way, and the entries that wait behind it
        self._lines: dict[str, list[Entry]] = {}
        self._arrivals = 0
        self._troubled = 0
        self._flying_batches = 0
        self._flying_singles = 0
        self._gather_until_s = float("-inf")
        self._is_stopped = False
        self._wake = asyncio.Event()
        self._clear = asyncio.Event()
        self._clear.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.chooser = Chooser()
        self.last_problem: str | None = None

    @property
    def backlog(self) -> int:
        """Entries accepted whose outcome nobody knows yet."""
        return len(self._open)

    async def commit(self, *writes: Write) -> Result:
        """Store all of them or none; return what became of it, however long that takes.

        When cancelled, an entry that is not being sent at this moment is dropped; another one's outcome stays unknown.

        Raises:
            InputError: If the writes make no entry (see ``to_entry``).
        """
        outcome: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        entry = self._enter(writes, lambda result: None if outcome.done() else outcome.set_result(result))
        try:
            return await outcome
        finally:
            if not entry.is_over and not entry.is_flying:
                self._drop(entry)

    def add(self, writes: tuple[Write, ...], done: Callable[[Result], None]) -> None:
        """Store all of them or none; ``done`` is called on the loop with what became of it.

        Raises:
            InputError: If the writes make no entry (see ``to_entry``).
        """
        self._enter(writes, done)

    async def drain(self) -> None:
        """Wait until nothing is open any more, be it taken meanwhile."""
        while self._open:
            await self._idle.wait()

    async def run(self) -> None:
        """Store groups until cancelled; then every entry still open is refused with a ``BusClosedError``."""
        self._is_stopped = False
        self._flying_batches = self._flying_singles = 0
        self._clear.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._wake.wait()
                    if self._groups or self.chooser.is_batch_better:
                        await self._gather()
                    self._wake.clear()
                    await self._send_waiting(tasks)
        finally:
            self._is_stopped = True
            for entry in list(self._open):
                self._tell(entry, Refused(_stopped()))
            self._singles.clear()
            self._groups.clear()

    # --- entries come and go

    def _enter(self, writes: tuple[Write, ...], done: Callable[[Result], None]) -> Entry:
        entry = to_entry(writes, done)
        if self._is_stopped:
            entry.is_over = True
            done(Refused(_stopped()))
            return entry
        self._arrivals += 1
        entry.order = self._arrivals
        self._open.add(entry)
        self._idle.clear()
        if entry.guard:
            line = self._lines.get(entry.guard)
            if line is not None:
                line.append(entry)
                return entry
            self._lines[entry.guard] = []
        self._queue(entry)
        return entry

    def _queue(self, entry: Entry) -> None:
        entry.is_flying = False
        (self._singles if len(entry.writes) == 1 else self._groups).append(entry)
        if not self._flying_batches or self._in_flight_batches > 1 or not self.chooser.is_batch_better:
            # else nothing goes before the batch has landed, and that wakes
            self._wake.set()

    def _tell(self, entry: Entry, result: Result) -> None:
        if not entry.is_over:
            self._forget(entry)
            entry.done(result)

    def _drop(self, entry: Entry) -> None:
        line = self._lines.get(entry.guard, [])
        if entry in line:
            line.remove(entry)
            self._close(entry)
        else:
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        """Be done with an entry that is under way, and let the next one for its subject follow."""
        if entry.guard:
            line = self._lines[entry.guard]
            if line:
                self._queue(line.pop(0))
            else:
                del self._lines[entry.guard]
        self._close(entry)

    def _close(self, entry: Entry) -> None:
        entry.is_over = True
        self._open.discard(entry)
        if entry.tries:
            self._troubled -= 1
            if not self._troubled:
                self.last_problem = None
        if not self._open:
            self._idle.set()

    # --- groups

    async def _gather(self) -> None:
        """Wait one loop turn, so that what the last answer set free joins this group, and longer while more comes.

        The mails of a batch become turns and its answers new questions. A batch costs nearly the same with few and
        with many, and those of several hosts wait for one another: one that leaves at once takes half of what it could.
        """
        await self._clock.sleep(0)
        seen = -1
        while seen != self._arrivals and not self._flying_batches and self._wants_batch():
            if self._clock.monotonic() >= self._gather_until_s:
                return
            seen = self._arrivals
            await self._clock.sleep(_GATHER_STEP_S)

    async def _send_waiting(self, tasks: asyncio.TaskGroup) -> None:
        # what is under way comes back as more: single writes that are slow leave none waiting
        if self.chooser.wants_trial(len(self._singles) + self._flying_singles, self._clock.monotonic()):
            await self._try_both(tasks)
        while entries := self._next_batch():
            tasks.create_task(self._fly_batch(entries, tasks), name="turns-batch")
        while entries := self._next_singles():
            tasks.create_task(self._fly_singles(entries, tasks), name="turns-singles")

    def _next_batch(self) -> list[Entry]:
        """Take what goes as the next batch, if one may go now."""
        waiting = len(self._singles) + len(self._groups)
        is_wide = self._in_flight_batches > 1 and waiting > WIDE_BATCH
        if self._flying_batches >= (self._in_flight_batches if is_wide else 1):
            return []
        if not self._groups and not self._wants_batch():
            return []
        queues = (self._groups, self._singles) if self.chooser.is_batch_better else (self._groups,)
        entries = self._take(min(self._max_group, WIDE_BATCH) if is_wide else self._max_group, *queues)
        self._flying_batches += bool(entries)
        return entries

    def _wants_batch(self) -> bool:
        """Return whether what is under way by itself would rather be a batch: a trickle is as much as a flood."""
        return self.chooser.choose(len(self._singles) + self._flying_singles) == "batch"

    def _next_singles(self) -> list[Entry]:
        """Take what goes as single writes, if some may go now."""
        if not self._singles or self._flying_singles >= SINGLES_IN_FLIGHT or self._wants_batch():
            return []
        if self._flying_batches and self.chooser.is_batch_better:
            # the server would sync them between the batch's own writes; they go with the next one
            return []
        entries = self._take(self._max_group, self._singles)
        self._flying_singles += len(entries)
        return entries

    def _take(self, most: int, *queues: deque[Entry]) -> list[Entry]:
        """Take the oldest entries, up to ``most`` messages but at least one entry."""
        entries: list[Entry] = []
        messages = size_bytes = 0
        while heads := [queue for queue in queues if queue]:
            queue = heads[0] if len(heads) == 1 else min(heads, key=lambda each: each[0].order)
            entry = queue[0]
            if entries and (messages + len(entry.writes) > most or size_bytes >= MAX_GROUP_BYTES):
                break
            queue.popleft()
            if entry.is_over:
                continue
            entry.is_flying = True
            messages += len(entry.writes)
            size_bytes += sum(len(write.data) for write in entry.writes)
            entries.append(entry)
        if entries:
            self._clear.clear()
        return entries

    async def _try_both(self, tasks: asyncio.TaskGroup) -> None:
        """Store one group as single writes and one of the same size as a batch, each alone, and time them."""
        await self._clear.wait()
        self.chooser.began_trial(self._clock.monotonic())
        count = min(len(self._singles) // 2, TRIAL_RECORDS, self._max_group)
        if not count:
            return
        entries = self._take(count, self._singles)
        self._flying_singles += len(entries)
        singles_s = await self._fly_singles(entries, tasks)
        entries = self._take(count, self._singles)
        self._flying_batches += 1
        batch_s = await self._fly_batch(entries, tasks)
        if singles_s is not None and batch_s is not None and len(entries) == count:
            self.chooser.learn(count=count, singles_s=singles_s, batch_s=batch_s)

    async def _fly_batch(self, entries: list[Entry], tasks: asyncio.TaskGroup) -> float | None:
        took_s = await self._store_batch(entries, tasks)
        if took_s is not None:
            self._gather_until_s = self._clock.monotonic() + GATHER_SHARE * took_s
        self._flying_batches -= 1
        self._landed()
        return took_s

    async def _fly_singles(self, entries: list[Entry], tasks: asyncio.TaskGroup) -> float | None:
        took_s = await self._store_singles(entries, tasks)
        self._flying_singles -= len(entries)
        self._landed()
        return took_s

    def _landed(self) -> None:
        if not self._flying_batches and not self._flying_singles:
            self._clear.set()
        if self._singles or self._groups:
            self._wake.set()

    # --- storing; each returns the seconds of the write itself, None where more than a stale turn disturbed it

    async def _store_batch(self, entries: list[Entry], tasks: asyncio.TaskGroup) -> float | None:
        """Store all in one write. If refused, tell the stale and send the rest; else look for the cause by halves."""
        while entries:
            began_s = self._clock.monotonic()
            error = await self._send_batch(entries)
            if error is None:
                return self._clock.monotonic() - began_s
            if isinstance(error, ConflictError):
                count = len(entries)
                entries = await self._sift_or_wait(entries, tasks)
                if len(entries) < count:
                    continue
            if len(entries) == 1 or not is_about_one(error):
                self._put_off([(entry, error) for entry in entries], tasks)
                return None
            half = len(entries) // 2
            await self._store_batch(entries[:half], tasks)
            await self._store_batch(entries[half:], tasks)
            return None
        return None

    async def _send_batch(self, entries: list[Entry]) -> CallboardError | None:
        writes = [write for entry in entries for write in entry.writes]
        if all(entry.guard for entry in entries):
            # one that stands refuses the whole batch when it comes again, and everybody is told what stands
            writes[0] = replace(writes[0], again=True)
        if crash.point:
            crash.at("before-commit")
        try:
            ack = await self._bus.store_batch(writes)
        except CallboardError as error:
            return error
        seq = ack.seq - len(writes) + 1
        results: list[tuple[Entry, Result]] = []
        for entry in entries:
            after = seq + len(entry.writes)
            results.append((entry, Committed(tuple(range(seq, after)))))
            seq = after
        self._tell_all(results)
        return None

    async def _store_singles(self, entries: list[Entry], tasks: asyncio.TaskGroup) -> float | None:
        if crash.point:
            crash.at("before-commit")
        answers: Sequence[PubAck | CallboardError]
        began_s = self._clock.monotonic()
        try:
            writes = [entry.writes[0] for entry in entries]
            # a guarded one that stands refuses its repeat, and whoever sent it is told what stands
            answers = await self._bus.store_many(
                [
                    replace(write, again=True) if entry.guard else write
                    for entry, write in zip(entries, writes, strict=True)
                ]
            )
        except CallboardError as error:
            if len(entries) > 1 and is_about_one(error):
                # one of them cannot be sent, and none was
                half = len(entries) // 2
                await self._store_singles(entries[:half], tasks)
                await self._store_singles(entries[half:], tasks)
                return None
            answers = [error] * len(entries)
        took_s = self._clock.monotonic() - began_s
        pairs = list(zip(entries, answers, strict=True))
        self._tell_all([(entry, Committed((answer.seq,))) for entry, answer in pairs if isinstance(answer, PubAck)])
        failed = [(entry, answer) for entry, answer in pairs if not isinstance(answer, PubAck)]
        if not failed:
            return took_s
        stale = [entry for entry, error in failed if entry.guard and isinstance(error, ConflictError)]
        if stale:
            await self._sift_or_wait(stale, tasks)
        self._put_off([(entry, error) for entry, error in failed if entry.is_flying and not entry.is_over], tasks)
        return took_s if len(stale) == len(failed) else None

    def _tell_all(self, results: list[tuple[Entry, Result]]) -> None:
        if crash.point and results:
            crash.at("after-commit")
        for index, (entry, result) in enumerate(results):
            if crash.point and index:
                crash.at("mid-batch")
            self._tell(entry, result)

    # --- refused, or in doubt

    async def _sift_or_wait(self, entries: list[Entry], tasks: asyncio.TaskGroup) -> list[Entry]:
        """``_sift``; when nobody can say what stands, all are sent again later and none is left."""
        try:
            return await self._sift(entries)
        except CallboardError as error:
            left = [entry for entry in entries if not entry.is_over]
            if isinstance(error, BusClosedError):
                self._put_off([(entry, error) for entry in left], tasks)
            else:
                self._wait(left, error, tasks)
            return []

    async def _sift(self, entries: list[Entry]) -> list[Entry]:
        """Tell those that stand already and those that another record keeps out; return the rest.

        One read for all, by a server that may be behind, and one from the leader for those that seem to be kept out.

        Raises:
            CallboardError: If it could not be read; those that were told are over.
        """
        suspects = [entry for entry in entries if entry.guard]
        if len(suspects) > 1:
            found = await self._bus.get_many(self._stream, [entry.guard for entry in suspects])
            suspects = self._judge(suspects, found, is_final=False)
        if suspects:
            self._judge(suspects, await self._at_leader([entry.guard for entry in suspects]), is_final=True)
        return [entry for entry in entries if not entry.is_over]

    def _judge(self, entries: list[Entry], found: list[Stored], *, is_final: bool) -> list[Entry]:
        """Tell those whose outcome is seen; return those that seem to be kept out, if that is not final."""
        standing = {stored.subject: stored for stored in found}
        suspects: list[Entry] = []
        for entry in entries:
            result = judge(entry, standing.get(entry.guard))
            if isinstance(result, Committed) or (is_final and result is not None):
                self._tell(entry, result)
            elif result is not None:
                suspects.append(entry)
        return suspects

    async def _at_leader(self, guards: list[str]) -> list[Stored]:
        return await self._bus.get_many(self._stream, guards, from_leader=True)

    def _put_off(self, failed: list[tuple[Entry, CallboardError]], tasks: asyncio.TaskGroup) -> None:
        again: list[Entry] = []
        doubtful: list[Entry] = []
        for entry, error in failed:
            match fate(entry, error):
                case "refuse":
                    self._tell(entry, Refused(error))
                case "again":
                    again.append(entry)
                case "look":
                    doubtful.append(entry)
        if again or doubtful:
            error = failed[-1][1]
            self._wait(again, error, tasks)
            self._wait(doubtful, error, tasks, is_doubtful=True)

    def _wait(
        self, entries: list[Entry], error: CallboardError, tasks: asyncio.TaskGroup, *, is_doubtful: bool = False
    ) -> None:
        if not entries:
            return
        self.last_problem = f"{error.code}: {error}"
        for entry in entries:
            self._troubled += not entry.tries
            entry.tries += 1
            entry.is_flying = False
        tasks.create_task(self._again(entries, is_doubtful=is_doubtful), name="turns-again")

    async def _again(self, entries: list[Entry], *, is_doubtful: bool) -> None:
        tries = max(entry.tries for entry in entries)
        while is_doubtful and entries:
            try:
                entries = await self._sift(entries)
                is_doubtful = False
            except BusClosedError as error:
                for entry in entries:
                    self._tell(entry, Refused(error))
                return
            except CallboardError as error:
                self.last_problem = f"{error.code}: {error}"
                await self._clock.sleep(backoff_s(tries))
                tries += 1
                entries = [entry for entry in entries if not entry.is_over]
        if entries:
            await self._clock.sleep(backoff_s(tries))
        for entry in entries:
            if not entry.is_over:
                self._queue(entry)


def _stopped() -> BusClosedError:
    return BusClosedError("the committer has stopped; whether the turn was stored is to be read from its record")
