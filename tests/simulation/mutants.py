"""The product with one protection taken away, for as long as a ``with`` lasts. Each must be caught by some seed."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from callboard.runtime import pool
from callboard.runtime.doubt import Doubt
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.questions import Questions
from callboard.runtime.settle import Settler
from callboard.runtime.slot import Slot

TASK_HOMES: Sequence[type | types.ModuleType] = (pool, Doubt, LeaseKeeper, Questions, Settler, Slot)


@contextmanager
def broken(breakage: Callable[[], None], homes: Sequence[type | types.ModuleType]) -> Iterator[None]:
    """Apply ``breakage``, which patches attributes of ``homes``, and undo it at the end."""
    before = [dict(vars(home)) for home in homes]
    try:
        breakage()
        yield
    finally:
        for home, kept in zip(homes, before, strict=True):
            for name, value in kept.items():
                if vars(home).get(name) is not value:
                    setattr(home, name, value)
