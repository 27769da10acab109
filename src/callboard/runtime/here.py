"""``callboard.find`` and ``callboard.pick``: by the turn, task or ``connect()`` block that the caller stands in."""

from __future__ import annotations

from typing import Any

from callboard.runtime.actor.turn_api import turn_now
from callboard.runtime.capability import Capability
from callboard.runtime.errors import RegistryError
from callboard.runtime.registry.handle import Finder, Picks, finder_now
from callboard.runtime.registry.message import Found


async def find(capability: str | Capability[..., Any] = "", **what: Any) -> Found:  # noqa: ANN401 - see Client.find
    """Return agents as the registry sees them now. See ``Client.find`` for what may be asked for and for errors.

    Raises:
        RegistryError: Outside of ``connect()`` blocks, turns and task handlers.
    """
    turn = turn_now.get()
    return await (turn or _here("find")).find(capability, **what)


async def pick(capability: str | Capability[..., Any] = "", **what: Any) -> Picks:  # noqa: ANN401 - see Client.pick
    """Choose the least busy agent. See ``Client.pick``; inside a turn it is ``self.pick``, and journaled.

    Raises:
        RegistryError: Outside of ``connect()`` blocks, turns and task handlers.
    """
    turn = turn_now.get()
    if turn is not None:
        return await turn.pick(capability, **what)
    return await _here("pick").pick(capability, **what)


def _here(word: str) -> Finder:
    finder = finder_now.get()
    if finder is None:
        message = (
            f"callboard.{word}() needs a connection: use it inside `async with callboard.connect()`, a turn or a task"
        )
        raise RegistryError(message)
    return finder
