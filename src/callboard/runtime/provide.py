"""The consumers of capabilities: who serves them, or waits to start somebody who does, sees to it that they exist."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from callboard.runtime import events, subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.provision import ensure_consumer
from callboard.runtime.bus.topology import ConsumerNumbers, due_consumer, task_consumers
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusError, TopologyError
from callboard.runtime.logs import get_logger

STREAMS = (subjects.WORK, subjects.LATER, subjects.LEDGER, subjects.DEAD)
# somebody may have made the consumers, or given the user more, meanwhile
AGAIN_S = 60.0

_log = get_logger(__name__)


class Refusals:
    """Pools by label that our user may not serve, or not make the consumers of: told once, tried once a minute."""

    def __init__(self, clock: Clock) -> None:
        """Begin with none."""
        self._clock = clock
        self._until_s: dict[str, float] = {}

    def holds(self, name: str) -> bool:
        """Return whether a pool was refused within the last minute."""
        return self._until_s.get(name, 0.0) > self._clock.monotonic()

    def add(self, name: str, error: BusError) -> None:
        """Note a refusal."""
        if name not in self._until_s:
            _log.warning(events.POOL_REFUSED, capability=name, code=error.code, message=str(error))
        self._until_s[name] = self._clock.monotonic() + AGAIN_S


async def ensure_streams(bus: Bus) -> None:
    """Look for the streams of tasks; the time of one round trip.

    Raises:
        TopologyError: If one is missing.
    """
    infos = await asyncio.gather(*(bus.stream_info(stream) for stream in STREAMS))
    for stream, info in zip(STREAMS, infos, strict=True):
        if info is None:
            message = f"stream {stream} is missing: run 'callboard provision', or 'callboard up' for a local server"
            raise TopologyError(message)


async def ensure_consumers(bus: Bus, capabilities: Iterable[str], numbers: ConsumerNumbers) -> None:
    """Create what consumers of the capabilities are missing; those that exist stay as they are.

    Raises:
        TopologyError: If the broker refuses one; says how a person who may make it does.
    """
    for name in capabilities:
        lanes = [(subjects.WORK, config) for config in task_consumers(name, numbers)]
        lanes.append((subjects.LATER, due_consumer(name, numbers)))
        for stream, config in lanes:
            await ensure_consumer(bus, stream, config, capability=name)
