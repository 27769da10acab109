"""Which first deliveries may not be the first: what was stored before the link was made anew, or handed out before.

A server that is killed loses the last tenth of a second of what it knew about deliveries, and hands those tasks out
again as if for the first time (seen with nats-server 2.15.1, with ``sync_interval: always`` and without). Whoever is
linked to it notices by the link. A worker that is linked to another server of the cluster does not; but new tasks are
handed out in their order, so one that is not newer than what was handed out already is not new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus, Delivery
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
    A worker that has just begun knows neither whether its server has nor what the others were handed. In its first
    seconds it asks about what stood in the queue before it, unless nobody was ever handed anything.

    What was handed out as new, the workers tell each other in their beats, so that a delivery that goes behind it is
    doubtful too. That a beat is up to a second old does no harm: a stream is without a leader for longer.

    Attributes:
        linked_at: ``Bus.connected_at`` of the link it speaks of.
        up_to: Highest doubtful sequence; 0 as long as the link has not been lost, infinite until it is known.
        newest: By lane the last task that somebody is known to have been handed as new: the microsecond when it was
            stored, and its sequence.
    """

    __slots__ = (
        "_bus",
        "_capability",
        "_clock",
        "_first_until",
        "_first_up_to",
        "_spawn",
        "linked_at",
        "newest",
        "up_to",
    )

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
        self.newest: dict[str, tuple[int, int]] = {}
        self._first_until = self.linked_at + FIRST_S
        self._first_up_to: dict[PullLane, float] | None = None

    async def begin(self) -> None:
        """Note, before the first pull, what stands in a queue from which something was handed out before.

        Raises:
            BusError: If the broker does not tell.
        """
        if self._first_up_to is not None:
            return
        self._first_up_to = dict.fromkeys(PULL_LANES, 0)
        used = [lane for lane in PULL_LANES if await self._was_used(lane)]
        if used:
            found = await self._last_seqs()
            self._first_up_to |= {lane: found[lane] for lane in used}

    def is_early(self, lane: PullLane, seq: int, now_s: float) -> bool:
        """Return whether this worker is too young to run a first delivery of ``seq`` without asking."""
        if now_s > self._first_until or self._first_up_to is None:
            return False
        return seq <= self._first_up_to[lane]

    def is_doubtful(self, lane: PullLane, delivery: Delivery) -> bool:
        """Return whether a delivery that says that it is the first may not be; one that is new is noted."""
        seq = delivery.seq
        if delivery.delivered == 1:
            stored_us = delivery.time_ns // 1000
            newest = self.newest.get(lane)
            # later and yet a lower sequence: the stream was made anew
            if newest is not None and seq <= newest[1] and stored_us <= newest[0]:
                return True
            self.newest[lane] = (stored_us, seq)
        return seq <= self.up_to[lane]

    def heard(self, newest: Mapping[str, tuple[int, int]]) -> None:
        """Take what another worker knows to have been handed out; lanes that do not exist are left out."""
        for lane, task in newest.items():
            if lane in self.up_to:
                self.newest[lane] = max(task, self.newest.get(lane, task))

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

    async def _was_used(self, lane: PullLane) -> bool:
        stream, consumer = source_of(self._capability, lane)
        info = await self._bus.consumer_info(stream, consumer)
        return info is not None and info.deliveries > 0

    async def _last_seqs(self) -> dict[PullLane, float]:
        work = await self._bus.stream_info(subjects.WORK)
        later = await self._bus.stream_info(subjects.LATER)
        found: dict[PullLane, float] = {}
        for lane in PULL_LANES:
            info = later if lane == "due" else work
            found[lane] = info.last_seq if info is not None else math.inf
        return found
