"""A journal that only recalls: steps return what they returned, and none is ever executed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from callboard.runtime import codec
from callboard.runtime.actor import step
from callboard.runtime.actor.journal import Call, Journal, Slot
from callboard.runtime.actor.recording import Recorded, Recording
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus
from callboard.runtime.codec import Decoder
from callboard.runtime.errors import EncodeError
from callboard.runtime.retry import RetryPolicy


@runtime_checkable
class Question(Protocol):
    """Owner of a step's function that can say what the step asks, for people who compare two runs."""

    def asked(self) -> object:
        """Return what is asked; anything with a JSON form."""
        ...


class Wanted(Struct, frozen=True, kw_only=True):
    """A step that the code asks for and that has no record.

    Attributes:
        asked: What it asks: that of the function's owner, else its key or arguments; plain values.
    """

    name: str
    entry: str
    asked: Any = None


class PastClock:
    """A clock that stands where the recorded turn stood: it moves with its records, and with every sleep."""

    def __init__(self, start: datetime) -> None:
        """Begin at ``start``."""
        self._start = self._now = start

    def monotonic(self) -> float:
        """Return the seconds since the start."""
        return (self._now - self._start).total_seconds()

    def now(self) -> datetime:
        """Return the time of the latest record that was recalled."""
        return self._now

    def reach(self, at: datetime) -> None:
        """Move on to a moment, never back."""
        self._now = max(self._now, at)

    async def sleep(self, delay_s: float) -> None:
        """Move on by so much and let others run."""
        self._now += timedelta(seconds=max(0.0, delay_s))
        await asyncio.sleep(0)


class Recall(Journal):
    """The journal of a turn that runs again on its records.

    A step without a record never begins: whoever asked for it waits until the run is given up.

    Attributes:
        served: Entries whose records were recalled, in order.
        wanted: Steps that were asked for and have no record, in order.
        is_stuck: Set with the first of them.
    """

    def __init__(
        self,
        bus: Bus,
        recording: Recording,
        *,
        clock: PastClock,
        passing: Sequence[str] = (),
        failure: Callable[[Recording, str], BaseException | None] | None = None,
    ) -> None:
        """Open it.

        Args:
            bus: A sealed one.
            recording: What is recalled.
            clock: Moved on with each record.
            passing: Beginnings of names of steps whose value nobody uses: without a record they return None.
            failure: Says by what a step failed then, from what stands of it; a failure is no value of a step.
        """
        super().__init__(
            bus,
            recording.address,
            recording.mail.seq,
            clock=clock,
            worker="rerun",
            blobs=BlobStore(bus),
            is_fresh=True,
        )
        self.served: dict[str, None] = {}
        self.wanted: list[Wanted] = []
        self.is_stuck = asyncio.Event()
        self._past = clock
        self._recording = recording
        self._passing = tuple(passing)
        self._failure = failure
        self._identities: dict[str, object] = {}
        self._function: Callable[..., object] | None = None
        self._waiting: list[asyncio.Future[object]] = []

    # --- in the place of what runs and writes

    def run(
        self,
        name: str,
        fn: Callable[..., object],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        key: str | None = None,
        once: bool = False,
        retry: RetryPolicy | None = None,
        returns: object = None,
    ) -> Coroutine[Any, Any, object]:
        """Recall a step; its function is never called."""
        self._function = fn
        try:
            return super().run(name, fn, args, kwargs, key=key, once=once, retry=retry, returns=returns)
        finally:
            self._function = None

    async def write(self, slot: Slot, data: bytes, *, attempt: int, took_s: float) -> object:  # noqa: ARG002
        """Refuse to record: there was no such record."""
        return await self._miss(slot)

    def _take(self, name: str, identity: object, decode: Decoder) -> Slot:
        slot = super()._take(name, identity, decode)
        owner = getattr(self._function, "__self__", None)
        self._identities[slot.at.entry] = owner.asked() if isinstance(owner, Question) else identity
        return slot

    async def _run(self, slot: Slot, call: Call, *, once: bool, retry: RetryPolicy | None) -> object:  # noqa: ARG002
        with slot:
            if not await self._recall(slot):
                return await self._miss(slot)
            return slot.value

    async def _begin(self, slot: Slot) -> Slot:
        # what asks and waits has the engine's names; others only look whether something stands
        is_engines = slot.at.name.startswith(step.RESERVED)
        if not await self._recall(slot) and is_engines:
            _ = await self._miss(slot)
        return slot

    # --- inside

    async def _recall(self, slot: Slot) -> bool:
        # as a real one does, let others run before the answer is there
        await asyncio.sleep(0)
        entry = slot.at.entry
        found = self._recording.steps.get(entry)
        if found is not None:
            self._serve(slot, found)
            return True
        pending = self._recording.pending.get(entry)
        if pending is not None and pending.kind == "intent":
            self.served[entry] = None
            await self._show(slot, pending)
        failure = self._failure(self._recording, entry) if self._failure is not None else None
        if failure is not None:
            self.served[entry] = None
            raise failure
        return False

    def _serve(self, slot: Slot, found: Recorded) -> None:
        self.served[found.entry] = None
        self._past.reach(found.record.at)
        self.replayed += 1
        slot.show(found.value)

    async def _miss(self, slot: Slot) -> object:
        """Wait for the end: this step has no record."""
        if slot.at.name.startswith(self._passing) and self._passing:
            return slot.show(b"{}")
        wanted = Wanted(name=slot.at.name, entry=slot.at.entry, asked=plain(self._identities.get(slot.at.entry)))
        self.wanted.append(wanted)
        self.is_stuck.set()
        waiter: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return await waiter

    def give_up(self) -> None:
        """End the waits of those who want what is not there; the run is over."""
        for waiter in self._waiting:
            _ = waiter.cancel()


def plain(value: object) -> Any:  # noqa: ANN401 - plain JSON
    """Return a value as plain JSON; what has none as text."""
    try:
        return msgspec.json.decode(codec.encode(value))
    except EncodeError:
        return repr(value)
