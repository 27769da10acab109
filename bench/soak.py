"""Soak: a million tasks, and turns beside them, on one server and two workers; does anything grow?

``python -m bench.soak --tasks 1000000 --turns 50000 --minutes 30``. What is done with stays in the streams for
``--keep`` seconds only, so that after the warm-up as much goes as comes and whatever still grows is held by mistake.
Ends with status 1 when memory surely grows by more than the limit, or a task or a turn is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from bench.broker import MODES, Broker, Mode
from bench.job import started
from bench.side_soak import CAPABILITY, READINGS, TYPE, Reading, Side
from bench.slope import Slope, fit
from callboard.runtime import subjects
from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError

NAMES = ("w1", "w2")
# A dict entry forgotten for each task costs some 100 bytes; noise of a run of minutes stays below a fifth of that.
LIMIT_BYTES_A_TASK = 20.0
CHUNK = 500
MOST_WAITING = 4000
KEYS = 2000
TEXT = "x" * 200
SAMPLE_EVERY_S = 1.0
END_S = 120.0


class Options(Struct, frozen=True, kw_only=True):
    """Settings of a run.

    Attributes:
        minutes: When to stop feeding, whatever was done until then.
        keep_s: How long what is done with stays in the streams.
        warm_up_s: Before slopes are taken.
        rate: Tasks a second that are fed at most, 0 for as many as are done. With a steady rate the streams hold the
            same throughout, and so does the server.
        leak_bytes: A control: the workers keep so much of each task for ever.
    """

    tasks: int = 1_000_000
    turns: int = 50_000
    minutes: float = 60.0
    keep_s: float = 60.0
    warm_up_s: float = 120.0
    rate: float = 0.0
    mode: Mode = "default"
    leak_bytes: int = 0
    folder: Path | None = None


class Sample(Struct, frozen=True, kw_only=True):
    """One look at everything."""

    at_s: float
    ended: int
    turns: int
    server_rss: int
    server_files: int
    workers: list[Reading]
    stream_bytes: dict[str, int]


class Soak:
    """A run: feeds, looks, and keeps what it saw."""

    def __init__(self, broker: Broker, bus: Bus, options: Options) -> None:
        self.samples: list[Sample] = []
        self.fed = self.told = 0
        self._broker = broker
        self._bus = bus
        self._options = options
        self._began_s = time.monotonic()

    async def run(self) -> None:
        """Feed everything, or until the time is over, and wait for the end of what was fed."""
        looker = asyncio.create_task(self._look_on(), name="soak-look")
        try:
            give_up_s = self._began_s + self._options.minutes * 60
            while self.fed < self._options.tasks and time.monotonic() < give_up_s:
                await self._feed()
            give_up_s = time.monotonic() + END_S
            while not self.is_complete and time.monotonic() < give_up_s:
                await asyncio.sleep(0.2)
        finally:
            looker.cancel()

    @property
    def is_complete(self) -> bool:
        """Whether all that was fed is done, each once."""
        last = self.samples[-1] if self.samples else None
        return last is not None and (last.ended, last.turns) == (self.fed, self.told)

    async def _feed(self) -> None:
        last = self.samples[-1] if self.samples else None
        ended, turns = (last.ended, last.turns) if last is not None else (0, 0)
        due = self._options.rate * (time.monotonic() - self._began_s) if self._options.rate else math.inf
        if self.fed >= due or self.fed - ended > MOST_WAITING * 4 or self.told - turns > MOST_WAITING:
            # look again before more is put in; a look may be a second old
            await asyncio.sleep(0.05)
            return
        info = await self._bus.stream_info(topology.WORK)
        if info is not None and info.messages > MOST_WAITING:
            await asyncio.sleep(0.05)
            return
        count = min(CHUNK, self._options.tasks - self.fed)
        writes = [_task(self.fed + number) for number in range(count)]
        turns_now = self._options.turns * (self.fed + count) // self._options.tasks - self.told
        writes += [_mail(self.told + number) for number in range(turns_now)]
        for answer in await self._bus.store_many(writes, timeout_s=30):
            if isinstance(answer, BusError):
                raise answer
        self.fed += count
        self.told += turns_now

    async def _look_on(self) -> None:
        while True:
            with contextlib.suppress(BusError):
                # one that is busy answers the next time
                self.samples.append(await self._look())
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _look(self) -> Sample:
        answers = [await self._bus.request(f"{READINGS}.{name}", timeout_s=5) for name in NAMES]
        workers = [msgspec.json.decode(answer.data, type=Reading) for answer in answers]
        streams = {}
        for name in (topology.WORK, topology.LEDGER, topology.ACTORS, topology.AUDIT, topology.DEAD):
            info = await self._bus.stream_info(name)
            streams[name] = info.size_bytes if info is not None else 0
        return Sample(
            at_s=time.monotonic() - self._began_s,
            ended=sum(worker.ended for worker in workers),
            turns=sum(worker.turns for worker in workers),
            server_rss=self._broker.memory_bytes,
            server_files=self._broker.open_files,
            workers=workers,
            stream_bytes=streams,
        )


class Line(Struct, frozen=True, kw_only=True):
    """One quantity of the report; ``is_memory`` ones are held to the limit."""

    what: str
    slope: Slope
    unit: str = "bytes"
    is_memory: bool = False

    @property
    def grows(self) -> bool:
        """Whether it is memory that surely grows faster than the limit."""
        return self.is_memory and self.slope.is_above(LIMIT_BYTES_A_TASK)

    def text(self) -> str:
        """Return the line as a person reads it: the mean, and the change with 100,000 tasks."""
        scale, unit = (1 << 20, "MB") if self.unit == "bytes" else (1, "")
        mean, per, error = (x / scale for x in (self.slope.mean, self.slope.per_one * 1e5, self.slope.error * 1e5))
        verdict = "GROWS" if self.grows else ""
        return f"{self.what:<22}{mean:>10.2f} {unit:<3}{per:>+12.3f} ±{2 * error:<10.3f}{verdict}"


def lines(samples: Sequence[Sample]) -> list[Line]:
    """Return the slope of every quantity over tasks done."""

    def line(what: str, read: Callable[[Sample], float], unit: str = "bytes", *, is_memory: bool = False) -> Line:
        points = [(float(sample.ended), float(read(sample))) for sample in samples]
        return Line(what=what, slope=fit(points), unit=unit, is_memory=is_memory)

    found = []
    for place, name in enumerate(NAMES):
        found += [
            line(f"{name} memory", lambda s, n=place: s.workers[n].rss_bytes, is_memory=True),  # type: ignore[misc]
            line(f"{name} open files", lambda s, n=place: s.workers[n].open_files, ""),  # type: ignore[misc]
            line(f"{name} asyncio tasks", lambda s, n=place: s.workers[n].tasks, ""),  # type: ignore[misc]
        ]
    found.append(line("server memory", lambda s: s.server_rss, is_memory=True))
    found.append(line("server open files", lambda s: s.server_files, ""))
    for stream in samples[0].stream_bytes if samples else ():
        found.append(line(stream, lambda s, name=stream: s.stream_bytes[name]))  # type: ignore[misc]
    return found


def rates(samples: Sequence[Sample], parts: int = 10) -> list[tuple[float, float, float]]:
    """Return (seconds since the beginning, tasks/s, turns/s) of so many parts of the run."""
    step = max(1, len(samples) // parts)
    marks = samples[::step]
    return [
        (b.at_s, (b.ended - a.ended) / (b.at_s - a.at_s), (b.turns - a.turns) / (b.at_s - a.at_s))
        for a, b in itertools.pairwise(marks)
    ]


async def soak(options: Options) -> Soak:
    """Run it."""
    wanted = _streams(options.keep_s)
    async with Broker(options.mode, options.folder) as broker, broker.bus() as bus:
        for config in wanted.streams:
            await bus.delete_stream(config.name)
        await provision.apply(bus, await provision.plan(bus, wanted))
        async with contextlib.AsyncExitStack() as stack:
            for name in NAMES:
                side = Side(url=broker.url, name=name, keep_s=options.keep_s, leak_bytes=options.leak_bytes)
                await stack.enter_async_context(
                    started("bench.side_soak", msgspec.json.encode(side).decode(), end_s=45.0)
                )
            found = Soak(broker, bus, options)
            await found.run()
    return found


def _streams(keep_s: float) -> topology.Topology:
    """Return the product's streams with shorter times than its settings allow."""
    ages = dict.fromkeys(("result_ttl_s", "audit_ttl_s", "dead_ttl_s"), keep_s)
    wanted = topology.declared(TopologySettings().model_copy(update=ages))
    window_s = min(30.0, keep_s)
    streams = (
        structs.replace(config, duplicate_window_s=min(config.duplicate_window_s, window_s))
        for config in wanted.streams
    )
    return topology.Topology(streams=tuple(streams))


def _task(number: int) -> Write:
    """Return a task: of 200 one fails for good, four fail once, ten bear an id of the client's."""
    kind = number % 200
    how = "fail" if kind == 0 else "retry" if kind <= 4 else "ok"
    headers = {"Nats-Msg-Id": f"{CAPABILITY}/{number}"} if kind >= 190 else None
    return Write(subjects.task(CAPABILITY), json.dumps({"how": how, "text": TEXT}).encode(), headers)


def _mail(number: int) -> Write:
    return Write(f"cb.mail.{TYPE}.k{number % KEYS}", json.dumps({"text": f"{number} {TEXT}"}).encode())


def report(found: Soak, options: Options) -> list[Line]:
    """Print what it saw and return the lines."""
    print(f"{'throughput':>12}  tasks/s  turns/s")
    for at_s, tasks, turns in rates(found.samples):
        print(f"{at_s:>10.0f} s  {tasks:>7.0f}  {turns:>7.0f}")
    after = [sample for sample in found.samples if sample.at_s >= options.warm_up_s and sample.ended < found.fed]
    print(f"\nafter {options.warm_up_s:g} s of warm-up, {len(after)} looks{'':<4}mean    per 100k tasks")
    shown = lines(after)
    for line in shown:
        print(line.text())
    ended = found.samples[-1] if found.samples else None
    print(f"\nfed {found.fed} tasks and {found.told} turns; done {ended.ended if ended else 0}", end=" ")
    print(f"and {ended.turns if ended else 0}; load {os.getloadavg()[0]:.1f}")
    return shown


def main() -> None:
    """Run, print, and end with 1 when something grows or is missing."""
    options, path = _options()
    found = asyncio.run(soak(options))
    shown = report(found, options)
    if path is not None:
        path.write_bytes(msgspec.json.encode({"lines": shown, "samples": found.samples}))
    sys.exit(any(line.grows for line in shown) or not found.is_complete)


def _options() -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    usual = Options()
    parser.add_argument("--tasks", type=int, default=usual.tasks)
    parser.add_argument("--turns", type=int, default=usual.turns)
    parser.add_argument("--minutes", type=float, default=usual.minutes, help="stop feeding then")
    parser.add_argument("--keep", type=float, default=usual.keep_s, help="seconds that finished work is kept")
    parser.add_argument("--warm-up", type=float, default=usual.warm_up_s, help="seconds before slopes are taken")
    parser.add_argument("--rate", type=float, default=usual.rate, help="tasks a second at most; 0: as many as are done")
    parser.add_argument("--sync", choices=MODES, default=usual.mode, help="sync_interval of the server")
    parser.add_argument("--leak", type=int, default=0, help="bytes kept for ever of each task, as a control")
    parser.add_argument("--json", type=Path, default=None, help="where to write all looks")
    parser.add_argument("--dir", type=Path, default=None, help="folder of the server")
    given = parser.parse_args()
    options = Options(
        tasks=given.tasks,
        turns=given.turns,
        minutes=given.minutes,
        keep_s=given.keep,
        warm_up_s=given.warm_up,
        rate=given.rate,
        mode=given.sync,
        leak_bytes=given.leak,
        folder=given.dir,
    )
    return options, given.json


if __name__ == "__main__":
    main()
