"""What a check of the doctor saw."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Level = Literal["ok", "note", "warning", "problem"]


class Finding(Struct, frozen=True, kw_only=True):
    """What one check saw.

    Attributes:
        check: Its stable name.
        level: ``problem`` needs a person now, ``warning`` soon, ``note`` could not be looked at or is for information.
        text: What was seen.
        fix: What to do; empty when there is nothing to do.
    """

    check: str
    level: Level
    text: str
    fix: str = ""


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 worker``, ``2 workers``."""
    return f"{number} {noun}{'s' * (number != 1)}"
