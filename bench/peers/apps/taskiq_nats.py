"""taskiq's side on JetStream: a pull broker, results in the object store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nats.js.api import ConsumerConfig
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

broker = PullBasedJetStreamBroker(
    servers=[TOLD["url"]],
    pull_consume_batch=64,
    pull_consume_timeout=1.0,
    # 30 s and 1,000 are the server's defaults, said so that they can be read here
    consumer_config=ConsumerConfig(durable_name="taskiq_durable", ack_wait=30, max_ack_pending=1000),
).with_result_backend(NATSObjectStoreResultBackend(servers=[TOLD["url"]]))


@broker.task(task_name="noop")  # type: ignore[misc, untyped-decorator, unused-ignore]
async def noop(n: int, text: str) -> int:
    note(n)
    return len(text)


@broker.task(task_name="slow")  # type: ignore[misc, untyped-decorator, unused-ignore]
async def slow(n: int, seconds: float) -> int:
    note(n, BEGAN)
    await asyncio.sleep(seconds)
    note(n, ENDED)
    return n


class Sender:
    """Sends with ``kiq``, 64 at once."""

    async def open(self) -> None:
        await broker.startup()

    async def burst(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 64):
            await asyncio.gather(*(noop.kiq(n, TEXT) for n in numbers[start : start + 64]))

    async def single(self, n: int) -> bool:
        task = await noop.kiq(n, TEXT)
        # its default looks every 0.2 s
        await task.wait_result(check_interval=0.001, timeout=30)
        return True

    async def slow(self, n: int, seconds: float) -> None:
        await slow.kiq(n, seconds)

    async def close(self) -> None:
        await broker.shutdown()


if __name__ == "__main__":
    send(Sender())
