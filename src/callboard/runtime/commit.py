"""Group commit: many records into few writes, the caller told when each one stands.

Records are stored as pipelined single writes or as one atomic batch, whichever measured cheaper on this broker: with
every write synced to disk a batch pays four syncs whatever its size, without it single writes pipeline better.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from callboard.runtime import crash
from callboard.runtime.bus import header
from callboard.runtime.bus.base import MAX_BATCH, Bus, PubAck, Write
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusClosedError, BusError, CallboardError, ConflictError, InputError

MAX_GROUP_BYTES = 8 << 20
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
SINGLES_IN_FLIGHT = 4096
TRIAL_EVERY_S = 10.0
TRIAL_RECORDS = 64
# The least of so many trials counts; the first of them come in quick succession.
TRIALS_KEPT = 5
TRIAL_FIRST_EVERY_S = 0.5
_MIN_BATCH = 3
# A batch that costs as much as more single writes than this is not worth waiting for: single writes of several groups
# overlap and batches do not. By the shortest of five trials it was seen to cost 45 to 370 of them without a sync of
# every write, also on a crowded machine, and with one 8 to 34; only beside a crowded disk up to 80.
_MOST_SINGLES = 38

Mode = Literal["single", "batch"]


class Stands(Struct, frozen=True, gc=False):
    """The record is stored; ``is_ours`` is False when another one stood there first, and then that one counts."""

    is_ours: bool


class Refused(Struct, frozen=True):
    """The record can never be stored as it is (too large, no permission)."""

    error: CallboardError


Result = Stands | Refused
_OURS = Stands(is_ours=True)


class Entry(Struct, gc=False):
    """A record on its way: its write and whom to tell."""

    write: Write
    done: Callable[[Result], None]
    retries: int = 0


def backoff_s(retries: int) -> float:
    """Return how long to wait before the ``retries``-th attempt again (from 1), in seconds."""
    return min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(retries - 1, 10))


class Chooser:
    """Decides between single writes and a batch from trials of both; pure but for its memory.

    A trial times the two on groups of one size with nothing else under way. Times taken under load say nothing: single
    writes overlap, and a busy loop reads their answers late. Other work of the host, or another host's batch, can only
    make a trial's times longer, so the shortest of the last few count: by single trials with every write synced, one
    in four called batches the worse way on a crowded machine.

    Attributes:
        single_s: Seconds a record of single writes took, None before the first trial.
        batch_s: Seconds a whole batch took.
    """

    __slots__ = ("_is_batch_better", "_trials", "_tried_at", "batch_s", "single_s")

    def __init__(self) -> None:
        """Know nothing yet: single writes until the first trial."""
        self.single_s: float | None = None
        self.batch_s: float | None = None
        self._is_batch_better = False
        self._trials: deque[tuple[float, float]] = deque(maxlen=TRIALS_KEPT)
        self._tried_at = float("-inf")

    @property
    def is_batch_better(self) -> bool:
        """Whether the last trials found batches clearly better; then a record rides free in one that goes anyway."""
        return self._is_batch_better

    def wants_trial(self, count: int, now_s: float) -> bool:
        """Return whether a group of ``count`` should try both ways: the first large enough one, then one in a while."""
        every_s = TRIAL_EVERY_S if len(self._trials) == TRIALS_KEPT else TRIAL_FIRST_EVERY_S
        return count >= 2 * _MIN_BATCH and now_s - self._tried_at >= every_s

    def began_trial(self, now_s: float) -> None:
        """Note that a trial is made, whatever comes of it."""
        self._tried_at = now_s

    def learn(self, *, count: int, singles_s: float, batch_s: float) -> None:
        """Note how long ``count`` single writes took and how long a batch of ``count``."""
        self._trials.append((singles_s / count, batch_s))
        self.single_s = min(single_s for single_s, _ in self._trials)
        self.batch_s = min(batch_s for _, batch_s in self._trials)
        # by the cost of one, whatever the number tried: a batch costs nearly the same with few and with many
        self._is_batch_better = _MOST_SINGLES * self.single_s > self.batch_s

    def choose(self, count: int) -> Mode:
        """Return how to store a group of ``count``."""
        if not self._is_batch_better or self.single_s is None or self.batch_s is None or count < _MIN_BATCH:
            return "single"
        return "batch" if count * self.single_s > self.batch_s else "single"


class Committer:
    """Stores write-once records of one stream in groups.

    Bounded by its callers: they stop taking work while ``backlog`` is high. A record that cannot be stored now (full,
    disconnected) is tried again until it can; its claim's lease is held meanwhile.
    """

    def __init__(self, bus: Bus, *, stream: str, clock: Clock, max_group: int = MAX_BATCH) -> None:
        """Prepare; nothing runs before ``run``."""
        self._bus = bus
        self._stream = stream
        self._clock = clock
        self._max_group = max_group
        self._waiting: deque[Entry] = deque()
        self._in_flight = 0
        self._later = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._clear = asyncio.Event()
        self._clear.set()
        self.chooser = Chooser()
        self.last_problem: str | None = None

    @property
    def backlog(self) -> int:
        """Records accepted and not yet standing."""
        return len(self._waiting) + self._in_flight + self._later

    def add(self, write: Write, done: Callable[[Result], None]) -> None:
        """Take a record; ``done`` is called on the loop when it stands or never can."""
        if not self._waiting:
            # with others waiting both are as they should be, and they cost as much as the rest of this call
            self._wake.set()
            self._idle.clear()
        self._waiting.append(Entry(write, done))

    async def drain(self) -> None:
        """Wait until every record taken so far stands."""
        await self._idle.wait()

    async def run(self) -> None:
        """Store groups until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wake.wait()
                while self._waiting and self._in_flight < SINGLES_IN_FLIGHT:
                    if self.chooser.wants_trial(len(self._waiting), self._clock.monotonic()):
                        await self._try_both(group)
                        continue
                    entries = self._take(self._max_group)
                    if self.chooser.choose(len(entries)) == "batch":
                        await self._commit_batch(entries, group)
                        # one loop turn, so that what the answer set free joins the next batch
                        await self._clock.sleep(0)
                    else:
                        self._fly(entries)
                        group.create_task(self._commit_singles(entries, group), name="commit-singles")
                if not self._waiting or self._in_flight >= SINGLES_IN_FLIGHT:
                    self._wake.clear()

    async def _try_both(self, group: asyncio.TaskGroup) -> None:
        """Store one group by single writes and one of the same size as a batch, each alone, and time them."""
        await self._clear.wait()
        began_s = self._clock.monotonic()
        self.chooser.began_trial(began_s)
        count = min(len(self._waiting) // 2, TRIAL_RECORDS)
        entries = self._take(count)
        self._fly(entries)
        is_clean = await self._commit_singles(entries, group)
        between_s = self._clock.monotonic()
        entries = self._take(count)
        is_clean = await self._commit_batch(entries, group) and is_clean and len(entries) == count
        if is_clean:
            batch_s = self._clock.monotonic() - between_s
            self.chooser.learn(count=count, singles_s=between_s - began_s, batch_s=batch_s)

    def _fly(self, entries: list[Entry]) -> None:
        self._in_flight += len(entries)
        self._clear.clear()

    def _take(self, most: int) -> list[Entry]:
        entries: list[Entry] = []
        size_bytes = 0
        while self._waiting and len(entries) < most and size_bytes < MAX_GROUP_BYTES:
            entry = self._waiting.popleft()
            size_bytes += len(entry.write.data)
            entries.append(entry)
        return entries

    async def _commit_singles(self, entries: list[Entry], group: asyncio.TaskGroup) -> bool:
        """Store each on its own; return whether all of them stand by their own write."""
        try:
            answers: Sequence[PubAck | CallboardError] = await self._bus.store_many([entry.write for entry in entries])
        except InputError as error:
            # one of them is too large, and nothing was sent: find out which
            answers = await self._one_by_one(entries, error)
        except BusError as error:
            answers = [error] * len(entries)
        is_clean = True
        conflicts: list[Entry] = []
        for index, (entry, answer) in enumerate(zip(entries, answers, strict=True)):
            if crash.point and index:
                crash.at("mid-batch")
            if isinstance(answer, PubAck):
                entry.done(_OURS)
            elif isinstance(answer, ConflictError):
                conflicts.append(entry)
            else:
                is_clean = False
                self._put_off(entry, answer, group)
        if conflicts:
            await self._resolve(conflicts, group)
        self._landed(entries)
        return is_clean and not conflicts

    async def _one_by_one(self, entries: list[Entry], error: CallboardError) -> list[PubAck | CallboardError]:
        if len(entries) == 1:
            return [error]
        answers: list[PubAck | CallboardError] = []
        for entry in entries:
            try:
                answers.append(await self._bus.store(entry.write))
            except CallboardError as refusal:
                answers.append(refusal)
        return answers

    async def _commit_batch(self, entries: list[Entry], group: asyncio.TaskGroup) -> bool:
        """Store all in one write; return whether that went through at once."""
        self._fly(entries)
        is_clean = False
        writes = [
            Write(w.subject, w.data, header.build(expected_seq=0, extra=w.headers), again=w.again)
            for w in (e.write for e in entries)
        ]
        try:
            await self._bus.store_batch(writes)
        except ConflictError:
            await self._resolve(entries, group)
        except InputError as error:
            for entry, answer in zip(entries, await self._one_by_one(entries, error), strict=True):
                if isinstance(answer, PubAck):
                    entry.done(_OURS)
                else:
                    self._put_off(entry, answer, group)
        except BusError as error:
            for entry in entries:
                self._put_off(entry, error, group)
        else:
            is_clean = True
            for index, entry in enumerate(entries):
                if crash.point and index:
                    crash.at("mid-batch")
                entry.done(_OURS)
        self._landed(entries)
        return is_clean

    async def _resolve(self, entries: list[Entry], group: asyncio.TaskGroup) -> None:
        """Find out which of a refused group stand already, and send the rest again."""
        try:
            found = await self._bus.get_many(self._stream, [entry.write.subject for entry in entries])
        except BusError as error:
            for entry in entries:
                self._put_off(entry, error, group)
            return
        standing = {stored.subject: stored.data for stored in found}
        for entry in entries:
            data = standing.get(entry.write.subject)
            if data is not None:
                # equal bytes bear our worker and times: it was our own write whose answer got lost
                entry.done(Stands(is_ours=data == entry.write.data))
            elif len(found) == 0:
                self._put_off(entry, ConflictError("refused, yet no record is to be read"), group)
            else:
                self._waiting.append(entry)
                self._wake.set()

    def _put_off(self, entry: Entry, error: CallboardError, group: asyncio.TaskGroup) -> None:
        if not (error.retryable or isinstance(error, ConflictError)) or isinstance(error, BusClosedError):
            entry.done(Refused(error))
            return
        self.last_problem = f"{error.code}: {error}"
        entry.retries += 1
        self._later += 1
        group.create_task(self._again(entry, backoff_s(entry.retries)), name="commit-again")

    async def _again(self, entry: Entry, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._later -= 1
        self._waiting.append(entry)
        self._wake.set()

    def _landed(self, entries: list[Entry]) -> None:
        self._in_flight -= len(entries)
        if not self._in_flight:
            self._clear.set()
        if self._waiting:
            self._wake.set()
        if not self.backlog:
            self.last_problem = None
            self._idle.set()
