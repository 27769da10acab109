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
from callboard.runtime.errors import BusClosedError, BusError, CallboardError, ConflictError

MAX_GROUP_BYTES = 8 << 20
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
SINGLES_IN_FLIGHT = 4096
_MIN_BATCH = 3
_PROBE_EVERY = 128
_WEIGHT = 0.2

Mode = Literal["single", "batch"]


class Stands(Struct, frozen=True):
    """The record is stored; ``is_ours`` is False when another one stood there first, and then that one counts."""

    is_ours: bool


class Refused(Struct, frozen=True):
    """The record can never be stored as it is (too large, no permission)."""

    error: CallboardError


Result = Stands | Refused


class Entry(Struct):
    """A record on its way: its write and whom to tell."""

    write: Write
    done: Callable[[Result], None]
    retries: int = 0


class Chooser:
    """Decides between single writes and a batch from measured times; pure but for its memory."""

    __slots__ = ("_decisions", "batch_s", "single_s")

    def __init__(self) -> None:
        """Know nothing yet: the first groups try both."""
        self.single_s: float | None = None
        self.batch_s: float | None = None
        self._decisions = 0

    def choose(self, count: int) -> Mode:
        """Return how to store a group of ``count``; one decision in 128 tries the other way to notice a change."""
        if count < _MIN_BATCH:
            return "single"
        self._decisions += 1
        if self.single_s is None:
            return "single"
        if self.batch_s is None:
            return "batch"
        better: Mode = "batch" if count * self.single_s > self.batch_s else "single"
        if self._decisions % _PROBE_EVERY == 0:
            return "single" if better == "batch" else "batch"
        return better

    def observe_single(self, *, count: int, seconds: float) -> None:
        """Note that ``count`` pipelined singles kept the broker busy for ``seconds``."""
        each_s = seconds / count
        self.single_s = each_s if self.single_s is None else self.single_s + _WEIGHT * (each_s - self.single_s)

    def observe_batch(self, *, seconds: float) -> None:
        """Note that a batch took ``seconds``."""
        self.batch_s = seconds if self.batch_s is None else self.batch_s + _WEIGHT * (seconds - self.batch_s)


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
        self._last_done_s = 0.0
        self.chooser = Chooser()
        self.last_problem: str | None = None

    @property
    def backlog(self) -> int:
        """Records accepted and not yet standing."""
        return len(self._waiting) + self._in_flight + self._later

    def add(self, write: Write, done: Callable[[Result], None]) -> None:
        """Take a record; ``done`` is called on the loop when it stands or never can."""
        self._waiting.append(Entry(write, done))
        self._wake.set()
        self._idle.clear()

    async def drain(self) -> None:
        """Wait until every record taken so far stands."""
        await self._idle.wait()

    async def run(self) -> None:
        """Store groups until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wake.wait()
                while self._waiting and self._in_flight < SINGLES_IN_FLIGHT:
                    entries = self._take()
                    if self.chooser.choose(len(entries)) == "batch":
                        await self._commit_batch(entries, group)
                        # one loop turn, so that what the answer set free joins the next batch
                        await self._clock.sleep(0)
                    else:
                        self._in_flight += len(entries)
                        group.create_task(self._commit_singles(entries, group), name="commit-singles")
                if not self._waiting or self._in_flight >= SINGLES_IN_FLIGHT:
                    self._wake.clear()

    def _take(self) -> list[Entry]:
        entries: list[Entry] = []
        size_bytes = 0
        while self._waiting and len(entries) < self._max_group and size_bytes < MAX_GROUP_BYTES:
            entry = self._waiting.popleft()
            size_bytes += len(entry.write.data)
            entries.append(entry)
        return entries

    async def _commit_singles(self, entries: list[Entry], group: asyncio.TaskGroup) -> None:
        started_s = self._clock.monotonic()
        try:
            answers: Sequence[PubAck | CallboardError] = await self._bus.store_many([entry.write for entry in entries])
        except BusError as error:
            answers = [error] * len(entries)
        except CallboardError as error:
            # one of them is too large, and nothing was sent: find out which
            answers = await self._one_by_one(entries, error)
        now_s = self._clock.monotonic()
        if not any(isinstance(answer, CallboardError) for answer in answers):
            # groups overlap: only the time that this one added counts
            busy_s = now_s - max(started_s, self._last_done_s)
            self.chooser.observe_single(count=len(entries), seconds=max(busy_s, 1e-6))
        self._last_done_s = now_s
        conflicts: list[Entry] = []
        for index, (entry, answer) in enumerate(zip(entries, answers, strict=True)):
            if crash.point and index:
                crash.at("mid-batch")
            if isinstance(answer, PubAck):
                entry.done(Stands(is_ours=True))
            elif isinstance(answer, ConflictError):
                conflicts.append(entry)
            else:
                self._put_off(entry, answer, group)
        if conflicts:
            await self._resolve(conflicts, group)
        self._in_flight -= len(entries)
        self._after_group()

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

    async def _commit_batch(self, entries: list[Entry], group: asyncio.TaskGroup) -> None:
        self._in_flight += len(entries)
        started_s = self._clock.monotonic()
        writes = [
            Write(w.subject, w.data, header.build(expected_seq=0, extra=w.headers)) for w in (e.write for e in entries)
        ]
        try:
            await self._bus.store_batch(writes)
        except ConflictError:
            await self._resolve(entries, group)
        except BusError as error:
            for entry in entries:
                self._put_off(entry, error, group)
        except CallboardError as error:
            for entry, answer in zip(entries, await self._one_by_one(entries, error), strict=True):
                if isinstance(answer, PubAck):
                    entry.done(Stands(is_ours=True))
                else:
                    self._put_off(entry, answer, group)
        else:
            self.chooser.observe_batch(seconds=max(self._clock.monotonic() - started_s, 1e-6))
            for index, entry in enumerate(entries):
                if crash.point and index:
                    crash.at("mid-batch")
                entry.done(Stands(is_ours=True))
        self._in_flight -= len(entries)
        self._after_group()

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
        delay_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(entry.retries - 1, 10))
        group.create_task(self._again(entry, delay_s), name="commit-again")

    async def _again(self, entry: Entry, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._later -= 1
        self._waiting.append(entry)
        self._wake.set()

    def _after_group(self) -> None:
        if self._waiting:
            self._wake.set()
        if not self.backlog:
            self.last_problem = None
            self._idle.set()
