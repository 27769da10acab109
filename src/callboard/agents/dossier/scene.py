"""What a viewer of the demonstration sees: a picture of the present, and the news that changed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

Event = Literal["starting", "ready", "begun", "asked", "step", "killed", "taken_over", "replaced", "answered"]


class Scene(Struct, kw_only=True):
    """The present. Workers go by letters, in the order in which they were seen.

    Attributes:
        total: Steps of the turn.
        pace_s: How long a step takes at least.
        by: Who filed a step, by its number.
        step: The step that runs, 0 for none.
        runner: Who runs it.
        owner: Who owns the actor's partition, by the broker's record.
        epoch: Of that ownership.
        waiting: Questions that wait behind the turn.
        kills: Steps in whose middle a worker was killed.
        killed_at_s: When the last kill was, by the machine's monotonic clock, until another worker goes on.
    """

    total: int = 0
    pace_s: float = 0.0
    by: dict[int, str] = {}
    step: int = 0
    runner: str = ""
    owner: str = ""
    epoch: int = 0
    waiting: int = 0
    kills: list[int] = []
    killed_at_s: float | None = None


class News(Struct, frozen=True, kw_only=True):
    """What happened.

    Attributes:
        event: Its name for programs.
        text: It for people.
        facts: More for programs.
    """

    event: Event
    text: str
    facts: Mapping[str, object] = {}


Tell = Callable[[Scene, News | None], None]
"""Called with each change; None where only the picture changed."""
