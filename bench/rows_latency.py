"""Rows d and g: how long one task takes, and how long until a dead worker's task runs again."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import nats
from nats.aio.client import Client as Plain

from bench.broker import Broker
from bench.job import started
from bench.options import Options
from bench.side_serve import BEGAN, ECHO
from bench.table import Row, Side
from callboard.runtime.client import Client

CAPABILITY = "bench-serve"
KILLS = 5
_LIMIT_S = 60.0


async def latency(broker: Broker, options: Options) -> list[Row]:
    """Row d: core request-reply and whole tasks in turn, one at a time."""
    count = 50 if options.is_quick else 300
    asked, whole = Side(name="core request-reply"), Side(name="ours")
    starts: list[float] = []
    plain = await nats.connect(broker.url)
    async with _serving(broker), broker.bus() as bus:
        client = Client(bus)
        for _ in range(20):
            await client.call(CAPABILITY, {"text": "warm"}, timeout_s=30)
        for _ in range(options.rounds):
            asked.figures.append(_p50(await _ask(plain, count)) * 1e6)
            took, began = await _whole(client, count)
            whole.figures.append(_p50(took) * 1e6)
            starts += began
    await plain.close()
    starts.sort()
    return [
        Row(
            key="d",
            what="task, submit to result, p50",
            mode=broker.mode,
            concurrency="1",
            unit="µs",
            ours=whole,
            base=asked,
            is_less_better=True,
        ),
        *(
            Row(
                key="d",
                what=f"task, submit to handler, {name}",
                mode=broker.mode,
                concurrency="1",
                unit="µs",
                ours=Side(name="ours", figures=[starts[int(len(starts) * share)] * 1e6]),
            )
            for name, share in (("p50", 0.5), ("p99", 0.99))
        ),
    ]


async def recovery(broker: Broker, options: Options) -> list[Row]:
    """Row g: kill -9 of the worker that runs a task, seconds until another one runs it."""
    kills = 1 if options.is_quick else KILLS
    took: list[float] = []
    plain = await nats.connect(broker.url)
    began = await plain.subscribe(BEGAN)
    async with broker.bus() as bus, _serving(broker), _spares(broker, kills):
        client = Client(bus)
        for number in range(kills):
            await client.submit(f"{CAPABILITY}-linger", {"text": f"t{number}"})
            first = int((await began.next_msg(_LIMIT_S)).data.split()[1])
            os.kill(first, signal.SIGKILL)
            killed_s = time.monotonic()
            await began.next_msg(_LIMIT_S)
            took.append(time.monotonic() - killed_s)
            # the second run stays where it is: its slot is one of eight
    await plain.close()
    took.sort()
    return [
        Row(
            key="g",
            what=f"kill -9 to second start, {name} of {kills}",
            mode=broker.mode,
            concurrency="1",
            unit="s",
            ours=Side(name="ours", figures=[figure]),
            goal="6 s",
        )
        for name, figure in (("p50", statistics.median(took)), ("max", took[-1]))
    ]


async def _ask(client: Plain, count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await client.request(ECHO, b"x" * 256, timeout=10)
        took.append(time.perf_counter() - began)
    return took


async def _whole(client: Client, count: int) -> tuple[list[float], list[float]]:
    took, starts = [], []
    for _ in range(count):
        sent_ns = time.time_ns()
        began = time.perf_counter()
        started_ns = await client.call(CAPABILITY, {"text": "x" * 245}, timeout_s=30)
        took.append(time.perf_counter() - began)
        starts.append((started_ns - sent_ns) / 1e9)
    return took, starts


def _p50(figures: Sequence[float]) -> float:
    return statistics.median(figures)


@contextlib.asynccontextmanager
async def _spares(broker: Broker, count: int) -> AsyncIterator[None]:
    """Keep enough workers that one is left after every kill."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(_serving(broker))
        yield


def _serving(broker: Broker) -> AbstractAsyncContextManager[Process]:
    return started("bench.side_serve", broker.url, CAPABILITY)
