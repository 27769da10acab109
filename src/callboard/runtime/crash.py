"""Crash points: places where a test makes a worker die on the spot, as ``kill -9`` would, but to the line.

``CALLBOARD_CRASH_AT=<point>[:n]`` ends the process with status 137 when the point is reached for the ``n``-th time
(1 by default). Call sites ask ``if crash.point:`` first, one attribute read when it is unset.

The points, as a task meets them: ``claimed`` (taken, nothing begun), ``before-effect`` (before the handler),
``after-effect`` (the handler returned, no record yet), ``mid-batch`` (of the records written together, one was told
that it stands), ``after-result-puback`` (the record stands), ``before-ack``; and ``in-drain`` (stopping with work under
way). A turn of an actor meets ``before-commit`` (handled, nothing stored), ``after-commit`` (stored, nobody told),
``mid-batch`` and ``before-reply``.
"""

from __future__ import annotations

import os
from typing import Literal

Point = Literal[
    "claimed",
    "before-effect",
    "after-effect",
    "mid-batch",
    "after-result-puback",
    "before-ack",
    "in-drain",
    "before-commit",
    "after-commit",
    "before-reply",
]

VARIABLE = "CALLBOARD_CRASH_AT"
STATUS = 137

# Not a setting: it must work before any setting is read, and nobody may find it in a configuration file.
point, _, _nth = os.environ.get(VARIABLE, "").partition(":")
_left = int(_nth) if _nth.isdigit() else 1


def at(reached: Point) -> None:
    """Die here if this is the point that was asked for."""
    global _left  # noqa: PLW0603 - one process dies once
    if reached == point:
        _left -= 1
        if _left == 0:
            os._exit(STATUS)
