"""Turns for tests of their commit: a broker that misbehaves on demand, hosts that compete, and who checks them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import msgspec
from msgspec.structs import replace

from callboard.runtime.actor.commit import Committed, TurnCommitter
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, PubAck, Stored, StreamConfig, Write
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BackpressureError, BusError, BusTimeoutError

# What befalls one call: nothing; it was done and the answer is lost; it never arrived; it arrives after we gave up; the
# stream is full.
Fault = Literal["", "unanswered", "lost", "late", "full"]
FAULTS: tuple[Fault, ...] = ("", "unanswered", "lost", "late", "full")
LATE_TURNS = 40

TURNS = StreamConfig(name="T", subjects=("t.>",), allow_atomic=True, allow_direct=True)


class HastyClock:
    """A clock that is at once where a sleeper wants it to be."""

    def __init__(self) -> None:
        self._slept_s = 0.0

    def monotonic(self) -> float:
        return 1000.0 + self._slept_s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._slept_s)

    async def sleep(self, delay_s: float) -> None:
        self._slept_s += max(0.0, delay_s)
        await asyncio.sleep(0)


class FaultyBus:
    """A connection on which writes meet faults, one after the other, and then none.

    Attributes:
        batches: Sizes of the batches sent, in messages.
        singles: Sizes of the pipelines sent.
        reads: Calls that read.
        unread: Reads that will fail.
        behind: Reads that a follower will answer which knows of nothing yet, unless they ask for the leader.
    """

    def __init__(self, bus: Bus, faults: Iterable[Fault] = (), *, has_guard: bool = True) -> None:
        self._bus = bus
        self._faults = list(faults)
        self._has_guard = has_guard
        self._late: set[asyncio.Task[None]] = set()
        self.batches: list[int] = []
        self.singles: list[int] = []
        self.reads = 0
        self.unread = 0
        self.behind = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the real connection's
        return getattr(self._bus, name)

    @property
    def as_bus(self) -> Bus:
        return cast("Bus", self)

    async def store_batch(self, writes: Sequence[Write], **options: Any) -> PubAck:  # noqa: ANN401
        self.batches.append(len(writes))
        answer: PubAck = await self._meet(lambda: self._bus.store_batch(self._sent(writes), **options))
        return answer

    async def store_many(self, writes: Sequence[Write], **options: Any) -> list[PubAck | BusError]:  # noqa: ANN401
        self.singles.append(len(writes))
        try:
            answers: list[PubAck | BusError] = await self._meet(
                lambda: self._bus.store_many(self._sent(writes), **options)
            )
        except (BusTimeoutError, BackpressureError) as error:
            return [error] * len(writes)
        return answers

    async def get_many(self, *arguments: Any, **options: Any) -> list[Stored]:  # noqa: ANN401
        self._read()
        if self.behind and not options.get("from_leader"):
            self.behind -= 1
            return []
        return await self._bus.get_many(*arguments, **options)

    async def get_last(self, *arguments: Any, **options: Any) -> Stored | None:  # noqa: ANN401
        self._read()
        return await self._bus.get_last(*arguments, **options)

    async def settled(self) -> None:
        """Wait until what comes late has come."""
        while self._late:
            await asyncio.wait(self._late)

    def _read(self) -> None:
        self.reads += 1
        if self.unread:
            self.unread -= 1
            message = "no answer to a read"
            raise BusTimeoutError(message)

    def _sent(self, writes: Sequence[Write]) -> Sequence[Write]:
        return writes if self._has_guard else [without_guard(write) for write in writes]

    async def _meet(self, send: Callable[[], Any]) -> Any:  # noqa: ANN401 - the answer of whatever is sent
        fault = self._faults.pop(0) if self._faults else ""
        if fault == "full":
            message = "the stream is full"
            raise BackpressureError(message)
        if fault == "late":
            task = asyncio.create_task(self._come_late(send))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        elif fault != "lost":
            answer = await send()
            if not fault:
                return answer
        message = "no answer; the outcome is unknown"
        raise BusTimeoutError(message)

    async def _come_late(self, send: Callable[[], Any]) -> None:
        for _ in range(LATE_TURNS):
            await asyncio.sleep(0)
        try:
            await send()
        except BusError:
            return


def guarded(subject: str, data: bytes, expected_seq: int) -> Write:
    """Return a write that wants ``expected_seq`` to be its subject's last."""
    return Write(subject, data, header.build(expected_seq=expected_seq))


def without_guard(write: Write) -> Write:
    """Return a write that overwrites whatever stands."""
    headers = {name: value for name, value in (write.headers or {}).items() if name != header.EXPECTED_SUBJECT_SEQ}
    return replace(write, headers=headers or None)


@asynccontextmanager
async def committing(bus: Bus, *, clock: Clock, stream: str = "T", **options: Any) -> AsyncIterator[TurnCommitter]:  # noqa: ANN401
    """Give a committer that runs."""
    committer = TurnCommitter(bus, stream=stream, clock=clock, **options)
    task = asyncio.create_task(committer.run())
    try:
        yield committer
    finally:
        task.cancel()
        await asyncio.wait({task})


async def everything(bus: Bus, stream: str = "T", *subjects: str) -> list[Stored]:
    """Return what a stream holds, in order."""
    return [stored async for stored in bus.read(stream, subjects=subjects)]


# --- hosts that compete for actors


class Turn(msgspec.Struct, frozen=True):
    """A state record: who wrote it, in which turn of its own, and the last mail it has handled."""

    by: str
    turn: int
    applied: int


async def host(name: str, committer: TurnCommitter, bus: Bus, actor: str, *, mails: int, outputs: int = 1) -> None:
    """Handle mails 1 to ``mails`` of an actor as if it were ours alone: each turn moves its state and says so.

    Refusals are taken as they should be: forget all, read the state again, go on from there.
    """
    subject = f"t.state.{actor}"
    turn = 0
    known = await bus.get_last("T", subject)
    seq, applied = (known.seq, _applied(known)) if known else (0, 0)
    while applied < mails:
        turn += 1
        record = msgspec.json.encode(Turn(name, turn, applied + 1))
        said = [Write(f"t.out.{actor}", b"%d.%d" % (applied + 1, n)) for n in range(outputs)]
        result = await committer.commit(guarded(subject, record, seq), *said)
        if isinstance(result, Committed):
            seq, applied = result.seqs[0], applied + 1
        else:
            current = getattr(result, "current", None)
            assert current is not None, f"refused with {result}"
            seq, applied = current.seq, _applied(current)


def problems(stored: Iterable[Stored], actors: Iterable[str], *, mails: int, outputs: int = 1) -> list[str]:
    """Check what competing hosts have stored: each mail had its effect once, in order, whole, with its state."""
    found: list[str] = []
    wanted = [b"%d.%d" % (mail, n) for mail in range(1, mails + 1) for n in range(outputs)]
    messages = list(stored)
    for actor in actors:
        said = [each.data for each in messages if each.subject == f"t.out.{actor}"]
        states = [_applied(each) for each in messages if each.subject == f"t.state.{actor}"]
        doubled = sorted(data for data, times in Counter(said).items() if times > 1)
        lost = sorted(set(wanted) - set(said))
        if doubled:
            found.append(f"{actor}: doubled {doubled}")
        if lost:
            found.append(f"{actor}: lost {lost}")
        if not doubled and not lost and said != wanted:
            found.append(f"{actor}: out of order {said}")
        if states != list(range(1, mails + 1)):
            found.append(f"{actor}: states went {states}")
    return found


def _applied(stored: Stored) -> int:
    return msgspec.json.decode(stored.data, type=Turn).applied
