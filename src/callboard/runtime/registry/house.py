"""The registry in a worker: a warm cache, the enrolment of hosted agents, and word on why there is none here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from callboard.runtime import events, logs, subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.kv import stream_name
from callboard.runtime.clock import Clock
from callboard.runtime.errors import ActorDefinitionError, TopologyError
from callboard.runtime.registry import record as records
from callboard.runtime.registry.actor import TYPE
from callboard.runtime.registry.cache import RegistryCache
from callboard.runtime.registry.enrol import Enroller

_log = logs.get_logger(__name__)


class Kind(Protocol):
    """An actor type, as far as the registry cares; ``ActorType`` is one."""

    name: str
    fingerprint: str
    options: Any
    capabilities: tuple[str, ...]


class House:
    """What a worker that hosts the registry, or enters agents, keeps beside its actors.

    Attributes:
        cache: What it knows.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        clock: Clock,
        worker: str,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None] | None],
        is_dead: Callable[[str], bool],
    ) -> None:
        """Prepare; ``open`` reads and listens."""
        self.cache = RegistryCache(bus, clock=clock, me=worker, is_dead=is_dead)
        self._enroller = Enroller(self.cache, bus=bus, clock=clock, spawn=spawn)

    async def open(self) -> None:
        """Read the records and listen.

        Raises:
            BusError: If the broker cannot be asked now.
        """
        await self.cache.open()

    async def close(self) -> None:
        """Stop listening."""
        await self.cache.close()

    def enrol(self, kind: Kind, key: str, status: str, reason: str) -> None:
        """Enter an agent that awoke here, or whose status changed."""
        options = kind.options
        self._enroller.enrol(
            kind.name,
            key,
            capabilities=kind.capabilities,
            labels=options.labels,
            weight=options.weight,
            version=str(options.version),
            status=status,
            problem=reason,
        )


def check_names(kinds: Sequence[Kind]) -> None:
    """See that no actor type of the user's has the registry's name.

    Raises:
        ActorDefinitionError: If one has.
    """
    if any(kind.name == TYPE for kind in kinds):
        message = f"the actor type {TYPE!r} is taken by Callboard itself: choose another name"
        raise ActorDefinitionError(message)


async def is_possible(bus: Bus, worker: str, *, must: bool = False) -> bool:
    """Return whether there are the streams that the registry needs; logs those that are missing.

    Raises:
        TopologyError: If one is missing and it ``must`` be possible.
        BusError: If the broker cannot be asked.
    """
    names = (subjects.ACTORS, stream_name(records.BUCKET))
    infos = await asyncio.gather(*(bus.stream_info(name) for name in names))
    missing = [name for name, info in zip(names, infos, strict=True) if info is None]
    if not missing:
        return True
    message = (
        f"the registry is not hosted here, and no agent entered, {' and '.join(missing)} missing: run `callboard "
        f"provision`, or set registry.host and registry.enter to false"
    )
    if must:
        raise TopologyError(message)
    _log.warning(events.REGISTRY_UNHOSTED, worker=worker, message=message)
    return False
