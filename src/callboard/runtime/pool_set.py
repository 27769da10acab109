"""The pools of one worker: one for each capability, and those by label that share its slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.bus.topology import ConsumerNumbers
from callboard.runtime.capability import MAX_CONCURRENCY, Capability
from callboard.runtime.control import CONFIG_BUCKET, PAUSE_PREFIX, Order
from callboard.runtime.labels import reach, split
from callboard.runtime.pool import Pool
from callboard.runtime.provide import ensure_consumers

WRONG_ORDER = f"orders are drain, stop, and slots with a capability of this worker and 1 to {MAX_CONCURRENCY} of them"


class PoolSet:
    """Makes and opens pools.

    Attributes:
        pools: By name, in the order in which they were made.
    """

    def __init__(
        self,
        capabilities: Sequence[Capability[..., Any]],
        *,
        make: Callable[..., Pool] = Pool,
        concurrency: int,
        bus: Bus,
        **parts: Any,  # noqa: ANN401 - each pool's own
    ) -> None:
        """Make the pools of the capabilities; none is opened.

        Args:
            capabilities: What the worker serves.
            make: Makes one; where several tenants share the slots, one that takes its tenant's share.
            concurrency: Slots of those that name no number.
            bus: The worker's connection.
            parts: What else each ``Pool`` is made of.
        """
        self._concurrency = concurrency
        self._new = make
        self._bus = bus
        self._parts = parts
        self._paused: set[str] = set()
        self.pools: dict[str, Pool] = {each.name: self._make(each) for each in capabilities}

    def _make(self, capability: Capability[..., Any]) -> Pool:
        return self._new(capability, slots=capability.concurrency or self._concurrency, bus=self._bus, **self._parts)

    async def open_by_label(self, name: str, numbers: ConsumerNumbers) -> None:
        """Open a pool by label on the slots of its capability.

        Raises:
            BusError: If its consumers cannot be made or pulled from.
        """
        base = self.pools[split(name)[0]]
        await ensure_consumers(self._bus, [name], numbers)
        await self._read_pauses(name)
        pool = self._make(base.capability.renamed(name))
        pool.slots = base.slots
        pool.is_paused = self._is_paused(name)
        pool.is_draining = base.is_draining
        await pool.open()
        base.share = pool.share = [*(base.share or [base]), pool]
        for other in base.share:
            other.share = base.share
        self.pools[name] = pool

    async def read_pauses(self) -> None:
        """Hold back the pools that somebody has paused; before they are opened.

        Raises:
            BusError: If the broker does not answer.
        """
        for name, pool in self.pools.items():
            await self._read_pauses(name)
            pool.is_paused = self._is_paused(name)

    def heard_pause(self, name: str, *, is_paused: bool) -> list[Pool]:
        """Take in that a name was paused or let go on; return the pools that it is about.

        A capability's name is about its pools by label too, each of which stays paused when its own name is.
        """
        (self._paused.add if is_paused else self._paused.discard)(name)
        return [pool for pool in list(self.pools.values()) if name in reach(pool.capability.name)]

    def is_paused(self, pool: Pool) -> bool:
        """Return whether somebody has paused it, or the capability that it is a part of."""
        return self._is_paused(pool.capability.name)

    def _is_paused(self, name: str) -> bool:
        return not self._paused.isdisjoint(reach(name))

    async def _read_pauses(self, name: str) -> None:
        for each in reach(name):
            entry = await Bucket(self._bus, CONFIG_BUCKET).get(PAUSE_PREFIX + each)
            (self._paused.discard if entry is None or entry.data is None else self._paused.add)(each)

    def resize(self, order: Order) -> bool:
        """Give a capability slots as ordered; False when it is none of ours, or the number is out of range."""
        pool = self.pools.get(order.capability)
        if pool is None or not 0 < order.slots <= MAX_CONCURRENCY:
            return False
        for each in pool.share or [pool]:
            each.slots = order.slots
        return True
