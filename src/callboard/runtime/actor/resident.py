"""Actors that are awake without mail: one in the whole fleet for each key that a type names as resident."""

from __future__ import annotations

import asyncio

from callboard.runtime import events, logs
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.instance import Instance, call_hook
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.residence import Residence
from callboard.runtime.errors import CallboardError, TurnFencedError

_log = logs.get_logger(__name__)
# A start that failed is tried again after this long, doubled up to the longest.
AGAIN_S = 0.25
AGAIN_MAX_S = 10.0


class Resident:
    """Keeps the object of one actor in being for as long as its partition is ours.

    The object serves turns as well, so there is never a second one beside it. What replaces it (a failed turn, new
    code) ends the old one with ``on_stop`` before ``on_start`` of the next. Whoever froze and was taken over has two in
    the fleet until it wakes: what must not be done twice asks ``self.residence.is_ours()`` first.
    """

    def __init__(self, activation: Staged, instance: Instance) -> None:
        """Begin with none; ``look`` makes it."""
        self._activation = activation
        self._instance = instance
        self._started: Actor | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def look(self) -> None:
        """See that the object is there while it should be, and gone when it should not."""
        self._changed.set()
        if self._task is None and not self._is_right:
            self._task = self._activation.services.spawn(self._run(), f"resident-{self._activation.address}")

    async def ready(self) -> Actor:
        """Return the object, when it has been started; a turn waits for it.

        Raises:
            TurnFencedError: If it is not ours to start any more.
        """
        while True:
            actor = self._instance.actor
            if actor is not None and actor is self._started:
                return actor
            if not self._should_be:
                message = f"{self._activation.address} goes to another host, which runs this turn"
                raise TurnFencedError(message)
            self.look()
            self._changed.clear()
            await self._changed.wait()

    @property
    def _should_be(self) -> bool:
        activation = self._activation
        is_ours = not (activation.is_gone or activation.owner.is_gone)
        return is_ours and activation.held_by is None

    @property
    def _is_right(self) -> bool:
        """Whether what is matches what should be."""
        if not self._should_be:
            # a turn under way has it to the end
            return self._started is None or (self._activation.is_busy and not self._activation.is_dropped)
        return self._started is not None and self._started is self._instance.actor

    async def _run(self) -> None:
        pause_s = AGAIN_S
        try:
            while not self._is_right:
                if self._started is not None:
                    await self._stop()
                elif await self._start():
                    pause_s = AGAIN_S
                else:
                    await self._activation.services.clock.sleep(pause_s)
                    pause_s = min(2 * pause_s, AGAIN_MAX_S)
        finally:
            self._task = None
            self._changed.set()

    async def _start(self) -> bool:
        activation = self._activation
        try:
            await activation.ensure_read()
            actor = await activation.new_actor()
            actor._residence = self._residence()  # noqa: SLF001 - the engine's side of this class
            await call_hook(actor.on_start)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the hook is the user's code; it is tried again
            code = error.code if isinstance(error, CallboardError) else type(error).__name__
            _log.error(events.ACTOR_FAILED, actor=str(activation.address), code=code, message=f"on_start: {error}")
            return False
        self._started = self._instance.actor = actor
        self._changed.set()
        return True

    def _residence(self) -> Residence:
        services, owner = self._activation.services, self._activation.owner
        return Residence(
            worker=services.worker,
            bus=services.bus,
            clock=services.clock,
            client=services.client,
            epoch=owner.epoch,
            spawn=services.spawn,
            is_ours=owner.is_ours,
            is_moving=lambda: owner.is_moving,
        )

    async def _stop(self) -> None:
        actor, self._started = self._started, None
        if self._instance.actor is actor:
            self._instance.actor = None
        if actor is not None:
            await self._instance.goodbye(actor)


def resident_of(activation: Staged, instance: Instance) -> Resident | None:
    """Return what keeps an actor awake, None for one that is awake while it has mail."""
    return Resident(activation, instance) if activation.address.key in activation.kind.options.residents else None
