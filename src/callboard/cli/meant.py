"""What may be meant by a name that nobody has, said behind the error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callboard.runtime.bus.base import Bus


@asynccontextmanager
async def guessing(bus: Bus, kind: str) -> AsyncIterator[None]:
    """Let the error of a block that found nobody to host ``kind`` name the actor types that come nearest.

    Raises:
        NoHostError: As the block does.
    """
    from callboard.runtime.errors import NoHostError

    try:
        yield
    except NoHostError as error:
        message = f"{error}{await type_hint(bus, kind)}"
        raise NoHostError(message) from error


async def type_hint(bus: Bus, kind: str) -> str:
    """Return ``; did you mean …?`` for an actor type, "" when it is known or nothing is like it."""
    from callboard.runtime import census
    from callboard.runtime.near import hint

    return hint(kind, await census.near_types(bus, kind))
