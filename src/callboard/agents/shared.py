"""The shared context inside a turn: every read and write is a step, so that a takeover sees what the first run saw."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from msgspec import Struct

from callboard.agents import context
from callboard.agents.context import GLOBAL, PRIVATE, RUN, Context, Entry
from callboard.runtime import codec, events, ids, logs
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import TurnApi, current_turn
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusError, PermissionDeniedError

T = TypeVar("T")

SWEEP_EVERY_S = 300.0
TYPE = "context"

_log = logs.get_logger(__name__)


class SharedContext:
    """One scope of the shared context, for one turn: ``shared(self)``; an agent has it as ``self.context``.

    Reads are journaled: a host that takes the turn over gets the values that were read, whatever stands there by then.
    Writes happen at once, not with the commit, and once: whoever repeats one after a crash looks first. One stored step
    for a read, two for a write.

    Attributes:
        scope: ``global``, ``run/<id>`` or ``private/<type>/<key>``.
    """

    def __init__(self, turn: TurnApi | Actor, *, scope: str = GLOBAL) -> None:
        """Use a scope.

        Raises:
            PermissionDeniedError: If it is another agent's own.
            InvalidNameError: If there is no such scope.
        """
        if isinstance(turn, Actor):
            turn = current_turn()
        own = f"{PRIVATE}/{turn.address}"
        if scope.startswith(f"{PRIVATE}/") and scope != own:
            message = f"{scope} belongs to another agent: {turn.address} has {own}, and shares by global and run/<id>"
            raise PermissionDeniedError(message, subject=scope)
        self.scope = scope
        self._turn = turn
        self._context = Context(turn.bus, scope=scope, by=str(turn.address), clock=turn.clock)

    # --- scopes

    @property
    def private(self) -> SharedContext:
        """What this agent alone sees."""
        return SharedContext(self._turn, scope=f"{PRIVATE}/{self._turn.address}")

    def run(self, id_: str) -> SharedContext:
        """Return what belongs to a run.

        Raises:
            InvalidNameError: If the id cannot be used.
        """
        return SharedContext(self._turn, scope=f"{RUN}/{id_}")

    # --- reading

    async def get(self, key: str, default: object = None) -> Any:  # noqa: ANN401 - whatever stands there
        """Return a value as it was when this turn first read it, ``default`` when there was none.

        Raises:
            InvalidNameError: If the key cannot be used.
        """
        found = await self.entry(key)
        return default if found is None else found.value

    async def entry(self, key: str) -> Entry | None:
        """Return a value with its revision, which ``set(expected=…)`` takes; None when there was none.

        Raises:
            InvalidNameError: If the key cannot be used.
        """

        async def read() -> Entry | None:
            return await self._context.entry(key)

        found: Entry | None = await self._turn.step("context get", read, key=self._name(key))
        return found

    async def ls(self, prefix: str = "") -> dict[str, Any]:
        """Return the values below a prefix, by key.

        Raises:
            InvalidNameError: If the prefix cannot be used.
        """

        async def read() -> dict[str, Any]:
            return {key: found.value for key, found in (await self._context.ls(prefix)).items()}

        found: dict[str, Any] = await self._turn.step("context ls", read, key=self._name(prefix))
        return found

    # --- writing

    async def set(self, key: str, value: object, *, ttl: str | float | None = None, expected: int | None = None) -> int:
        """Write a value; return its revision. See ``Context.set``.

        Raises:
            ConflictError: If ``expected`` does not stand.
            EncodeError: If the value has no JSON form.
            InvalidNameError: If the key cannot be used.
            PayloadTooLargeError: If it is too large.
        """

        async def write(op: str) -> int:
            return await self._context.set(key, value, ttl=ttl, expected=expected, op=op)

        return await self._once("set", key, [value, ttl, expected], write, _revision)

    async def update(self, values: Mapping[str, object], *, ttl: str | float | None = None) -> int:
        """Write several values, all or none; return the last revision. See ``Context.update``.

        Raises:
            EncodeError: If a value has no JSON form.
            InputError: If there are too many, or none.
            InvalidNameError: If a key cannot be used.
        """

        async def write(op: str) -> int:
            return await self._context.update(values, ttl=ttl, op=op)

        # all stand or none does: the last one tells
        last = list(values)[-1] if values else ""
        return await self._once("update", last, [dict(values), ttl], write, _revision)

    async def delete(self, key: str, *, expected: int | None = None) -> bool:
        """Delete a value; False when there was none.

        Raises:
            ConflictError: If ``expected`` does not stand.
            InvalidNameError: If the key cannot be used.
        """

        async def write(op: str) -> bool:
            return await self._context.delete(key, expected=expected, op=op)

        return await self._once("delete", key, [expected], write, _is_done)

    async def clear(self, prefix: str = "") -> int:
        """Delete everything below a prefix; return how many.

        Raises:
            InvalidNameError: If the prefix cannot be used.
        """

        async def write() -> int:
            return await self._context.clear(prefix)

        found: int = await self._turn.step("context clear", write, key=self._name(prefix))
        return found

    async def increment(self, key: str, amount: int = 1) -> int:
        """Add to a whole number, which begins at 0; return the sum. Counted once, also over a takeover.

        That holds as long as others change the key less often than its history is deep (64) meanwhile.

        Raises:
            InputError: If something else than a whole number stands there.
            InvalidNameError: If the key cannot be used.
        """

        async def write(op: str) -> int:
            return await self._context.increment(key, amount, op=op)

        return await self._once("increment", key, [amount], write, _value)

    # --- inside

    async def _once(
        self,
        verb: str,
        key: str,
        given: object,
        write: Callable[[str], Awaitable[T]],
        as_done: Callable[[Entry], T],
    ) -> T:
        """Write under a name of its own, which a repeat looks for before it writes."""
        is_first = False

        async def draw() -> str:
            nonlocal is_first
            is_first = True
            return ids.new_token()

        async def run() -> T:
            done = None if is_first else await self._context.was_done(key, op)
            return await write(op) if done is None else as_done(done)

        place = self._name(key)
        digest = hashlib.sha256(codec.canonical(given)).hexdigest()[:16]
        op: str = await self._turn.step(f"context {verb} begun", draw, key=f"{place} {digest}")
        found: T = await self._turn.step(f"context {verb}", run, key=op)
        return found

    def _name(self, key: str) -> str:
        return f"{self.scope}:{key}"


def shared(turn: TurnApi | Actor) -> SharedContext:
    """Return the shared context, scope ``global``, for a turn; from there ``.private`` and ``.run(id)``."""
    return SharedContext(turn)


class SweepNow(Struct, frozen=True):
    """Ask ``context/main`` to delete what is over; the answer is how many values were."""


class Sweeper(Actor, name=TYPE, residents=["main"]):
    """Deletes the values of the shared context whose time is over, wherever it lives. A companion of whoever shares."""

    def __init__(self) -> None:
        """Begin asleep."""
        self._task: asyncio.Task[None] | None = None

    async def on_start(self) -> None:
        """Begin to look every five minutes."""
        self._task = self.residence.spawn(self._run(self.residence.clock), "context-sweep")

    async def on_stop(self) -> None:
        """Look no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    @on
    async def sweep(self, _: SweepNow) -> int:
        """Look now."""
        return await self._sweep()

    async def _run(self, clock: Clock) -> None:
        while True:
            await clock.sleep(SWEEP_EVERY_S)
            _ = await self._sweep()

    async def _sweep(self) -> int:
        gone = 0
        for kind in (GLOBAL, RUN, PRIVATE):
            try:
                gone += await context.sweep(self.residence.bus, kind, clock=self.residence.clock)
            except BusError as error:
                # no right to look there, or no broker now: the values stay for a later look
                _log.warning(events.CONTEXT_UNSWEPT, scope=kind, code=error.code, message=str(error))
        return gone


COMPANIONS: tuple[type[Actor], ...] = (Sweeper,)
"""What an actor that shares context does well to have beside it: name it in the class's ``companions``."""


def _revision(found: Entry) -> int:
    return found.revision


def _value(found: Entry) -> int:
    return int(found.value)


def _is_done(_: Entry) -> bool:
    return True
