"""What a host of actors does beside turns: write cursors, forget idle actors, follow hand-overs, sweep."""

from __future__ import annotations

from typing import Protocol

from callboard.runtime import events, logs
from callboard.runtime.actor.held import Held
from callboard.runtime.actor.owners import Place
from callboard.runtime.actor.partition import Partition
from callboard.runtime.actor.services import Services, alone
from callboard.runtime.actor.trim import Trimmer
from callboard.runtime.errors import CallboardError

_log = logs.get_logger(__name__)

HELD_LOOK_EVERY_S = 1.0
PASSIVATE_EVERY_S = 5.0


class Estate(Protocol):
    """The host, as its upkeep sees it; ``ActorHost`` is one."""

    partitions: dict[Place, Partition]
    held: Held
    services: Services


class Upkeep:
    """Keeps one host's partitions in order. Make one per host and run both of its loops."""

    def __init__(self, host: Estate) -> None:
        """Prepare."""
        services = host.services
        rules = services.rules
        self._host = host
        self._services = services
        self._trimmer = Trimmer(
            services.bus,
            clock=services.clock,
            retention_s=rules.retention_s,
            audit=rules.audit,
            settle_s=rules.audit_settle_s,
        )

    async def keep_cursors(self) -> None:
        """Write cursors that moved, follow actors held elsewhere, forget idle ones; until cancelled."""
        clock = self._services.clock
        passivated_s = held_s = clock.monotonic()
        while True:
            await clock.sleep(self._services.rules.cursor_every_s)
            now_s = clock.monotonic()
            for partition in list(self._host.partitions.values()):
                try:
                    await partition.save()
                except CallboardError:
                    continue
            if now_s - held_s >= HELD_LOOK_EVERY_S:
                held_s = now_s
                await self._host.held.look()
            if now_s - passivated_s >= PASSIVATE_EVERY_S:
                passivated_s = now_s
                for partition in list(self._host.partitions.values()):
                    for activation in partition.passivate(now_s):
                        _ = self._services.spawn(activation.runner.instance.end(), "actor-end")

    async def sweep(self) -> None:
        """Remove old mail and superseded states, one partition after another; until cancelled.

        Apart from the loop that writes cursors: a sweep pauses between its purges, and may have many to make.
        """
        while True:
            await self._services.clock.sleep(self._services.rules.trim_every_s)
            for place, partition in list(self._host.partitions.items()):
                # a mistake of the sweeper must not end the turns
                await alone(self._sweep(place, partition), "sweeper")

    def forget(self, place: Place) -> None:
        """Sweep no more in a partition that somebody else owns now."""
        self._trimmer.forget(*place)

    async def _sweep(self, place: Place, partition: Partition) -> None:
        dirty, partition.dirty = partition.dirty, {}
        try:
            # the cursor as it was written: what it says is handled, whoever owns the partition
            _ = await self._trimmer.trim(*place, cursor=partition.cursor, dirty=dirty)
        except CallboardError as error:
            # the next sweep takes it up; what cannot be read here concerns no other partition
            partition.dirty = dirty | partition.dirty
            _log.debug(events.PARTITION_UNSWEPT, type=place[0], partition=place[1], code=error.code)
        if self._host.partitions.get(place) is not partition:
            self.forget(place)
