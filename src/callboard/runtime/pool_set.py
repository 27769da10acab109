"""The pools of one worker: one for each capability, and those by label that share its slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.bus.topology import ConsumerNumbers
from callboard.runtime.capability import MAX_CONCURRENCY, Capability
from callboard.runtime.control import CONFIG_BUCKET, PAUSE_PREFIX, Order
from callboard.runtime.labels import split
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
        entry = await Bucket(self._bus, CONFIG_BUCKET).get(PAUSE_PREFIX + name)
        pool = self._make(base.capability.renamed(name))
        pool.slots = base.slots
        pool.is_paused = entry is not None and entry.data is not None
        pool.is_draining = base.is_draining
        await pool.open()
        base.share = pool.share = [*(base.share or [base]), pool]
        for other in base.share:
            other.share = base.share
        self.pools[name] = pool

    def resize(self, order: Order) -> bool:
        """Give a capability slots as ordered; False when it is none of ours, or the number is out of range."""
        pool = self.pools.get(order.capability)
        if pool is None or not 0 < order.slots <= MAX_CONCURRENCY:
            return False
        for each in pool.share or [pool]:
            each.slots = order.slots
        return True
