"""The step journal of one turn: what a finished step returned stands in the stream before the turn goes on.

A step is known by its name, a digest of its arguments and an ordinal among identical ones. Nothing else is compared:
code may change between two runs of a turn, and a step that it renamed or gave other arguments simply runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from heapq import heappop, heappush
from types import TracebackType
from typing import Any, Protocol, Self

from msgspec import Raw

from callboard.runtime import codec, tracing
from callboard.runtime.actor import function, step
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.gate import StepGate
from callboard.runtime.actor.step import Step, StepRecord
from callboard.runtime.actor.steplog import Place, StepLog, Store
from callboard.runtime.blobs import CLAIM_CHECK_BYTES, BlobStore
from callboard.runtime.bus.base import Bus, Stored, Write
from callboard.runtime.clock import Clock
from callboard.runtime.codec import Decoder
from callboard.runtime.errors import EncodeError, InvalidNameError, RetryableError, StepUnknownError
from callboard.runtime.outcome import Failed
from callboard.runtime.retry import RetryPolicy

Call = Callable[[], Awaitable[object]]


class Tenure(Protocol):
    """Whether the turn is still ours to run, as its journal asks before it lets a step begin."""

    async def may_begin(self) -> bool:
        """Return whether a step may begin or be recorded here; in doubt the broker is asked, however long that takes.

        Raises:
            BusError: If it can never be asked.
        """
        ...

    def doubt(self) -> None:
        """Hear that another host has recorded a step of the turn."""
        ...


class Slot:
    """One step's place in the journal, taken for this run of the turn.

    As a context manager it gives the place back when the block ends without a record, so that a step tried again by
    hand is the same step.

    Attributes:
        at: Its entry in the journal: name, digest and ordinal.
        id: ``<type>/<key>/<sequence>/<entry>``: the idempotency key for what the step does outside.
        is_recorded: Whether a value stands.
        value: That value, None before.
    """

    __slots__ = ("_decode", "_journal", "at", "id", "is_recorded", "value")

    def __init__(self, journal: Journal, at: Place, decode: Decoder) -> None:
        """Journals make these."""
        self._journal = journal
        self._decode = decode
        self.at = at
        self.id = step.id_of(journal.turn, at.entry)
        self.is_recorded = False
        self.value: object = None

    def __enter__(self) -> Self:
        """Count it as under way and return it."""
        self._journal.gate.begun()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the place back unless a value stands in it."""
        if not self.is_recorded:
            self._journal.give_back(self)
        self._journal.gate.ended()

    async def record(self, value: object, *, attempt: int = 1, took_s: float = 0.0) -> object:
        """Record ``value`` and return the one that stands, which is another's where that came first.

        Returns when a record stands, however long the broker takes; cancelling gives up. The value comes back as a
        later run will read it.

        Raises:
            EncodeError: If it has no JSON form.
            DecodeError: If it does not fit the step's type. It is recorded nevertheless.
            BusError: If it can never be stored (no permission, connection closed).
        """
        try:
            data = codec.encode(value)
        except EncodeError as error:
            message = f"step {self.at.name!r} ran, and what it returned cannot be recorded: {error}"
            raise EncodeError(message) from error
        return await self._journal.write(self, data, attempt=attempt, took_s=took_s)

    def show(self, data: bytes) -> object:
        """Take the standing value, as JSON, and return it in the step's type.

        Raises:
            DecodeError: If it does not fit.
        """
        self.value = function.read(self._decode, data, step=self.at.name)
        self.is_recorded = True
        self._journal.last_step = self.at.name
        return self.value


class Journal:
    """The steps of one run of a turn.

    Attributes:
        turn: ``<type>/<key>/<sequence>``.
        executed: Steps whose value this run recorded.
        replayed: Steps whose value was there.
        adopted: Steps that ran here and whose value another run had recorded first.
        last_step: Name of the latest step whose value stands; None before the first.
        gate: Shut, it lets steps under way finish and none begin.
    """

    def __init__(
        self,
        bus: Bus,
        address: Address,
        seq: int,
        *,
        clock: Clock,
        worker: str,
        blobs: BlobStore,
        is_fresh: bool,
        store: Store | None = None,
        ttl_s: float | None = None,
        steps: Mapping[str, bytes | Raw] | None = None,
        found: Sequence[Stored] | None = None,
        claim_check_bytes: int = CLAIM_CHECK_BYTES,
        executor: Executor | None = None,
        tenure: Tenure | None = None,
    ) -> None:
        """Open the journal; nothing is read or written before the first step.

        Args:
            bus: The host's connection.
            address: The actor.
            seq: Sequence of the mail that the turn handles.
            clock: Time.
            worker: This worker, named in the records.
            blobs: Where large values go.
            is_fresh: The turn certainly never ran before, so nothing is read. When that turns out wrong, the first
                refused write shows it and everything is read then.
            store: Stores a record in place of ``bus.store``: ``TurnCommitter.commit``, in a group with others.
            ttl_s: Lifetime of the records of ordinary steps; None keeps them. It must be longer than any turn can
                take, retries included. Those of ``once=True`` never expire by themselves.
            steps: What a parked turn kept of its journal, by entry; ``entries`` of the run that parked.
            found: All that stands on the turn's subjects, where it was just read from the leader.
            claim_check_bytes: Values above this are stored as objects.
            executor: Threads for synchronous functions; None for the loop's own few.
            tenure: Asked before a step's function is called; None where nobody else can run the turn.
        """
        self.turn = f"{address}/{seq}"
        self.executed = 0
        self.replayed = 0
        self.adopted = 0
        self.last_step: str | None = None
        self.gate = StepGate()
        self._clock = clock
        self._executor = executor
        self._tenure = tenure
        self._log = StepLog(
            bus,
            address,
            seq,
            clock=clock,
            worker=worker,
            blobs=blobs,
            is_fresh=is_fresh,
            store=store,
            ttl_s=ttl_s,
            steps=steps,
            found=found,
            claim_check_bytes=claim_check_bytes,
        )
        # What finished and could not be recorded before its step was cancelled.
        self._finished: dict[str, tuple[bytes, int, float]] = {}
        self._counts: dict[str, int] = {}
        self._free: dict[str, list[int]] = {}

    @property
    def entries(self) -> dict[str, bytes]:
        """Every record known here by entry, as stored: what a parked turn keeps."""
        return self._log.entries

    @property
    def untimed(self) -> list[str]:
        """Subjects of records that never expire by themselves, sorted: to be purged some time after the commit."""
        return self._log.untimed

    def finishing(self, *, ttl_s: float) -> list[Write]:
        """Return what is to be written after the commit, so that records without a lifetime get one.

        Steps that began with ``once=True`` and left no result stay as they are, for people.
        """
        return self._log.finishing(ttl_s)

    @property
    def last_problem(self) -> str | None:
        """Why a record or a read has to wait now, None when none does."""
        return self._log.last_problem

    # --- steps

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
        """Run a function as a step, or return what it returned in an earlier run of the turn.

        The place in the journal is taken by the call, not when the result is awaited: of identical steps side by side
        the first called is the first. One round trip for a step that runs, none for one that was recorded.

        Args:
            name: 1 to 256 bytes of any text that does not begin with ``~``.
            fn: An async function, or a plain one, which runs in a thread; see ``function.call``.
            args: Its arguments. They tell this step from others of the name, so they need a JSON form, or ``key``.
            kwargs: Its named arguments.
            key: Tells this step from others of the name in place of its arguments.
            once: Never run again when a run may have begun: see ``StepUnknownError``. Two round trips more.
            retry: Attempts inside the step; None for one. With ``once`` only a ``RetryableError`` is tried again.
            returns: Type of the value; the function's return annotation when None.

        Returns:
            The value after a trip through JSON, the first time as well: a replayed value is no other.

        Raises:
            InvalidNameError: At the call, if the name cannot be used.
            EncodeError: At the call, if the arguments have no JSON form and no ``key`` was given, or the type cannot
                be read from JSON; later, if the value cannot be recorded.
            DecodeError: If the recorded value does not fit the type.
            StepUnknownError: If a step that must not run twice began before and left no result.
            Exception: What the function raised. It is not recorded.
        """
        if str(name).startswith(step.RESERVED):
            message = f"step name {name[:80]!r}: names that begin with {step.RESERVED!r} are Callboard's own"
            raise InvalidNameError(message, name=name[:80])
        decode = function.reader(fn, returns, step=name)
        slot = self._take(name, {"key": key} if key is not None else [args, kwargs or {}], decode)
        return self._run(
            slot, partial(function.call, fn, args, kwargs or {}, executor=self._executor), once=once, retry=retry
        )

    def begin(self, name: str, identity: object, *, returns: object = Any) -> Coroutine[Any, Any, Slot]:
        """Take a place for a step that the caller runs itself; the engine's names begin with ``~``.

        Use the slot as a context manager, and ``record`` its value unless it ``is_recorded``.

        Args:
            name: The step's name.
            identity: What tells it from others of the name; anything with a JSON form.
            returns: Type of the value; plain JSON by default.

        Raises:
            InvalidNameError: At the call, if the name cannot be used.
            EncodeError: At the call, if ``identity`` has no JSON form.
            StepUnknownError: If it began before with ``once`` and left no result.
        """
        return self._begin(self._take(name, identity, function.decoder(returns, step=name)))

    async def write(self, slot: Slot, data: bytes, *, attempt: int, took_s: float) -> object:
        """Record a finished step's value, given as JSON; ``Slot.record`` is the way here."""
        entry = slot.at.entry
        self._finished[entry] = (data, attempt, took_s)
        # a host that stood still must not record a step that its heir may be running by now: it would be paid twice
        await self._confirm()
        other = await self._log.done(slot.at, data, attempt=attempt, took_s=took_s)
        del self._finished[entry]
        if other is None:
            self.executed += 1
            return slot.show(data)
        self.adopted += 1
        if self._tenure is not None:
            self._tenure.doubt()
        return slot.show(await self._log.value(other))

    def give_back(self, slot: Slot) -> None:
        """Free a place in which nothing was recorded: the same step, tried again, is to find it."""
        place, _, ordinal = slot.at.entry.rpartition(".")
        heappush(self._free.setdefault(place, []), int(ordinal))

    async def _begin(self, slot: Slot) -> Slot:
        try:
            await self._pass()
            await self._open(slot)
            if not slot.is_recorded:
                await self._confirm()
        except BaseException:
            self.give_back(slot)
            raise
        return slot

    async def _run(self, slot: Slot, call: Call, *, once: bool, retry: RetryPolicy | None) -> object:
        try:
            await self._pass()
        except BaseException:
            self.give_back(slot)
            raise
        with slot:
            finished = self._finished.get(slot.at.entry)
            if finished is not None:
                data, attempt, took_s = finished
                return await self.write(slot, data, attempt=attempt, took_s=took_s)
            await self._open(slot)
            if not slot.is_recorded:
                await self._confirm()
            if once and not slot.is_recorded:
                await self._show(slot, await self._log.intend(slot.at))
            if slot.is_recorded:
                return slot.value
            try:
                with tracing.span(f"step {slot.at.name}", "internal", lambda: {"callboard.step": slot.id}):
                    value, attempt, took_s = await self._attempts(slot, call, once=once, retry=retry)
            except RetryableError:
                if once:
                    await self._log.withdraw(slot.at)
                raise
            return await slot.record(value, attempt=attempt, took_s=took_s)

    async def _attempts(
        self, slot: Slot, call: Call, *, once: bool, retry: RetryPolicy | None
    ) -> tuple[object, int, float]:
        attempt = 1
        while True:
            began_s = self._clock.monotonic()
            mine = Step(id=slot.id, name=slot.at.name, attempt=attempt, turn=self.turn, entry=slot.at.entry)
            token = step.running.set(mine)
            try:
                value = await call()
            except Exception as error:
                if retry is None or (once and not isinstance(error, RetryableError)):
                    raise
                decision = retry.decide(error, attempt)
                if isinstance(decision, Failed):
                    raise
            else:
                return value, attempt, self._clock.monotonic() - began_s
            finally:
                step.running.reset(token)
            await self._clock.sleep(decision.delay_s)
            attempt += 1

    async def _pass(self) -> None:
        """Wait at the gate, but for steps inside of one that is under way."""
        outer = step.running.get()
        if outer is None or outer.turn != self.turn:
            await self.gate.enter()

    async def _confirm(self) -> None:
        """Let a step begin, or be recorded, only where the turn is still ours; elsewhere its end is on its way."""
        if self._tenure is not None and not await self._tenure.may_begin():
            raise asyncio.CancelledError

    async def _open(self, slot: Slot) -> None:
        """Show the slot what stands in its place."""
        await self._show(slot, await self._log.find(slot.at.entry))

    async def _show(self, slot: Slot, record: StepRecord | None) -> None:
        if record is None or record.kind == "withdrawn":
            return
        if record.kind == "intent":
            raise _unknown(slot, record)
        slot.show(await self._log.value(record))
        self.replayed += 1

    def _take(self, name: str, identity: object, decode: Decoder) -> Slot:
        token = step.escaped(name)
        outer = step.running.get()
        # Inside of a step the places are its own: it is not entered on replay, and must not shift those outside.
        parent = outer.entry if outer is not None and outer.turn == self.turn else ""
        digest = step.digest(name, identity, parent=parent)
        place = self._place(token, digest)
        free = self._free.get(place)
        if free:
            ordinal = heappop(free)
        else:
            ordinal = self._counts.get(place, 0)
            self._counts[place] = ordinal + 1
        return Slot(self, Place(name, digest, f"{place}.{ordinal}", parent), decode)

    def _place(self, token: str, digest: str) -> str:
        """Return what a step is known by, but for the ordinal among identical ones."""
        return f"{token}.{digest}"


def _unknown(slot: Slot, record: StepRecord) -> StepUnknownError:
    began = f"began at {record.at.isoformat()} on {record.worker} with once=True and left no result"
    message = (
        f"step {slot.at.name!r} {began}, so nobody knows whether it took effect. "
        f"Look outside, then settle or withdraw {slot.id}"
    )
    return StepUnknownError(message, step=slot.at.name)
