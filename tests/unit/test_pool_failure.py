"""A worker that cannot take in what arrives must not live on in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from callboard.runtime.capability import capability
from callboard.runtime.lanes import Lanes
from tests.support.world import open_world


async def test_an_error_while_taking_in_deliveries_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @capability("any")
    async def anything() -> None: ...

    def broken(*_: object, **__: object) -> None:
        message = "broken on purpose"
        raise ZeroDivisionError(message)

    async with open_world("memory", tmp_path) as world:
        worker = await world.start(anything)
        monkeypatch.setattr(Lanes, "delivered", broken)
        await world.client.submit(anything)
        with pytest.raises(ZeroDivisionError):
            await worker.task
        world.workers.remove(worker)
