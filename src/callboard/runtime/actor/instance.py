"""The object of one actor in memory, and its hooks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

from callboard.runtime import events, logs
from callboard.runtime.actor.actor import Actor, turn_scope
from callboard.runtime.actor.handler import EVERY_PREFIX
from callboard.runtime.actor.outbox import ZONE
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.record import Timer
from callboard.runtime.actor.turn import Turn

_log = logs.get_logger(__name__)
HEALTH_WAIT_S = 1.0


class Instance:
    """Makes the object when a turn needs one, and forgets it.

    Attributes:
        actor: The object; None when there is none.
    """

    def __init__(self, activation: Staged) -> None:
        """Begin with none."""
        self.actor: Actor | None = None
        self._activation = activation
        self._late: list[str] = []

    async def make(self) -> Actor:
        """Return the object; a new one has not been started yet.

        Raises:
            CallboardError: If the state cannot be loaded.
            Exception: What the class's own code raises.
        """
        if self.actor is not None:
            return self.actor
        resident = self._activation.resident
        return await resident.ready() if resident is not None else await self._activation.new_actor()

    async def start(self, actor: Actor, turn: Turn) -> BaseException | None:
        """Run the start hook of a new object and see to periodic timers; return the hook's error."""
        if self.actor is None:
            try:
                with turn_scope(actor, turn):
                    await call_hook(actor.on_start)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - the start hook is the user's code; it is data from here on
                return error
            self.actor = actor
        self._set_timers(turn)
        return None

    def forget(self) -> None:
        """Throw the object away; the next turn makes a new one from the record."""
        self.actor = None
        self._replace()

    def _replace(self) -> None:
        if self._activation.resident is not None:
            self._activation.resident.look()

    async def end(self) -> None:
        """Say goodbye to the object of an actor that is let go."""
        actor, self.actor = self.actor, None
        if actor is not None and self._activation.resident is None:
            await self.goodbye(actor)
        self._replace()

    async def failed(self, error: BaseException) -> None:
        """Tell the object that a turn of it failed for good, and forget it."""
        actor, self.actor = self.actor, None
        if actor is not None:
            await self._hook(actor.on_failure, "on_failure", error)
            self._replace()

    async def hook(self, name: str, *, is_busy: bool) -> None:
        """Call the pause or the resume hook, after the turn under way if there is one."""
        if is_busy:
            self._late.append(name)
        elif self.actor is not None:
            await self._hook(getattr(self.actor, name), name)

    async def after_turn(self) -> None:
        """Call the hooks that waited for the end of a turn."""
        late, self._late = self._late, []
        for name in late:
            await self.hook(name, is_busy=False)

    async def health(self) -> dict[str, object]:
        """Return what the object says of its health; nothing when there is none, or it takes over a second."""
        if self.actor is None:
            return {}
        try:
            async with asyncio.timeout(HEALTH_WAIT_S):
                found = await call_hook(self.actor.on_health)
        except Exception as error:  # noqa: BLE001 - the hook is the user's code; its failure is what there is to say
            return {"error": f"on_health failed: {type(error).__name__}: {error}"}
        return found if isinstance(found, dict) else {"value": found}

    def _set_timers(self, turn: Turn) -> None:
        """Set the timers of periodic handlers that are new or have another rule, take away those of none."""
        activation = self._activation
        for name, handler in activation.kind.every.items():
            rule = (handler.rule or "") + (f"{ZONE}{handler.time_zone}" if handler.time_zone else "")
            known = activation.known.timers.get(name)
            if known is None or known.rule != rule:
                turn.set_timer(name, Timer(generation=turn.cause_seq, rule=rule), b"null", name)
        for name in activation.known.timers:
            if name.startswith(EVERY_PREFIX) and name not in activation.kind.every:
                turn.cancel_timer(name)

    async def goodbye(self, actor: Actor) -> None:
        """Run the stop hook of an object."""
        await self._hook(actor.on_stop, "on_stop")

    async def _hook(self, function: Callable[..., object], name: str, *arguments: object) -> None:
        try:
            await call_hook(function, *arguments)
        except Exception as error:  # noqa: BLE001 - the hook is the user's code; the actor goes on without it
            _log.warning(events.HOOK_FAILED, actor=str(self._activation.address), hook=name, type=type(error).__name__)


async def call_hook(function: Callable[..., object], *arguments: object) -> object:
    """Call a function of the user's, synchronous or not."""
    found = function(*arguments)
    return await found if inspect.isawaitable(found) else found
