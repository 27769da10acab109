"""The lease keeper's thread reads the load of actors while the loop makes and forgets some."""

from __future__ import annotations

from typing import Any

import pytest

from callboard.runtime.actor.load import _busy
from callboard.runtime.actor.partition import Partition


class Restless:
    """An actor in memory; whenever it is looked at, another one comes into memory."""

    turn = None

    def __init__(self, activations: dict[str, Any]) -> None:
        self._activations = activations

    @property
    def mailbox(self) -> Restless:
        self._activations[f"k{len(self._activations)}"] = Restless({})
        return self

    first_seq = 1
    depth = 1


@pytest.mark.parametrize("read", [lambda p: p.waiting, lambda p: p.depth, lambda p: p.running, lambda p: _busy([p])])
def test_actors_may_come_into_memory_while_they_are_counted(read: Any) -> None:  # noqa: ANN401 - four kinds of answer
    partition = Partition.__new__(Partition)
    partition.activations = {}
    for key in ("a", "b"):
        partition.activations[key] = Restless(partition.activations)  # type: ignore[assignment]
    assert read(partition) is not None
