"""A worker that cannot take in what arrives must not live on in silence."""

from __future__ import annotations

import asyncio
import gc
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


async def test_a_worker_that_goes_down_with_a_task_in_it_drops_no_coroutine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    begun = asyncio.Event()

    @capability("any", concurrency=2)
    async def anything() -> None:
        begun.set()
        await asyncio.Event().wait()

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with open_world("memory", tmp_path) as world:
        worker = await world.start(anything)
        await world.client.submit(anything)
        await asyncio.wait_for(begun.wait(), timeout=5)
        monkeypatch.setattr(Lanes, "delivered", broken)
        await world.client.submit(anything)
        with pytest.raises(ZeroDivisionError):
            await worker.task
        world.workers.remove(worker)
    gc.collect()
    assert not [str(each.message) for each in recwarn if "never awaited" in str(each.message)]
