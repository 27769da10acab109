"""Row r: one group of worker processes scaled 1, 2, 4, 8 by order while it works, and drained under load."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from bench.broker import Broker
from bench.job import ROOT, environment
from bench.options import Options
from bench.side_nap import NAP_S, SLOTS
from bench.table import Row, Side
from callboard.runtime import record, roster, subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.client import Client
from callboard.runtime.control import Order

NAME = "bench-nap"
PROCESSES = (1, 2, 4, 8)
_WITHIN_S = 120.0


async def rows(broker: Broker, options: Options) -> list[Row]:
    """Measure the rate at each size, then the drain of the largest to none with work waiting."""
    seconds = 1.0 if options.is_quick else options.seconds
    sizes = PROCESSES[:2] if options.is_quick else PROCESSES
    found: list[Row] = []
    async with _group(broker.url) as name, broker.bus() as bus:
        base: Side | None = None
        for size in sizes:
            await _resize(bus, name, size)
            figures = [await _rate(bus, size, seconds) for _ in range(options.rounds)]
            side = Side(name="ours", figures=figures)
            ideal = size * SLOTS / NAP_S
            note = f"{side.median / ideal:.0%} of the {ideal:,.0f} that the slots allow"
            found.append(_row(broker, "tasks/s of 50 ms each", size, "tasks/s", side, note=note, base=base))
            base = base or Side(name="one process", figures=figures)
        found += await _drain(broker, bus, name, sizes[-1], seconds)
    return found


async def _rate(bus: Bus, size: int, seconds: float) -> float:
    """Return tasks/s from the first submit to the last record."""
    count = max(SLOTS * 2, int(size * SLOTS / NAP_S * seconds))
    before = await _recorded(bus)
    began_s = time.monotonic()
    await Client(bus).submit_many(NAME, list(range(count)))
    await _until(lambda: _has(bus, before + count), "all records")
    return count / (time.monotonic() - began_s)


async def _drain(broker: Broker, bus: Bus, name: str, size: int, seconds: float) -> list[Row]:
    """Scale to none in the middle of a load, then up again; count what was lost or ran twice."""
    count = int(size * SLOTS / NAP_S * seconds * 2)
    before = await _recorded(bus)
    await Client(bus).submit_many(NAME, list(range(count)))
    await _until(lambda: _has(bus, before + count // 4), "a quarter of the records")
    began_s = time.monotonic()
    await roster.order(bus, name, Order(op="scale", processes=0))
    await _until(lambda: _processes(bus, name, 0), "no process")
    took_s = time.monotonic() - began_s
    waiting = before + count - await _recorded(bus)
    await _resize(bus, name, size)
    await _until(lambda: _has(bus, before + count), "the rest of the records")
    again = 0
    async for stored in bus.read(subjects.LEDGER, subjects=(f"cb.result.{NAME}.*",)):
        finished = record.decode_task(stored.data)
        again += finished.attempts - 1
    lost = before + count - await _recorded(bus)
    took = Side(name="ours", figures=[took_s * 1000])
    return [
        _row(broker, f"{size} processes to none under load", size, "ms", took, note=f"{waiting} tasks left waiting"),
        _row(broker, "lost or run again by it", size, "", Side(name="ours", figures=[float(lost + again)]), goal="0"),
    ]


def _row(broker: Broker, what: str, size: int, unit: str, ours: Side, **more: Any) -> Row:  # noqa: ANN401 - fields
    return Row(key="s", what=what, mode=broker.mode, concurrency=f"{size} x {SLOTS}", unit=unit, ours=ours, **more)


async def _recorded(bus: Bus) -> int:
    return len(await bus.subject_counts(subjects.LEDGER, f"cb.result.{NAME}.*"))


async def _has(bus: Bus, count: int) -> bool:
    return await _recorded(bus) >= count


async def _resize(bus: Bus, name: str, size: int) -> None:
    await roster.order(bus, name, Order(op="scale", processes=size))
    await _until(lambda: _processes(bus, name, size), f"{size} processes")


async def _processes(bus: Bus, name: str, size: int) -> bool:
    heard = await roster.heard(bus, until=lambda found: name in found.groups)
    group = heard.groups.get(name)
    return group is not None and [each.status for each in group.processes] == ["ready"] * size


async def _until(condition: Any, what: str) -> None:  # noqa: ANN401 - an async function
    give_up_s = time.monotonic() + _WITHIN_S
    while not await condition():
        if time.monotonic() > give_up_s:
            message = f"{what}: not within {_WITHIN_S:g} s"
            raise TimeoutError(message)
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _group(url: str) -> AsyncIterator[str]:
    """Start a group and give its id; it ends with the block."""
    command = [sys.executable, "-m", "callboard", "worker", "start", "bench.side_nap", "--processes", "2", "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, "--log-level", "error", "--nats", url, stdin=DEVNULL, stdout=PIPE, cwd=ROOT, env=environment()
    )
    assert process.stdout is not None
    try:
        said = msgspec.json.decode(await asyncio.wait_for(process.stdout.readline(), _WITHIN_S))
        for _ in range(2):
            await asyncio.wait_for(process.stdout.readline(), _WITHIN_S)
        reading = asyncio.create_task(process.stdout.read(), name="bench-group-out")
        yield said["group"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        reading.cancel()
