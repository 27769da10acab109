"""The standing pulls of one capability, one for each lane."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Delivery, Pull
from callboard.runtime.doubt import source_of
from callboard.runtime.errors import BusError
from callboard.runtime.lanes import PULL_LANES, PullLane


async def open_pulls(bus: Bus, capability: str, sink: Callable[[PullLane, Delivery], None]) -> dict[PullLane, Pull]:
    """Open the pull of every lane, without credit; all of them or none.

    Raises:
        NotFoundError: If a consumer is missing.
    """
    pulls: dict[PullLane, Pull] = {}
    try:
        for lane in PULL_LANES:
            pulls[lane] = await _open_lane(bus, capability, lane, sink)
    except BusError:
        for pull in pulls.values():
            await pull.close()
        raise
    return pulls


async def _open_lane(bus: Bus, capability: str, lane: PullLane, sink: Callable[[PullLane, Delivery], None]) -> Pull:
    stream, consumer = source_of(capability, lane)

    def hear(delivery: Delivery) -> None:
        if delivery.headers is not None and header.BATCH_ID in delivery.headers:
            delivery = structs.replace(delivery, headers=header.without_batch(delivery.headers))
        sink(lane, delivery)

    return await bus.pull(stream, consumer, hear)
