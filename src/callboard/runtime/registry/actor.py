"""The registry as an actor: ``registry/main`` is resident with one worker of the fleet, which leads."""

from __future__ import annotations

from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.errors import ActorError, CallboardError
from callboard.runtime.registry.desk import Desk

TYPE = "registry"
MAIN = "main"
# How long a leader that has handed over answers at most until the next one does.
LINGER_S = 2.0


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
        desk = Desk(cache, bus=home.bus, clock=home.clock, spawn=home.spawn, is_ours=self._may_answer)
        await desk.open()
        self._desk = desk

    async def on_stop(self) -> None:
        """Close the desk; in an orderly move not before the next leader's is open, so that every question meets one."""
        desk, self._desk = self._desk, None
        if desk is None:
            return
        if self.residence.is_moving():
            await self._await_next()
        await desk.close()

    async def _await_next(self) -> None:
        """Wait until the next leader answers, which it does once its desk is open."""
        main = ActorRef(self.residence.bus, f"{TYPE}/{MAIN}", clock=self.residence.clock)
        try:
            _ = await main.ask(Lead(), returns=Led, timeout_s=LINGER_S)
        except CallboardError:
            # none came in time: callers have their caches
            return

    async def _may_answer(self) -> bool:
        """Return whether it leads, or still answers in the next leader's stead."""
        return self.residence.is_moving() or await self.residence.is_ours()

    @on
    async def where(self, _: Lead) -> Led:
        """Say where it lives."""
        return Led(worker=self.residence.worker, epoch=self.residence.epoch)
