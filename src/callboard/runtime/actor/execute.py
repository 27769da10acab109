"""Run a handler once and say how it ended; whatever it raises becomes data here."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from msgspec import Struct

from callboard.runtime import tracing
from callboard.runtime.actor.actor import Actor, turn_scope
from callboard.runtime.actor.handler import Handler
from callboard.runtime.actor.turn import ParkSignal, Turn
from callboard.runtime.errors import (
    CallboardError,
    DeadlineError,
    HandlerExitError,
    RetryableError,
    TurnCancelledError,
    TurnTimeoutError,
)
from callboard.runtime.retry import RetryPolicy

STOP_DRAIN = "drain"
STOP_LOST = "lost"
STOP_CANCEL = "cancel"
STOP_TIMEOUT = "timeout"
STOP_DEADLINE = "deadline"
DRAINS = "the worker drains"
# The handler goes away with its host; the turn runs elsewhere.
_ABANDON = frozenset({STOP_DRAIN, STOP_LOST})


class Done(Struct, frozen=True):
    """The handler returned."""

    value: object


class Waits(Struct, frozen=True):
    """The handler waits for a message: ``Turn.wait`` says which."""


class Raised(Struct, frozen=True):
    """The handler raised."""

    error: BaseException


class Stopped(Struct, frozen=True):
    """It was stopped from outside for good: cancelled, killed, past its deadline."""

    error: CallboardError


class Abandoned(Struct, frozen=True):
    """It was stopped because this host must not or cannot go on with it; nothing is committed."""


Ending = Done | Waits | Raised | Stopped | Abandoned
Part = Callable[[int, object], Awaitable[None]]


async def execute(
    turn: Turn, handler: Handler, actor: Actor, argument: object, *, part: Part | None, executor: Executor | None = None
) -> Ending:
    """Run ``handler`` in the calling task. ``part`` is given what a streaming handler yields; None makes a list of it.

    A cancellation of the calling task ends the handler; ``turn.stop`` says what it means. A synchronous handler runs in
    a thread of ``executor``, which nothing can interrupt: when it is stopped its thread goes on, and what it sends from
    then on is refused.
    """
    pid = os.getpid()
    turn.receive(argument, handler.shape)
    try:
        with (
            tracing.handling(f"turn {turn.address.type}.{handler.name}", turn.mail.headers, lambda: _traits(turn)),
            turn_scope(actor, turn),
        ):
            value = await invoke(handler, actor, argument, part=part, executor=executor)
    except ParkSignal:
        return Waits()
    except asyncio.CancelledError as error:
        return _stopped(turn, error)
    except GeneratorExit:
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        return Raised(_exit(error))
    except BaseException as error:  # noqa: BLE001 - a user's code may raise anything; it is data from here on
        # a group that a parked or cancelled part of the handler was in
        if turn.wait is not None:
            return Waits()
        if turn.stop is not None:
            # told to stop, it raised something of its own on its way
            return ended(turn.stop)
        return Raised(error)
    finally:
        if os.getpid() != pid:
            # the handler forked: the copy holds our connections and must not speak on them
            os._exit(0)
    if turn.wait is not None:
        # the handler swallowed the signal; its answer is not one
        return Waits()
    return Done(value)


async def invoke(
    handler: Handler, actor: Actor, argument: object, *, part: Part | None = None, executor: Executor | None = None
) -> object:
    """Call a handler, synchronous ones in a thread; without ``part`` the parts of a stream are its value.

    Raises:
        BaseException: Whatever it raises.
    """
    if handler.is_stream:
        return await _stream(handler, actor, argument, part)
    if handler.is_async:
        return await handler(actor, argument)
    own = contextvars.copy_context()
    call = functools.partial(_in_thread, own, handler, actor, argument, os.getpid())
    return await asyncio.get_running_loop().run_in_executor(executor, call)


def _traits(turn: Turn) -> dict[str, str | int]:
    return {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "callboard.actor": str(turn.address),
        "callboard.mail": turn.mail.seq,
        "callboard.attempt": turn.attempt,
        "callboard.epoch": turn.epoch,
    }


def policy_of(handler: Handler, actor_policy: RetryPolicy) -> RetryPolicy:
    """Return the retry policy of a handler: its own, or its actor type's."""
    return handler.retry or actor_policy


def _stopped(turn: Turn, error: asyncio.CancelledError) -> Ending:
    if turn.stop is None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        # nobody cancelled us: the handler let the cancellation of something of its own escape
        return Raised(RetryableError("the handler let a CancelledError out that nobody sent it"))
    return ended(turn.stop)


def ended(stop: tuple[str, str]) -> Ending:
    """Return how a turn ends that was stopped from outside."""
    code, text = stop
    if code in _ABANDON:
        return Abandoned()
    if code == STOP_TIMEOUT:
        # a failed attempt like any other: the policy decides
        return Raised(TurnTimeoutError(text))
    return Stopped(DeadlineError(text) if code == STOP_DEADLINE else TurnCancelledError(text))


async def _stream(handler: Handler, actor: Actor, argument: object, part: Part | None) -> object:
    parts: list[object] = []
    number = 0
    async with contextlib.aclosing(handler(actor, argument)) as items:
        async for item in items:
            if part is None:
                parts.append(item)
            else:
                await part(number, item)
            number += 1
    return None if part is not None else parts


def _in_thread(own: contextvars.Context, handler: Handler, actor: Actor, argument: object, pid: int) -> object:
    try:
        return own.run(handler, actor, argument)
    except (StopIteration, GeneratorExit) as error:
        # a future refuses the one, and the waiter would hang; the other would close the waiting coroutine
        message = f"the handler raised {type(error).__name__}"
        raise RuntimeError(message) from error
    except (SystemExit, KeyboardInterrupt) as error:
        raise _exit(error) from error
    finally:
        if os.getpid() != pid:
            # it forked and came back here in the copy, where no loop runs and nobody may speak on our connections
            os._exit(0)


def _exit(error: BaseException) -> HandlerExitError:
    return HandlerExitError(f"the handler tried to end its process: {error!r}")
