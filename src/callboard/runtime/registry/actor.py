"""The registry as an actor: ``registry/main`` is resident with one worker of the fleet, which leads."""

from __future__ import annotations

from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import ActorError
from callboard.runtime.registry.desk import Desk

TYPE = "registry"
MAIN = "main"


class Lead(Struct, frozen=True):
    """Ask ``registry/main`` where it lives; ``Led`` is the answer."""


class Led(Struct, frozen=True, kw_only=True):
    """Where the registry lives now, and since which change of hands.

    Attributes:
        worker: The worker that leads.
        epoch: The ownership under which it does; it grows with every change of hands.
    """

    worker: str
    epoch: int


class Registry(Actor, name=TYPE, residents=[MAIN]):
    """Opens the desk where it wakes and closes it when it goes elsewhere. It keeps no state of its own."""

    def __init__(self) -> None:
        """Begin with a closed desk."""
        self._desk: Desk | None = None

    async def on_start(self) -> None:
        """Open the desk.

        Raises:
            ActorError: If the worker keeps no cache of the registry.
        """
        home = self.residence
        cache = home.client.lookups.cache
        if cache is None:
            message = "this worker keeps no cache of the registry"
            raise ActorError(message)
        desk = Desk(cache, bus=home.bus, clock=home.clock, spawn=home.spawn, is_ours=home.is_ours)
        await desk.open()
        self._desk = desk

    async def on_stop(self) -> None:
        """Close the desk."""
        desk, self._desk = self._desk, None
        if desk is not None:
            await desk.close()

    @on
    async def where(self, _: Lead) -> Led:
        """Say where it lives."""
        return Led(worker=self.residence.worker, epoch=self.residence.epoch)
