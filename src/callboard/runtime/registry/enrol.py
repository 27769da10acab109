"""A worker enters the agents that it hosts: each when it is first awake here, and when its status changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from callboard.runtime import events, logs
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusClosedError, BusError, ConflictError, DecodeError, DuplicateAgentError
from callboard.runtime.registry import record as records
from callboard.runtime.registry.cache import RegistryCache
from callboard.runtime.registry.index import same
from callboard.runtime.registry.record import AgentRecord, CapabilitySpec

_log = logs.get_logger(__name__)
# Records on their way at a time.
AT_ONCE = 64
_AGAIN_S = 0.5
_TRIES = 8

Spawn = Callable[[Coroutine[Any, Any, None], str], object]


class Enroller:
    """Writes records of hosted agents by compare-and-set. It goes round the registry's leader: none is needed."""

    def __init__(self, cache: RegistryCache, *, bus: Bus, clock: Clock, spawn: Spawn) -> None:
        """Use the worker's cache, which knows what is written already."""
        self._cache = cache
        self._bucket = Bucket(bus, records.BUCKET)
        self._clock = clock
        self._spawn = spawn
        self._wanted: dict[str, AgentRecord | None] = {}
        self._is_writing = False
        self._accused: set[str] = set()

    def enrol(
        self,
        kind: str,
        key: str,
        *,
        capabilities: Sequence[str],
        labels: Mapping[str, str],
        weight: int,
        version: str,
        status: str,
        problem: str,
    ) -> None:
        """Note that an agent is awake here, or that its status changed; written soon, if it says something new.

        One that was killed is taken out.
        """
        record = AgentRecord(
            type=kind,
            key=key,
            capabilities=[CapabilitySpec(name=name) for name in capabilities],
            labels=dict(labels),
            weight=weight,
            version=version,
            is_hosted=True,
            status="failed" if status == "failed" else "paused" if status == "paused" else "active",
            problem=problem[:500] if status != "active" else "",
            registered_at=self._clock.now(),
        )
        known = self._cache.index.get(record.address)
        if status == "killed":
            self._want(record.address, None)
        elif record.address in self._wanted or known is None or not same(known, record):
            self._want(record.address, record)

    def _want(self, address: str, record: AgentRecord | None) -> None:
        self._wanted[address] = record
        if not self._is_writing:
            self._is_writing = True
            _ = self._spawn(self._write_all(), "registry-enrol")

    async def _write_all(self) -> None:
        try:
            while self._wanted:
                some = list(self._wanted.items())[:AT_ONCE]
                done = await asyncio.gather(*(self._write(address, record) for address, record in some))
                for (address, record), is_done in zip(some, done, strict=True):
                    if is_done and self._wanted.get(address) is record:
                        del self._wanted[address]
                if not all(done):
                    await self._clock.sleep(_AGAIN_S)
        except BusClosedError:
            return
        finally:
            self._is_writing = False

    async def _write(self, address: str, record: AgentRecord | None) -> bool:
        """Write or remove a record; return whether that is settled."""
        kind, _, key = address.partition("/")
        place = records.record_key(kind, key)
        for _ in range(_TRIES):
            try:
                entry = await self._bucket.get(place)
                data = entry.data if entry is not None else None
                known = _record(data)
                if known is not None and not known.is_hosted and self._cache.standing(known).status != "offline":
                    self._accuse(known)
                    return True
                if record is None:
                    if entry is not None and data is not None:
                        self._cache.index.remove(address, await self._bucket.delete(place, revision=entry.revision))
                    return True
                if known is not None and same(known, record):
                    return True
                body = records.encode(record)
                if entry is None or data is None:
                    revision = await self._bucket.create(place, body)
                else:
                    revision = await self._bucket.update(place, body, entry.revision)
            except ConflictError:
                continue
            except BusClosedError:
                raise
            except BusError as error:
                _log.debug(events.REGISTRY_UNWRITTEN, actor=address, code=error.code)
                return not error.retryable
            self._cache.take(record, revision)
            return True
        return False

    def _accuse(self, known: AgentRecord) -> None:
        """Tell, once, that another process has the address of an actor here: who asks it is answered by either."""
        if known.address not in self._accused:
            self._accused.add(known.address)
            _log.error(
                events.REGISTRY_DUPLICATED,
                actor=known.address,
                code=DuplicateAgentError.code,
                holder=f"{known.instance} on {known.host}",
            )


def _record(data: bytes | None) -> AgentRecord | None:
    try:
        return records.decode(data) if data is not None else None
    except DecodeError:
        return None
