"""The bare side: our bus alone takes each task and acks it, no handler and no record: a ceiling for both others."""

from __future__ import annotations

import asyncio

from bench.job import Job, Meter, Report, main, until_empty
from callboard.runtime import subjects
from callboard.runtime.bus.base import Delivery
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.topology import task_consumers
from callboard.runtime.config import WorkSettings


async def work(job: Job) -> Report:
    """Ack whatever has come, all at once, and ask for as much again."""
    bus = await connect(job.url, name="bare")
    consumer = next(c for c in task_consumers(job.capability, WorkSettings()) if c.name.endswith("-normal"))
    await bus.create_consumer(subjects.WORK, consumer)
    tokens: list[str] = []
    came = asyncio.Event()

    def sink(delivery: Delivery) -> None:
        tokens.append(delivery.token)
        came.set()

    async def left() -> int:
        info = await bus.consumer_info(subjects.WORK, consumer.name)
        return info.pending + info.ack_pending if info else 0

    pull = await bus.pull(subjects.WORK, consumer.name, sink)
    done = 0
    meter = Meter()
    pull.grant(job.concurrency)
    while done < job.count:
        await came.wait()
        came.clear()
        taken, tokens[:] = tokens[:], []
        await bus.ack(taken)
        pull.grant(len(taken))
        done += len(taken)
    await until_empty(left)
    report = meter.report(done)
    await pull.close()
    await bus.close()
    return report


if __name__ == "__main__":
    main(work, Job)
