"""The records of one turn's steps: read once, each written once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from msgspec import UNSET, Raw, Struct, UnsetType

from callboard.runtime import subjects
from callboard.runtime.actor import step
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.entry import Committed, Fenced, Refused, Result
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.blobs import CLAIM_CHECK_BYTES, BlobRef, BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, PubAck, Stored, Write
from callboard.runtime.clock import Clock
from callboard.runtime.errors import ApiError, BusError, ConflictError
from callboard.runtime.ids import new_token

T = TypeVar("T")
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
_UNAVAILABLE = 503

Store = Callable[[Write], Awaitable[PubAck | Result]]
"""Stores a write: ``Bus.store``, or ``TurnCommitter.commit``, which returns what the other raises."""


class Place(Struct, frozen=True):
    """A step's place among the records: ``entry`` is ``<escaped name>.<digest>.<ordinal>``.

    ``parent`` is the entry of the step whose function asked for this one, "" outside of steps.
    """

    name: str
    digest: str
    entry: str
    parent: str = ""


class StepLog:
    """What stands of one turn's steps, as far as it is known here.

    Whatever the broker refuses for now (away, full, without a leader) is tried again until it goes through: a step
    that finished is recorded before the turn goes on. Cancelling ends the wait.

    Attributes:
        last_problem: Why a record or a read has to wait now, None when none does.
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
    ) -> None:
        """Read and write nothing yet. The arguments are those of ``Journal``."""
        self.last_problem: str | None = None
        self._bus = bus
        self._address = address
        self._seq = seq
        self._clock = clock
        self._worker = worker
        self._blobs = blobs
        self._store: Store = store or bus.store
        self._ttl_s = ttl_s
        self._claim_check_bytes = claim_check_bytes
        self._entries = {entry: bytes(data) for entry, data in (steps or {}).items()}
        self._is_read = is_fresh
        self._reading = asyncio.Lock()
        # Sequence of what stands below an entry's coming record: an intent, or one withdrawn.
        self._below: dict[str, int] = {}
        # Entries of which what stands below no longer counts and has a lifetime: the turn was begun anew.
        self._void: set[str] = set()
        self._restarted_at = 0
        self._untimed: set[str] = set()
        if found is not None:
            self._take(found)
            self._is_read = True

    @property
    def entries(self) -> dict[str, bytes]:
        """Every record known here by entry, as stored."""
        return dict(self._entries)

    @property
    def untimed(self) -> list[str]:
        """Subjects of the records known here that have no lifetime, sorted."""
        return sorted(self._untimed)

    def finishing(self, ttl_s: float) -> list[Write]:
        """Return the writes that put records without a lifetime in their own place, with one."""
        headers = header.build(rollup=True, ttl_s=ttl_s)
        known = {subject: self._entries.get(step.entry_of(subject)) for subject in self.untimed}
        return [
            Write(subject, data, headers)
            for subject, data in known.items()
            if data is not None and step.decode(data).kind == "done"
        ]

    # --- reading

    async def find(self, entry: str) -> StepRecord | None:
        """Return what stands for an entry, None for nothing. All of the turn is read at once, the first time only.

        Raises:
            DecodeError: If what stands is no record, or one of a later version.
        """
        if not self._is_read:
            await self._read()
        data = self._entries.get(entry)
        return step.decode(data) if data is not None else None

    async def value(self, record: StepRecord) -> bytes:
        """Return a record's value as JSON; a large one takes two round trips and the transfer."""
        if record.blob is not UNSET:
            return await self._persist(partial(self._blobs.get, record.blob))
        return b"null" if record.value is UNSET else bytes(record.value)

    async def _read(self) -> None:
        async with self._reading:
            if self._is_read:
                return
            wildcard = subjects.steps(self._address.type, self._address.key, self._seq)
            self._take(await self._persist(partial(self._standing, wildcard)))
            self._is_read = True

    def _take(self, found: Sequence[Stored]) -> None:
        notes = [stored.seq for stored in found if step.entry_of(stored.subject).startswith(f"{step.RESTARTED}.")]
        self._restarted_at = max([self._restarted_at, *notes])
        for stored in found:
            entry = step.entry_of(stored.subject)
            known = self._entries.get(entry)
            # an intent that a parked turn kept may have been settled since; a value never changes
            if step.is_note(entry) or (known is not None and step.decode(known).kind == "done"):
                continue
            if step.is_void(stored, self._restarted_at):
                self._below[entry] = stored.seq
                self._void.add(entry)
            else:
                self._learn(entry, stored)

    async def _standing(self, subject: str) -> list[Stored]:
        """Return the last record of each subject that matches; a follower may not have them yet."""
        return await self._bus.get_many(subjects.ACTORS, [subject], from_leader=True)

    def _learn(self, entry: str, stored: Stored) -> StepRecord:
        record = step.decode(stored.data)
        self._entries[entry] = stored.data
        if header.TTL not in (stored.headers or {}):
            self._untimed.add(stored.subject)
        self._void.discard(entry)
        if record.kind == "done":
            self._below.pop(entry, None)
        else:
            self._below[entry] = stored.seq
        return record

    # --- writing

    async def done(self, place: Place, data: bytes, *, attempt: int, took_s: float) -> StepRecord | None:
        """Record a value, given as JSON; return another's record if that came first, None if ours stands."""
        value: Raw | UnsetType = UNSET
        blob: BlobRef | UnsetType = UNSET
        if len(data) > self._claim_check_bytes:
            blob = await self._persist(partial(self._blobs.put, data))
        else:
            value = Raw(data)
        ours = self._record(place, "done", value=value, blob=blob, attempt=attempt, took_s=took_s)
        return await self._stand(place, ours, store=self._store, ttl_s=self._ttl_s)

    async def intend(self, place: Place) -> StepRecord | None:
        """Record that a step begins; return what says that it began or ended before, None if ours stands.

        It has no lifetime: an effect in doubt must not be forgotten in silence.
        """
        ours = self._record(place, "intent", nonce=new_token())
        return await self._stand(place, ours, store=self._bus.store, yields_to=("done", "intent"))

    async def withdraw(self, place: Place) -> None:
        """Record that a step which began has had no effect."""
        ours = self._record(place, "withdrawn")
        await self._stand(place, ours, store=self._bus.store, yields_to=("done", "withdrawn"))

    def _record(
        self,
        place: Place,
        kind: step.Kind,
        *,
        value: Raw | UnsetType = UNSET,
        blob: BlobRef | UnsetType = UNSET,
        attempt: int = 1,
        took_s: float = 0.0,
        nonce: str = "",
    ) -> bytes:
        made = StepRecord(
            name=place.name,
            kind=kind,
            at=self._clock.now(),
            worker=self._worker,
            args_digest=place.digest,
            value=value,
            blob=blob,
            attempt=attempt,
            took_s=took_s,
            nonce=nonce,
            parent=place.parent,
        )
        return step.encode(made)

    async def _stand(
        self,
        place: Place,
        ours: bytes,
        *,
        store: Store,
        yields_to: Sequence[step.Kind] = ("done",),
        ttl_s: float | None = None,
    ) -> StepRecord | None:
        """Store a record until it stands, or one that it yields to; return that one, None for ours."""
        subject = subjects.step(self._address.type, self._address.key, self._seq, place.entry)
        while True:
            below = self._below.get(place.entry, 0)
            # what stands below has no lifetime: it would come to light again when this one expired
            has_end = not below or place.entry in self._void
            headers = header.build(expected_seq=below, ttl_s=ttl_s if has_end else None)
            stored = await self._persist(partial(self._stored, Write(subject, ours, headers), store))
            if stored is None:
                # refused, and what refused it is not to be seen: it expired, or this replica is behind
                if place.entry in self._void:
                    self._below.pop(place.entry, None)
                await self._clock.sleep(RETRY_FIRST_S)
                continue
            record = self._learn(place.entry, stored)
            if stored.data == ours:
                return None
            # somebody else runs, or has run, this very turn: read on the next occasion what else they recorded
            self._is_read = False
            if record.kind in yields_to:
                return record

    async def _stored(self, write: Write, store: Store) -> Stored | None:
        """Store one record; return what stands on its subject afterwards, None where that cannot be seen."""
        try:
            answer = await store(write)
        except ConflictError:
            found = await self._standing(write.subject)
            return found[0] if found else None
        match answer:
            case Refused(error):
                raise error
            case Fenced(current):
                return current
            case Committed(seqs):
                seq = seqs[0]
            case PubAck(seq=seq):
                pass
        return Stored(write.subject, write.data, seq, self._clock.now(), write.headers)

    async def _persist(self, act: Callable[[], Awaitable[T]]) -> T:
        """Return what ``act`` returns, trying again while the broker is away, full or without a leader."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                found = await act()
            except BusError as error:
                if not _is_passing(error):
                    raise
                self.last_problem = f"{error.code}: {error}"
            else:
                self.last_problem = None
                return found
            await self._clock.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)


def _is_passing(error: BusError) -> bool:
    # a conflict that comes here is of an object that several put at once; 503 is a stream without a leader
    is_leaderless = isinstance(error, ApiError) and error.status == _UNAVAILABLE
    return error.retryable or is_leaderless or isinstance(error, ConflictError)
