"""What happens inside one call and belongs into its record: models passed over, an answer from the cache."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

from callboard.agents.errors import ModelError
from callboard.agents.llm.record import Switch

_MESSAGE_CHARS = 300


class Notes:
    """Notes on one call.

    Attributes:
        switches: Models that were passed over, in order.
        is_cached: Whether the answer came from a cache.
    """

    __slots__ = ("is_cached", "switches")

    def __init__(self) -> None:
        """Begin with none."""
        self.switches: list[Switch] = []
        self.is_cached = False


_now: contextvars.ContextVar[Notes | None] = contextvars.ContextVar("callboard_call_notes", default=None)


@contextmanager
def taken() -> Iterator[Notes]:
    """Collect what models below note inside the block."""
    notes = Notes()
    token = _now.set(notes)
    try:
        yield notes
    finally:
        _now.reset(token)


def switched(model: str, error: ModelError | str) -> None:
    """Note that a model was passed over, for an error or a reason (its code). Outside of a call nothing happens."""
    notes = _now.get()
    if notes is None:
        return
    code, text = (error, "") if isinstance(error, str) else (error.code, str(error)[:_MESSAGE_CHARS])
    notes.switches.append(Switch(model=model, code=code, message=text))


def cached() -> None:
    """Note that the answer comes from a cache."""
    notes = _now.get()
    if notes is not None:
        notes.is_cached = True
