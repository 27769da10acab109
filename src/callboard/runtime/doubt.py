"""Which first deliveries may not be the first: those of tasks that were stored before the link was made anew.

A server that is killed loses the last tenth of a second of what it knew about deliveries, and hands those tasks out
again as if for the first time (seen with nats-server 2.15.1, with ``sync_interval: always`` and without).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import Any

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusError
from callboard.runtime.lanes import PULL_LANES, PullLane

FIRST_S = 3.0
_RETRY_S = 0.05


def source_of(capability: str, lane: PullLane) -> tuple[str, str]:
    """Return the stream and the durable consumer that a lane of a capability is pulled from."""
    if lane == "due":
        return subjects.LATER, subjects.due_consumer(capability)
    return subjects.WORK, subjects.consumer(capability, lane)


class Doubt:
    """Knows, by lane, up to which sequence a first delivery must be asked about.

    After a lost link everything that was stored before it came back is doubtful: it is asked about like a redelivery.
    A worker that has just begun sees from a consumer that has handed out nothing since its server began that this was
    lately. In its first seconds it then asks about what stood in the queue before it.

    Attributes:
        linked_at: ``Bus.connected_at`` of the link it speaks of.
        up_to: Highest doubtful sequence; 0 as long as the link has not been lost, infinite until it is known.
    """

    __slots__ = ("_bus", "_capability", "_clock", "_first_until", "_first_up_to", "_spawn", "linked_at", "up_to")

    def __init__(
        self, bus: Bus, capability: str, *, clock: Clock, spawn: Callable[[Coroutine[Any, Any, None], str], None]
    ) -> None:
        """Doubt nothing before the first loss of the link.

        Args:
            bus: The worker's connection.
            capability: Whose consumers are pulled.
            clock: Time.
            spawn: Starts a named task in the worker's task group.
        """
        self._bus = bus
        self._capability = capability
        self._clock = clock
        self._spawn = spawn
        self.linked_at = bus.connected_at
        self.up_to: dict[PullLane, float] = dict.fromkeys(PULL_LANES, 0)
        self._first_until = self.linked_at + FIRST_S
        self._first_up_to: dict[PullLane, float] | None = None

    async def begin(self) -> None:
        """Note, before the first pull, what stands in the queue if its server has just begun.

        Raises:
            BusError: If the broker does not tell.
        """
        if self._first_up_to is not None:
            return
        self._first_up_to = dict.fromkeys(PULL_LANES, 0)
        cold = [lane for lane in PULL_LANES if await self._is_cold(lane)]
        if cold:
            found = await self._last_seqs()
            self._first_up_to |= {lane: found[lane] for lane in cold}

    def is_early(self, lane: PullLane, seq: int, now_s: float) -> bool:
        """Return whether this worker is too young to run a first delivery of ``seq`` without asking."""
        if now_s > self._first_until or self._first_up_to is None:
            return False
        return seq <= self._first_up_to[lane]

    def look(self) -> None:
        """Notice a new link; called before each burst of deliveries, costs one comparison."""
        if self._bus.connected_at != self.linked_at:
            self.linked_at = self._bus.connected_at
            self.up_to = dict.fromkeys(PULL_LANES, math.inf)
            self._spawn(self._measure(self.linked_at), "pool-doubt")

    async def _measure(self, linked_at: float) -> None:
        """Replace "all" by the last sequences the streams have now: whatever is stored later cannot have been out."""
        while linked_at == self.linked_at:
            try:
                found = await self._last_seqs()
            except BusError:
                await self._clock.sleep(_RETRY_S)
                continue
            if linked_at == self.linked_at:
                self.up_to = found
            return

    async def _is_cold(self, lane: PullLane) -> bool:
        stream, consumer = source_of(self._capability, lane)
        info = await self._bus.consumer_info(stream, consumer)
        return info is not None and info.is_cold

    async def _last_seqs(self) -> dict[PullLane, float]:
        work = await self._bus.stream_info(subjects.WORK)
        later = await self._bus.stream_info(subjects.LATER)
        found: dict[PullLane, float] = {}
        for lane in PULL_LANES:
            info = later if lane == "due" else work
            found[lane] = info.last_seq if info is not None else math.inf
        return found
