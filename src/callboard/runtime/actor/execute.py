"""Run a handler once and say how it ended; whatever it raises becomes data here."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable

from msgspec import Struct

from callboard.runtime.actor.actor import Actor, turn_scope
from callboard.runtime.actor.handler import Handler
from callboard.runtime.actor.turn import ParkSignal, Turn
from callboard.runtime.errors import TurnCancelledError
from callboard.runtime.retry import RetryPolicy

STOP_DRAIN = "drain"
STOP_LOST = "lost"
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
    """It was stopped from outside for good: cancelled, killed, out of time."""

    error: TurnCancelledError


class Abandoned(Struct, frozen=True):
    """It was stopped because this host must not or cannot go on with it; nothing is committed."""


Ending = Done | Waits | Raised | Stopped | Abandoned
Part = Callable[[int, object], None]


async def execute(turn: Turn, handler: Handler, actor: Actor, argument: object, *, part: Part) -> Ending:
    """Run ``handler`` in the calling task. ``part`` is given what a streaming handler yields.

    A cancellation of the calling task ends the handler; ``turn.stop`` says what it means.
    """
    pid = os.getpid()
    turn.receive(argument, handler.shape)
    try:
        with turn_scope(actor, turn):
            value = await _invoke(handler, actor, argument, part)
    except ParkSignal:
        return Waits()
    except asyncio.CancelledError as error:
        return _stopped(turn, error)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a user's code may raise anything; it is data from here on
        # a group that a parked or cancelled part of the handler was in
        if turn.wait is not None:
            return Waits()
        return Raised(error)
    finally:
        if os.getpid() != pid:
            # the handler forked: the copy holds our connections and must not speak on them
            os._exit(0)
    if turn.wait is not None:
        # the handler swallowed the signal; its answer is not one
        return Waits()
    return Done(value)


def policy_of(handler: Handler, actor_policy: RetryPolicy) -> RetryPolicy:
    """Return the retry policy of a handler: its own, or its actor type's."""
    return handler.retry or actor_policy


def _stopped(turn: Turn, error: asyncio.CancelledError) -> Ending:
    if turn.stop is None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise error
        # nobody cancelled us: the handler let the cancellation of something of its own escape
        return Raised(error)
    code, text = turn.stop
    if code in _ABANDON:
        return Abandoned()
    return Stopped(TurnCancelledError(text))


async def _invoke(handler: Handler, actor: Actor, argument: object, part: Part) -> object:
    if handler.is_stream:
        number = 0
        async for item in handler(actor, argument):
            part(number, item)
            number += 1
        return None
    if handler.is_async:
        return await handler(actor, argument)
    context = contextvars.copy_context()
    return await asyncio.to_thread(context.run, handler, actor, argument)
