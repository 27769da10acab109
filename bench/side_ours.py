"""Our side: a worker as `callboard worker start` runs it, with its lease keeper, beats, metrics and ledger records."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from bench.job import Job, Meter, Report, main, until, until_empty
from bench.sampler import Sampler
from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.capability import Capability
from callboard.runtime.host import settle_memory
from callboard.runtime.worker import Worker


class Input(Struct):
    """The payload."""

    text: str


async def noop(value: Input) -> bool:
    """Do nothing with the decoded payload."""
    return bool(value.text)


async def work(job: Job) -> Report:
    """Serve the capability until its queue is empty, every record stored and every ack taken."""
    buses: list[Bus] = []

    async def connected(name: str) -> Bus:
        bus = await connect(job.url, name=name)
        buses.append(bus)
        return bus

    worker = Worker([Capability(noop, name=job.capability, concurrency=job.concurrency)], connected)
    serving = asyncio.create_task(worker.run())
    await until(lambda: worker.status == "ready" or serving.done())
    settle_memory()
    if serving.done():
        await serving
    stats = worker.pools[job.capability].stats
    endings = stats.endings

    async def left() -> int:
        pending = 0
        for lane in subjects.LANES:
            info = await buses[0].consumer_info(subjects.WORK, subjects.consumer(job.capability, lane))
            pending += info.pending + info.ack_pending if info else 0
        return pending

    await until(lambda: stats.claimed > 0)
    sampler = Sampler()
    if job.profile:
        sampler.start()
    meter = Meter()
    await until(lambda: endings["completed"] >= job.count or endings["failed"] > 0)
    if endings["completed"] != job.count:
        message = f"not every task was completed once: {endings}"
        raise RuntimeError(message)
    await until_empty(left)
    report = meter.report(job.count, note=_note(worker))
    if job.profile:
        sampler.write(job.profile, tasks=report.tasks)
    worker.stop()
    await serving
    return report


def _note(worker: Worker) -> str:
    """Say what the group commit found: cost of a record by single writes, of a whole batch, and how often each."""
    chooser = worker._committer.chooser  # noqa: SLF001 - nobody else needs to know
    single_us = (chooser.single_s or 0) * 1e6
    batch_us = (chooser.batch_s or 0) * 1e6
    return f"single {single_us:.0f} µs a record, batch {batch_us:.0f} µs"


if __name__ == "__main__":
    main(work, Job)
