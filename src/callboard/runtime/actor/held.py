"""Actors in mid-turn when their partition went to another worker: kept until they are done, then told to be free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from callboard.runtime.actor.activation import Activation
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.liveness import Liveness
from callboard.runtime.actor.owners import Place
from callboard.runtime.actor.partition import Partition
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.services import Services
from callboard.runtime.bus.base import Message
from callboard.runtime.errors import BusError, DecodeError

FREED = "cb.ctl.freed"


class Freed(Struct, frozen=True):
    """Body of ``cb.ctl.freed``: a former owner has finished, or given up, an actor that it held in mid-turn.

    Attributes:
        epoch: Newest epoch of the partition that the former owner knew of then. One from before the present hold began
            is late, and says nothing of it. None from an older Callboard.
    """

    worker: str
    kind: str
    partition: int
    key: str
    epoch: int | None = None


_freed = msgspec.json.Decoder(Freed)


class Held:
    """Both sides of it: what we keep for others, and what others keep of ours.

    Attributes:
        activations: Actors that we keep, by type, partition and key.
    """

    def __init__(self, services: Services, partitions: Mapping[Place, Partition], liveness: Liveness) -> None:
        """Begin with none; ``partitions`` are those that the host owns."""
        self.activations: dict[tuple[str, int, str], Activation] = {}
        self._epochs: dict[Place, int] = {}
        self._services = services
        self._partitions = partitions
        self._liveness = liveness

    # --- what we keep

    def keep(self, partition: Partition, keys: Iterable[str]) -> None:
        """Keep the actors of a partition that are in mid-turn here; say of those that have ended that they are free."""
        place = (partition.kind.name, partition.number)
        self._learn(place, partition.epoch)
        for key in keys:
            # it may have ended, and even been forgotten, while the cursor was written
            activation = partition.activations.get(key)
            if activation is not None and activation.is_busy:
                self.activations[*place, key] = activation
            else:
                self._release(place, key)

    def adopt(self, partition: Partition) -> None:
        """Give a partition that came back to us the actors of it that we still have in mid-turn."""
        place = (partition.kind.name, partition.number)
        for found in [held for held in self.activations if held[:2] == place]:
            partition.adopt(self.activations.pop(found))

    def doubt(self) -> None:
        """Look, before the next step of a turn that we keep, whether its new owner still knows of it."""
        for activation in self.activations.values():
            activation.is_doubtful = True
            activation.owner.doubt()

    def settled(self, place: Place, activation: Staged) -> None:
        """Hear that an actor came to rest: one that we kept is free for its new owner."""
        held = (*place, activation.address.key)
        if self.activations.get(held) is activation:
            del self.activations[held]
            self._release(place, activation.address.key)

    def disown(self, place: Place, found: Cursor) -> None:
        """Say again that an actor is free which a cursor says we hold: the first notice may have been lost."""
        self._learn(place, found.epoch)
        for key, worker in found.held.items():
            if worker == self._services.worker and self._has_let_go(place, key):
                self._release(place, key)

    def _learn(self, place: Place, epoch: int) -> None:
        self._epochs[place] = max(epoch, self._epochs.get(place, 0))

    def _has_let_go(self, place: Place, key: str) -> bool:
        return place not in self._partitions and (*place, key) not in self.activations

    def _release(self, place: Place, key: str) -> None:
        _ = self._services.spawn(self._free(place, key), "actor-free")

    async def _free(self, place: Place, key: str) -> None:
        if not self._has_let_go(place, key):
            return
        freed = Freed(self._services.worker, *place, key, self._epochs.get(place, 0))
        body = msgspec.json.encode(freed)
        try:
            await self._services.bus.publish(FREED, body)
        except BusError:
            # the new owner looks for itself as well
            return

    # --- what others keep

    def hear(self, message: Message) -> None:
        """Hear that an actor of ours is free.

        A notice from before the hand-over that we took it by may be of an earlier hold, and is left out: who let go is
        told by our own cursor, and says it again.
        """
        try:
            freed = _freed.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        partition = self._partitions.get((freed.kind, freed.partition))
        if partition is None or (freed.epoch is not None and freed.epoch < partition.taken_epoch):
            return
        activation = partition.activations.get(freed.key)
        if activation is not None and activation.held_by == freed.worker:
            partition.free(freed.key)

    def free_from_dead(self, now_s: float) -> None:
        """Free actors that a host had in mid-turn which died."""
        for partition in self._partitions.values():
            for key, activation in list(partition.activations.items()):
                if activation.held_by is not None and self._liveness.is_dead(activation.held_by, now_s):
                    partition.is_from_dead = True
                    # before it runs the cursor says so: should its holder live after all, it reads that there
                    partition.doubt()
                    partition.free(key)

    async def look(self) -> None:
        """Free actors whose former owner is done; the notice of it may have been lost."""
        for partition in list(self._partitions.values()):
            for key, activation in list(partition.activations.items()):
                if activation.held_by is None:
                    continue
                try:
                    done = await activation.has_moved()
                except (BusError, DecodeError):
                    continue
                if done:
                    partition.free(key)
