"""What happened in a simulated run, in order: the proof that a seed repeats, and what people read after a failure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from msgspec import Struct


class Event(Struct, frozen=True, gc=False):
    """One thing that happened, ``at_s`` virtual seconds after the start, to ``host`` ("" is the broker)."""

    at_s: float
    host: str
    name: str
    detail: str

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.at_s:11.6f} {self.host or '-':<12} {self.name:<14} {self.detail}"


class History:
    """The events of a run. Details must not depend on addresses, process ids or real time."""

    def __init__(self) -> None:
        """Begin empty."""
        self.events: list[Event] = []
        self.is_open = True

    def add(self, at_s: float, host: str, name: str, detail: str = "") -> None:
        """Note an event; ignored once the run is over and being torn down."""
        if self.is_open:
            self.events.append(Event(at_s, host, name, detail))

    def hash(self) -> str:
        """Return the SHA-256 of all of it as hex."""
        return digest(self.events)


def digest(events: Iterable[Event]) -> str:
    """Return the SHA-256 of ``events`` as hex."""
    made = hashlib.sha256()
    for event in events:
        made.update(f"{event.at_s:.9f}\t{event.host}\t{event.name}\t{event.detail}\n".encode())
    return made.hexdigest()
