"""Row m: what 10,000 idle actors cost the broker, and how soon one that was forgotten answers again."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from bench.broker import Broker
from bench.cast import CAST, Add
from bench.hosts import Hosts, hosting
from bench.options import Options
from bench.table import Row, Side
from callboard.runtime import subjects
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus

ACTORS = 10_000
COLD = 200
SLEEPER = "bench-sleeper"
TEXT = "x" * 245
_AT_ONCE = 100
_MB = 1_000_000
_HEAP = re.compile(rb"# HeapAlloc = (\d+)")


async def rows(options: Options, mode: str) -> list[Row]:
    """Measure on a server of its own: what others left in its memory would blur the figures."""
    number = 500 if options.is_quick else ACTORS
    cold = 20 if options.is_quick else COLD
    async with (
        Broker("always" if mode == "always" else "default", options.folder, more="prof_port: -1\n") as broker,
        hosting(broker.url) as hosts,
        broker.bus() as bus,
    ):
        await hosts.settled(bus, types=len(CAST))
        # the first asks make the server's own tables; they are not the idle actors'
        await _wake(bus, range(-200, 0))
        before = await _look(broker, bus)
        await _wake(bus, range(number))
        await _asleep(hosts, bus)
        after = await _look(broker, bus)
        warm = await _times(bus, [0] * cold)
        took = await _times(bus, range(1, cold + 1))
    grown = [late - early for late, early in zip(after, before, strict=True)]
    shared: dict[str, Any] = {"key": "m", "mode": mode, "concurrency": f"{number:,}"}
    return [
        Row(what="idle actors: consumers more", unit="", ours=_one(grown[0]), goal="0", **shared),
        Row(
            what="idle actors: broker's live memory more",
            unit="MB",
            ours=_one(grown[1] / _MB),
            note=f"{grown[1] / number / 1000:.2f} KB each; resident {grown[2] / _MB:+.1f} MB",
            goal="5 MB at most",
            **shared,
        ),
        *(
            Row(
                what=f"ask to a forgotten actor, {name}",
                unit="µs",
                ours=_one(figure(took)),
                base=Side(name="in memory", figures=[figure(warm)]),
                is_less_better=True,
                **{**shared, "concurrency": "1"},
            )
            for name, figure in (("p50", statistics.median), ("p99", _p99))
        ),
    ]


async def _look(broker: Broker, bus: Bus) -> tuple[int, float, float]:
    """Return consumers, live bytes and resident bytes of the server, its garbage collected."""
    info = await bus.stream_info(subjects.ACTORS)
    text = b""
    for _ in range(2):
        text = await asyncio.to_thread(_heap, broker.ports["profile"][0])
    found = _HEAP.search(text)
    return (info.consumers if info else 0), float(found[1]) if found else 0.0, float(broker.memory_bytes)


def _heap(address: str) -> bytes:
    with urllib.request.urlopen(f"{address}/debug/pprof/heap?gc=1&debug=1", timeout=30) as answer:
        return bytes(answer.read())


async def _wake(bus: Bus, numbers: Sequence[int]) -> None:
    """Have each of them handle one mail."""
    waiting = iter(numbers)

    async def caller() -> None:
        for number in waiting:
            await ActorRef(bus, f"{SLEEPER}/s{number}").ask(Add(TEXT), timeout_s=60)

    await asyncio.gather(*(caller() for _ in range(_AT_ONCE)))


async def _asleep(hosts: Hosts, bus: Bus) -> None:
    while any(facts.active for facts in await hosts.facts(bus)):
        await asyncio.sleep(0.2)


async def _times(bus: Bus, numbers: Sequence[int]) -> list[float]:
    took = []
    for number in numbers:
        began = time.perf_counter()
        await ActorRef(bus, f"{SLEEPER}/s{number}").ask(Add(TEXT))
        took.append((time.perf_counter() - began) * 1e6)
    return took


def _one(figure: float) -> Side:
    return Side(name="ours", figures=[figure])


def _p99(figures: Sequence[float]) -> float:
    return sorted(figures)[len(figures) * 99 // 100]
