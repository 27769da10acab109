"""arq's side: two functions, the worker's settings, and a sender."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from arq import create_pool  # type: ignore[import-not-found]
from arq.connections import ArqRedis, RedisSettings  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

_redis = RedisSettings.from_dsn(TOLD["url"])


async def noop(context: dict[str, Any], n: int, text: str) -> int:  # noqa: ARG001 - arq hands it to all
    note(n)
    return len(text)


async def slow(context: dict[str, Any], n: int, seconds: float) -> int:  # noqa: ARG001 - arq hands it to all
    note(n, BEGAN)
    await asyncio.sleep(seconds)
    note(n, ENDED)
    return n


class WorkerSettings:
    """What its command line reads."""

    functions: ClassVar[list[Any]] = [noop, slow]
    redis_settings = _redis
    max_jobs = 64
    # a line for every job goes to the log otherwise
    log_results = False
    job_timeout = TOLD.get("job_timeout_s", 300)
    poll_delay = TOLD.get("poll_s", 0.5)


class Sender:
    """Sends with ``enqueue_job``, 64 at once."""

    def __init__(self) -> None:
        self._pool: ArqRedis

    async def open(self) -> None:
        self._pool = await create_pool(_redis)

    async def burst(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 64):
            await asyncio.gather(*(self._pool.enqueue_job("noop", n, TEXT) for n in numbers[start : start + 64]))

    async def single(self, n: int) -> bool:
        job = await self._pool.enqueue_job("noop", n, TEXT)
        # its default looks every 0.5 s
        await job.result(timeout=30, poll_delay=0.001)
        return True

    async def slow(self, n: int, seconds: float) -> None:
        await self._pool.enqueue_job("slow", n, seconds)

    async def close(self) -> None:
        await self._pool.aclose()


if __name__ == "__main__":
    send(Sender())
