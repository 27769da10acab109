"""procrastinate's side: two tasks, the periodic one that its documentation advises, and a sender."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from procrastinate import App, JobContext, PsycopgConnector  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

app = App(connector=PsycopgConnector(conninfo=TOLD["url"]))


@app.task(name="noop")  # type: ignore[misc, untyped-decorator, unused-ignore]
async def noop(n: int, text: str) -> int:
    note(n)
    return len(text)


@app.task(name="slow")  # type: ignore[misc, untyped-decorator, unused-ignore]
async def slow(n: int, seconds: float) -> int:
    note(n, BEGAN)
    await asyncio.sleep(seconds)
    note(n, ENDED)
    return n


@app.periodic(cron=TOLD.get("cron", "*/10 * * * *"))  # type: ignore[misc, untyped-decorator, unused-ignore]
@app.task(name="retry_stalled", queueing_lock="retry_stalled", pass_context=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
async def retry_stalled(context: JobContext, timestamp: int) -> None:  # noqa: ARG001 - handed to periodic tasks
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


class Sender:
    """Sends with ``defer_async`` and, many at once, ``batch_defer_async``."""

    async def open(self) -> None:
        await app.open_async()
        await app.schema_manager.apply_schema_async()

    async def burst(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 500):
            part = numbers[start : start + 500]
            await noop.batch_defer_async(*({"n": n, "text": TEXT} for n in part))

    async def single(self, n: int) -> bool:
        await noop.defer_async(n=n, text=TEXT)
        return False

    async def slow(self, n: int, seconds: float) -> None:
        await slow.defer_async(n=n, seconds=seconds)

    async def close(self) -> None:
        await app.close_async()


if __name__ == "__main__":
    send(Sender())
