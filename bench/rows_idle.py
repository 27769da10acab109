"""Row m: what 10,000 idle actors cost the broker, and how soon one that was forgotten answers again."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

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
# of the profile's text: bytes in use and the functions that asked for them
_HEAP = re.compile(rb"# HeapAlloc = (\d+)")
_STACK = re.compile(rb"^\d+: (\d+) \[[^@]*@[^\n]*\n((?:#\t[^\n]*\n)*)", re.MULTILINE)
_BLOCK = b"getMsgBlockBuf"
_AT_REST_MB = 0.1
_LOOKS = 12
_LOOK_EVERY_S = 5.0


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
    grown = after.live_bytes - before.live_bytes
    kept = (after.block_bytes - before.block_bytes) / _MB
    resident = (after.resident_bytes - before.resident_bytes) / _MB
    shared: dict[str, Any] = {"key": "m", "mode": mode, "concurrency": f"{number:,}"}
    return [
        Row(
            what="idle actors: consumers more",
            unit="",
            ours=_one(after.consumers - before.consumers),
            goal="0",
            **shared,
        ),
        Row(
            what="idle actors: broker's live memory more",
            unit="MB",
            ours=_one(grown / _MB),
            note=f"{grown / number / 1000:.2f} KB each; {kept:+.1f} MB of message blocks, {resident:+.1f} MB resident",
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


class Look(Struct, frozen=True, kw_only=True):
    """What the server holds, its garbage collected.

    Attributes:
        live_bytes: Less the blocks of messages that it keeps at hand: those are bounded and come and go.
    """

    consumers: int
    live_bytes: int
    block_bytes: int
    resident_bytes: int


async def _look(broker: Broker, bus: Bus) -> Look:
    """Look at the server once it has let go of what it keeps at hand for some seconds after each write."""
    info = await bus.stream_info(subjects.ACTORS)
    known = _AT_REST_MB * _MB * 1000
    for _ in range(_LOOKS):
        live, blocks = _sizes(await asyncio.to_thread(_heap, broker.ports["profile"][0]))
        if known - live < _AT_REST_MB * _MB:
            break
        known = live
        await asyncio.sleep(_LOOK_EVERY_S)
    return Look(
        consumers=info.consumers if info else 0,
        live_bytes=live - blocks,
        block_bytes=blocks,
        resident_bytes=broker.memory_bytes,
    )


def _sizes(profile: bytes) -> tuple[int, int]:
    """Return the live bytes in a profile of the server's memory, and those of message blocks among them."""
    found = _HEAP.search(profile)
    blocks = sum(int(size) for size, stack in _STACK.findall(profile) if _BLOCK in stack)
    return (int(found[1]) if found else 0), blocks


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
