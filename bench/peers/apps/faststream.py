"""FastStream's side on JetStream: a pull subscriber that acks when the handler has returned. It stores no results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from faststream import AckPolicy, FastStream  # type: ignore[import-not-found]
from faststream.nats import JStream, NatsBroker, PullSub  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

broker = NatsBroker(TOLD["url"], logger=None)
app = FastStream(broker, logger=None)
stream = JStream("tasks", subjects=["noop", "slow"])


def _subscriber(subject: str) -> Any:  # noqa: ANN401 - a decorator
    return broker.subscriber(
        subject,
        stream=stream,
        durable=subject,
        pull_sub=PullSub(batch_size=64, timeout=1.0),
        max_workers=64,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )


@_subscriber("noop")  # type: ignore[misc, untyped-decorator, unused-ignore]
async def noop(n: int, text: str) -> None:  # noqa: ARG001 - decoded as everybody's
    note(n)


@_subscriber("slow")  # type: ignore[misc, untyped-decorator, unused-ignore]
async def slow(n: int, seconds: float) -> None:
    note(n, BEGAN)
    await asyncio.sleep(seconds)
    note(n, ENDED)


class Sender:
    """Publishes to the stream and awaits its acknowledgement, 64 at once."""

    async def open(self) -> None:
        # a worker makes stream and consumers when it starts; here the sender comes first
        connection = await broker.connect()
        context = connection.jetstream()
        await context.add_stream(name="tasks", subjects=["noop", "slow"])

    async def burst(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 64):
            part = numbers[start : start + 64]
            await asyncio.gather(
                *(broker.publish({"n": n, "text": TEXT}, "noop", stream="tasks", timeout=30) for n in part)
            )

    async def single(self, n: int) -> bool:
        await broker.publish({"n": n, "text": TEXT}, "noop", stream="tasks", timeout=30)
        return False

    async def slow(self, n: int, seconds: float) -> None:
        await broker.publish({"n": n, "seconds": seconds}, "slow", stream="tasks", timeout=30)

    async def close(self) -> None:
        await broker.stop()


if __name__ == "__main__":
    send(Sender())
