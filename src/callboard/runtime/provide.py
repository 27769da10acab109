"""The consumers of capabilities: who serves them, or waits to start somebody who does, sees to it that they exist."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.provision import ensure_consumer
from callboard.runtime.bus.topology import ConsumerNumbers, due_consumer, task_consumers
from callboard.runtime.errors import TopologyError

STREAMS = (subjects.WORK, subjects.LATER, subjects.LEDGER, subjects.DEAD)


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
