"""The registry in a worker: a warm cache, the enrolment of hosted agents, and word on why it is not hosted here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from callboard.runtime import events, logs, subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.kv import stream_name
from callboard.runtime.clock import Clock
from callboard.runtime.errors import ActorDefinitionError
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
    """What a worker that hosts the registry keeps beside its actors.

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


async def why_not(bus: Bus, worker: str) -> str | None:
    """Return why the registry cannot be hosted with these streams, and log it; None when it can.

    Raises:
        BusError: If the broker cannot be asked.
    """
    names = (subjects.ACTORS, stream_name(records.BUCKET))
    infos = await asyncio.gather(*(bus.stream_info(name) for name in names))
    missing = [name for name, info in zip(names, infos, strict=True) if info is None]
    if not missing:
        return None
    message = (
        f"the registry is not hosted here, {' and '.join(missing)} missing: run `callboard provision`, or set "
        f"registry.host to false"
    )
    _log.warning(events.REGISTRY_UNHOSTED, worker=worker, message=message)
    return message
