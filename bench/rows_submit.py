"""Row c: putting tasks into the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import nats
from nats.js import JetStreamContext

from bench.broker import PAYLOAD, Broker
from bench.options import Options
from bench.table import Row, Side
from callboard.runtime.bus.base import PubAck, Write
from callboard.runtime.client import Client, TaskHandle

IN_FLIGHT = 256
BATCHES = 2000
SUBJECT = "cb.task.bench"

Way = Callable[[int], Awaitable[None]]


async def rows(broker: Broker, options: Options) -> list[Row]:
    """Measure the ways of submitting, ours and nats-py's taking turns."""
    plain = await nats.connect(broker.url)
    js = plain.jetstream(timeout=30, publish_async_max_pending=IN_FLIGHT)
    async with broker.bus() as bus:
        client = Client(bus)

        async def pipelined(count: int) -> None:
            writes = [Write(SUBJECT, PAYLOAD)] * IN_FLIGHT
            for _ in range(count // IN_FLIGHT):
                answers = await bus.store_many(writes, timeout_s=30)
                assert all(isinstance(answer, PubAck) for answer in answers)

        async def batched(count: int) -> None:
            for start in range(0, count, BATCHES):
                handles = await client.submit_many("bench", [PAYLOAD] * min(BATCHES, count - start))
                assert all(isinstance(handle, TaskHandle) for handle in handles)

        async def publish_async(count: int) -> None:
            await _publish_async(js, count)

        async def awaited(count: int) -> None:
            for _ in range(count):
                await js.publish(SUBJECT, PAYLOAD)

        async def awaited_32(count: int) -> None:
            await asyncio.gather(*(awaited(count // 32) for _ in range(32)))

        compare = _Comparison(broker, options)

        async def measure(what: str, way: Way, base: Way, name: str, goal: str = "") -> Row:
            in_flight = IN_FLIGHT if way is pipelined else BATCHES
            return await compare.row(what, way, base, in_flight=in_flight, name=name, goal=goal)

        if broker.mode == "default":
            found = [
                await measure("submit, pipelined", pipelined, publish_async, "publish_async", "1.5x"),
                await measure("submit_many", batched, publish_async, "publish_async"),
            ]
        else:
            found = [
                await measure("submit_many", batched, awaited, "awaited, 1 in flight", "3x"),
                await measure("submit_many", batched, awaited_32, "awaited, 32 in flight", "3x"),
                await measure("submit_many", batched, publish_async, "publish_async"),
            ]
    await plain.close()
    return found


async def _publish_async(js: JetStreamContext, count: int) -> None:
    futures = [await js.publish_async(SUBJECT, PAYLOAD) for _ in range(count)]
    await asyncio.gather(*futures)


class _Comparison:
    """Runs two ways in turn, each as long as asked for."""

    def __init__(self, broker: Broker, options: Options) -> None:
        self._broker = broker
        self._options = options

    async def row(self, what: str, ours: Way, base: Way, *, in_flight: int, name: str, goal: str = "") -> Row:
        """Measure one pair."""
        sides = Side(name="ours"), Side(name=name)
        sizes = [await self._size(way) for way in (ours, base)]
        for _ in range(self._options.rounds):
            for side, way, size in zip(sides, (ours, base), sizes, strict=True):
                await self._broker.reset()
                side.figures.append(await _rate(way, size))
        return Row(
            key="c",
            what=what,
            mode=self._broker.mode,
            concurrency=str(in_flight),
            unit="/s",
            ours=sides[0],
            base=sides[1],
            goal=goal,
        )

    async def _size(self, way: Way) -> int:
        await self._broker.reset()
        return max(BATCHES, int(await _rate(way, BATCHES) * self._options.seconds) // BATCHES * BATCHES)


async def _rate(way: Way, count: int) -> float:
    began = time.perf_counter()
    await way(count)
    return count / (time.perf_counter() - began)
