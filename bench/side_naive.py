"""The naive side: what somebody writes with nats-py and its documentation. No lease keeper, no retry, no dead letter.

It is spared decoding and encoding: the payload goes back as the result, as it is.
"""

from __future__ import annotations

import asyncio

import nats
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import AckPolicy, ConsumerConfig

from bench.job import Job, Meter, Report, main, until_empty


async def work(job: Job) -> Report:
    """Fetch, publish the result and wait for its ack, ack the task; ``concurrency`` of each in flight."""
    client = await nats.connect(job.url)
    js = client.jetstream(timeout=30)
    config = ConsumerConfig(
        durable_name=job.capability, ack_policy=AckPolicy.EXPLICIT, ack_wait=30, max_ack_pending=4096
    )
    subscription = await js.pull_subscribe(
        f"cb.task.{job.capability}", durable=job.capability, stream="CB_WORK", config=config
    )
    done = 0

    async def one(message: Msg, number: int) -> None:
        await js.publish(f"cb.result.{job.capability}.{number}", message.data)
        await message.ack()

    async def take() -> None:
        nonlocal done
        try:
            messages = await subscription.fetch(min(job.concurrency, job.count - done), timeout=2)
        except NatsTimeoutError:
            return
        await asyncio.gather(*(one(message, done + index) for index, message in enumerate(messages)))
        done += len(messages)

    async def left() -> int:
        info = await js.consumer_info("CB_WORK", job.capability)
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    meter = Meter()
    while done < job.count:
        await take()
    await until_empty(left)
    report = meter.report(done)
    await client.close()
    return report


if __name__ == "__main__":
    main(work, Job)
