"""The registry's desk: takes registrations, answers look-ups, tells of changes. Open while its host leads.

Two hosts that both think they lead (one stood still) both answer: the first answer wins, and records are written by
compare-and-set, so that nothing becomes wrong by it. Before each answer it asks whether it still leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from callboard.runtime import events, logs, subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Message, Subscription
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.clock import Clock
from callboard.runtime.errors import (
    BackpressureError,
    BusError,
    CallboardError,
    ConflictError,
    DecodeError,
    DuplicateAgentError,
    InputError,
    NoAgentError,
    NotFoundError,
    RegistryError,
)
from callboard.runtime.registry import record as records
from callboard.runtime.registry.cache import RegistryCache
from callboard.runtime.registry.message import (
    BEAT,
    CHANGED,
    DEREGISTER,
    FIND,
    LIST,
    OF_A_TYPE,
    PICK,
    REGISTER,
    AgentBeat,
    Changed,
    Deregister,
    Query,
    Register,
    Registered,
    Status,
    is_meant,
    type_of,
)
from callboard.runtime.registry.record import MAX_BYTES, MAX_TIMEOUT_S, MAX_WEIGHT, AgentRecord, CapabilitySpec

_log = logs.get_logger(__name__)
T = TypeVar("T")

BEAT_EVERY_S = 1.0
MAX_CAPABILITIES = 256
# Bytes of an answer; a page that would be larger is cut short, and says where to go on.
MAX_ANSWER_BYTES = 768 * 1024
MAX_LABELS = 64
# Requests under way; beyond these it refuses.
MAX_AT_ONCE = 4096
# How often each agent's state is looked at, for notices of change.
ROUND_S = 1.0
_SLICES = 4
# An agent that was offline for so long, as this leader heard it, is forgotten.
FORGET_S = 86_400.0
_TRIES = 8

_OK = msgspec.json.encode({"ok": True})
Spawn = Callable[[Coroutine[Any, Any, None], str], object]


class Desk:
    """Serves ``cb.registry.*`` from a cache. ``open`` begins, ``close`` ends it."""

    def __init__(
        self, cache: RegistryCache, *, bus: Bus, clock: Clock, spawn: Spawn, is_ours: Callable[[], Awaitable[bool]]
    ) -> None:
        """Prepare.

        Args:
            cache: What it answers from; not owned.
            bus: The connection.
            clock: Time.
            spawn: Starts a task that somebody owns.
            is_ours: Whether we still lead.
        """
        self._cache = cache
        self._bus = bus
        self._bucket = Bucket(bus, records.BUCKET)
        self._clock = clock
        self._spawn = spawn
        self._is_ours = is_ours
        self._subscriptions: list[Subscription] = []
        self._statuses: dict[str, Status] = {}
        self._offline_since_s: dict[str, float] = {}
        self._watching: asyncio.Task[None] | None = None
        self._at_once = 0

    # --- life

    async def open(self) -> None:
        """Begin to serve.

        Raises:
            BusError: If the broker cannot be asked now.
        """
        doors: list[tuple[str, Callable[[bytes], Awaitable[bytes]]]] = [
            # first what callers wait for
            (FIND, self._find),
            (PICK, self._pick),
            (LIST, self._find),
            (REGISTER, self._register),
            (DEREGISTER, self._deregister),
            (BEAT, self._beat),
        ]
        wanted = [*doors]
        wanted += [(f"{subject}.*", serve) for subject, serve in doors if subject in OF_A_TYPE]
        # at once: who is answered at one of them will try the next
        _ = await asyncio.gather(*(self._listen(subject, serve) for subject, serve in wanted))
        self._watching = asyncio.create_task(self._watch(), name="registry-changes")
        _log.info(events.REGISTRY_LED, agents=len(self._cache.index))

    async def _listen(self, subject: str, serve: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._subscriptions.append(await self._bus.subscribe(subject, self._door(serve)))

    async def close(self) -> None:
        """Serve no more; what is under way ends."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        found, self._subscriptions = self._subscriptions, []
        for subscription in found:
            try:
                await subscription.close()
            except BusError:
                continue

    def _door(self, serve: Callable[[bytes], Awaitable[bytes]]) -> Callable[[Message], None]:
        def hear(message: Message) -> None:
            if message.reply:
                self._at_once += 1
                _ = self._spawn(self._answer(message, serve), "registry-answer")

        return hear

    async def _answer(self, message: Message, serve: Callable[[bytes], Awaitable[bytes]]) -> None:
        headers = None
        data: bytes | None
        try:
            data = await self._served(message, serve)
        except CallboardError as error:
            headers = {header.ERROR: error.code}
            data = _refusal(error)
        except Exception as error:  # noqa: BLE001 - a question that nobody foresaw: who asked it is told, and no other
            _log.error(events.REGISTRY_FAILED, subject=message.subject, code=type(error).__name__)
            headers = {header.ERROR: RegistryError.code}
            data = _refusal(RegistryError(f"the registry failed over this request: {type(error).__name__}"))
        finally:
            self._at_once -= 1
        if data is None:
            return
        try:
            await self._bus.publish(message.reply, data, headers=headers)
        except BusError:
            # the asker asks again
            return

    async def _served(self, message: Message, serve: Callable[[bytes], Awaitable[bytes]]) -> bytes | None:
        """Return the answer to a request, None when it is another leader's to give."""
        if self._at_once > MAX_AT_ONCE:
            text = f"the registry has {MAX_AT_ONCE} requests under way: ask again in a moment"
            raise BackpressureError(text)
        if not await self._is_ours():
            # whoever leads now has it too
            return None
        data = await serve(_meant(message))
        if message.subject.startswith(f"{REGISTER}."):
            data = _with_beat(data, f"{BEAT}.{type_of(message.subject)}")
        return data

    # --- what it serves

    async def _find(self, data: bytes) -> bytes:
        query = _decoded(data, Query)
        while True:
            answer = msgspec.json.encode(self._cache.find(query))
            if len(answer) <= MAX_ANSWER_BYTES or query.limit == 1:
                return answer
            query = replace(query, limit=max(1, query.limit // 2))

    async def _pick(self, data: bytes) -> bytes:
        return msgspec.json.encode(self._cache.pick(_decoded(data, Query)))

    async def _beat(self, data: bytes) -> bytes:
        """Answer a beat that was sent as a request; the cache hears it as it hears all beats."""
        beat = _decoded(data, AgentBeat)
        known = self._cache.index.get(f"{beat.type}/{beat.key}")
        if known is None:
            message = f"{beat.type}/{beat.key} is not registered: register it, then beat"
            raise NotFoundError(message)
        if beat.instance and known.instance != beat.instance:
            raise self._held(known)
        return _OK

    async def _register(self, data: bytes) -> bytes:
        wanted = _checked(_decoded(data, Register))
        key = records.record_key(wanted.type, wanted.key)
        for _ in range(_TRIES):
            entry = await self._bucket.get(key)
            known = _record(entry.data) if entry is not None and entry.data is not None else None
            if known is not None and self._holds(known, wanted.instance):
                raise self._held(known)
            is_same = known is not None and known.instance == wanted.instance and not known.is_hosted
            record = _record_of(wanted, self._clock.now() if known is None or not is_same else known.registered_at)
            body = records.encode(record)
            if len(body) > MAX_BYTES:
                message = (
                    f"{record.address} was not registered: it says {len(body)} bytes of itself, {MAX_BYTES} at most"
                )
                raise InputError(message)
            try:
                revision = (
                    await self._bucket.create(key, body)
                    if entry is None or entry.data is None
                    else await self._bucket.update(key, body, entry.revision)
                )
            except ConflictError:
                # somebody else registered it, or another leader wrote: look again
                continue
            self._cache.take(record, revision)
            await self._look([record.address])
            answer = Registered(
                address=record.address,
                revision=revision,
                ask=subjects.ask(record.type, record.key),
                beat=BEAT,
                every_s=min(BEAT_EVERY_S, record.timeout_s / 3),
            )
            return msgspec.json.encode(answer)
        message = f"{wanted.type}/{wanted.key} keeps being registered by others; try again"
        raise ConflictError(message)

    async def _deregister(self, data: bytes) -> bytes:
        wanted = _decoded(data, Deregister)
        key = records.record_key(wanted.type, wanted.key)
        entry = await self._bucket.get(key)
        known = _record(entry.data) if entry is not None and entry.data is not None else None
        if entry is None or known is None:
            message = f"{wanted.type}/{wanted.key} is not registered"
            raise NotFoundError(message)
        if wanted.instance and known.instance != wanted.instance:
            raise self._held(known)
        await self._remove(known, entry.revision)
        return _OK

    # --- inside

    def _holds(self, known: AgentRecord, instance: str) -> bool:
        """Return whether another one that is alive has the address."""
        is_other = known.is_hosted or known.instance != instance
        return is_other and self._cache.standing(known).status != "offline"

    def _held(self, known: AgentRecord) -> DuplicateAgentError:
        view = self._cache.view(known)
        holder = known.instance or (f"worker {view.worker}" if view.worker else "the workers that host its type")
        where = f" on {known.host}" if known.host else ""
        seen = "not heard yet" if view.seen_at is None else f"last heard {view.seen_at:%H:%M:%S} UTC"
        message = (
            f"{known.address} is held by {holder}{where}, {view.status}, {seen}: stop it, or register another key; it "
            f"counts as offline {known.timeout_s:g} s after its last beat"
        )
        return DuplicateAgentError(message, holder=f"{holder}{where}")

    async def _remove(self, known: AgentRecord, revision: int) -> None:
        marker = await self._bucket.delete(records.record_key(known.type, known.key), revision=revision)
        self._cache.index.remove(known.address, marker)
        self._cache.presence.left_agent(known.type, known.key)
        was = self._statuses.pop(known.address, "")
        self._offline_since_s.pop(known.address, None)
        await self._tell(known.address, was, "")

    async def _watch(self) -> None:
        """Look at every agent once a second, a slice at a time, and tell whose state has changed."""
        number = 0
        while True:
            await self._clock.sleep(ROUND_S / _SLICES)
            number = (number + 1) % _SLICES
            if not self._cache.is_warm:
                continue
            try:
                if await self._is_ours():
                    await self._look(list(self._cache.index.addresses()[number::_SLICES]))
                    if number == 0:
                        await self._look_for_gone()
            except BusError:
                # told in the next round
                continue

    async def _look(self, addresses: list[str]) -> None:
        now_s = self._clock.monotonic()
        for address in addresses:
            record = self._cache.index.get(address)
            if record is None:
                continue
            status = self._cache.presence.standing(record, now_s).status
            was = self._statuses.get(address, "")
            if status != was:
                await self._tell(address, was, status)
                self._statuses[address] = status
            if status == "offline":
                since_s = self._offline_since_s.setdefault(address, now_s)
                if now_s - since_s > FORGET_S:
                    await self._forget(record)
            else:
                self._offline_since_s.pop(address, None)

    async def _look_for_gone(self) -> None:
        for address in [known for known in self._statuses if self._cache.index.get(known) is None]:
            was = self._statuses.pop(address)
            self._offline_since_s.pop(address, None)
            await self._tell(address, was, "")

    async def _forget(self, record: AgentRecord) -> None:
        try:
            await self._remove(record, self._cache.index.revision(record.address))
        except ConflictError:
            # it was written meanwhile: it is back
            return

    async def _tell(self, address: str, was: str, now: str) -> None:
        change = Changed(address=address, was=was, now=now, at=self._clock.now())
        await self._bus.publish(CHANGED, msgspec.json.encode(change))


def _meant(message: Message) -> bytes:
    """Return the body of a request.

    Raises:
        InputError: If it is about another type than its subject.
    """
    if not is_meant(message.subject, message.data):
        text = f"{message.subject} takes agents of the type {type_of(message.subject)}, and the body names another"
        raise InputError(text)
    return message.data


def _with_beat(data: bytes, subject: str) -> bytes:
    return msgspec.json.encode(replace(msgspec.json.decode(data, type=Registered), beat=subject))


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is no {kind.__name__}: {error}"
        raise DecodeError(message) from error


def _record(data: bytes) -> AgentRecord | None:
    try:
        return records.decode(data)
    except DecodeError:
        # what nobody can read holds no address
        return None


def _checked(wanted: Register) -> Register:
    """Return a registration that can be used.

    Raises:
        InputError: Naming the field and what it takes.
    """
    subjects.check_name(wanted.type, what="agent type")
    subjects.escape(wanted.key)
    for item in wanted.capabilities:
        subjects.check_name(item if isinstance(item, str) else item.name, what="capability")
    limits = [
        (len(wanted.capabilities) <= MAX_CAPABILITIES, f"capabilities takes at most {MAX_CAPABILITIES}"),
        (len(wanted.labels) <= MAX_LABELS, f"labels takes at most {MAX_LABELS}"),
        (1 <= wanted.weight <= MAX_WEIGHT, f"weight is {wanted.weight}: take 1 to {MAX_WEIGHT}"),
        (1.0 <= wanted.timeout_s <= MAX_TIMEOUT_S, f"timeout_s is {wanted.timeout_s}: take 1 to {MAX_TIMEOUT_S:g}"),
    ]
    wrong = [text for is_right, text in limits if not is_right]
    if wrong:
        message = f"{wanted.type}/{wanted.key} was not registered: {'; '.join(wrong)}"
        raise InputError(message)
    return wanted


def _record_of(wanted: Register, registered_at: Any) -> AgentRecord:  # noqa: ANN401 - a datetime
    specs = {
        spec.name: spec
        for spec in (CapabilitySpec(name=item) if isinstance(item, str) else item for item in wanted.capabilities)
    }
    return AgentRecord(
        type=wanted.type,
        key=wanted.key,
        capabilities=list(specs.values()),
        labels=wanted.labels,
        version=wanted.version,
        host=wanted.host,
        instance=wanted.instance,
        weight=wanted.weight,
        timeout_s=wanted.timeout_s,
        registered_at=registered_at,
    )


def _refusal(error: CallboardError) -> bytes:
    detail: dict[str, object] = {"code": error.code, "message": str(error)}
    if isinstance(error, NoAgentError):
        detail |= {"near": list(error.near), "refused": error.refused}
    if isinstance(error, DuplicateAgentError):
        detail["holder"] = error.holder
    return msgspec.json.encode({"error": detail})
