"""What a resident actor may use of the worker that it lives in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from msgspec import Struct

from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import Clock
from callboard.runtime.registry.handle import Finder


class Residence(Struct, frozen=True, kw_only=True):
    """Where a resident actor lives; ``self.residence`` from ``on_start`` to ``on_stop``.

    Attributes:
        worker: Name of the worker.
        bus: Its connection.
        clock: Its time.
        client: Finds, picks, asks and calls over that connection.
        epoch: The ownership under which it was started; it grows with every change of host.
        spawn: Starts a task that the worker owns; its failure is logged and concerns nobody else. End it in
            ``on_stop``. None when the worker is going down.
        is_ours: Whether the actor still lives here, asked of the broker when the worker's own beats do not come back:
            a host that stood still for seconds does not know that it was taken over.
        is_moving: Whether this worker gives it to another, which may not have started it yet. Not so after it was lost:
            then that one serves already.
    """

    worker: str
    bus: Bus
    clock: Clock
    client: Finder
    epoch: int
    spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None] | None]
    is_ours: Callable[[], Awaitable[bool]]
    is_moving: Callable[[], bool] = lambda: False
