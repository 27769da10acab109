"""What may pass is outlasted, what will not is raised."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from callboard.runtime.errors import BusTimeoutError, NotFoundError
from callboard.runtime.patience import outlast
from callboard.runtime.testing import FakeClock


async def _run(call: asyncio.Task[object], clock: FakeClock, seconds: float) -> None:
    for _ in range(round(seconds / 0.05)):
        await clock.advance(0.05)
        if call.done():
            return


async def test_silence_is_outlasted() -> None:
    clock, tries = FakeClock(), count(1)

    async def call() -> int:
        number = next(tries)
        if number < 4:
            text = "no answer"
            raise BusTimeoutError(text)
        return number

    task: asyncio.Task[object] = asyncio.ensure_future(outlast(call, clock=clock, within_s=30))
    await _run(task, clock, 5)
    assert await task == 4


@pytest.mark.parametrize("error", [BusTimeoutError("no answer"), NotFoundError("no such stream")])
async def test_it_ends_at_its_bound_and_at_once_for_what_does_not_pass(error: Exception) -> None:
    clock, tries = FakeClock(), count(1)
    last = 0

    async def call() -> int:
        nonlocal last
        last = next(tries)
        raise error

    task: asyncio.Task[object] = asyncio.ensure_future(outlast(call, clock=clock, within_s=3))
    await _run(task, clock, 10)
    assert task.done()
    with pytest.raises(type(error)):
        await task
    assert (last == 1) is isinstance(error, NotFoundError)
