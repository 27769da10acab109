"""Wait for an end that must come, whoever loses patience."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def settled(task: asyncio.Task[T]) -> T:
    """Return what a task returns. Cancelled meanwhile, wait on, and pass the cancellation on when it has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
