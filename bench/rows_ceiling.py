"""Row u: what the broker alone allows, by a C client of our own, and how much of it our side reaches.

The client is compiled on the spot with the machine's ``cc``; where there is none the row is left out and says so.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import msgspec
from msgspec import Struct

from bench import job
from bench.broker import IN_FLIGHT, PAYLOAD, PAYLOAD_BYTES, Broker
from bench.job import Job
from bench.options import Options
from bench.rows_work import LEAST, MAIN_CONCURRENCY
from bench.side_serve import ECHO
from bench.table import Row, Side
from callboard.runtime import record, subjects
from callboard.runtime.bus.base import Bus, PubAck, Write
from callboard.runtime.bus.topology import task_consumers
from callboard.runtime.config import WorkSettings

SOURCE = Path(__file__).with_name("ceiling.c")
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
CEILING = "C client"
_GUESSES = {"default": 60_000.0, "always": 4_000.0}
_TIMEOUT_S = 180.0
_numbers = count()

Way = Callable[[], Awaitable[float]]


class NoCompilerError(Exception):
    """Raised when the client cannot be made here."""


class Ran(Struct, frozen=True):
    """What the client said of a run."""

    count: int
    seconds: float
    p50_us: float

    @property
    def rate(self) -> float:
        """How many a second."""
        return self.count / self.seconds


def compiled(folder: Path, *, more: tuple[str, ...] = ()) -> Path:
    """Compile the client into a folder, with further flags, and return the program.

    Raises:
        NoCompilerError: Without a C compiler.
        RuntimeError: If it refuses our source.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        message = "no C compiler: install one (on Debian and Ubuntu: apt-get install gcc libc6-dev), or set CC"
        raise NoCompilerError(message)
    program = folder / "ceiling"
    done = subprocess.run(
        [compiler, *FLAGS, *more, "-o", str(program), str(SOURCE)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        message = f"{compiler} does not take {SOURCE.name}:\n{done.stderr[-4000:]}"
        raise RuntimeError(message)
    return program


async def rows(broker: Broker, options: Options) -> list[Row]:
    """Measure the client and our side in turn.

    Raises:
        NoCompilerError: Without a C compiler.
    """
    with tempfile.TemporaryDirectory(prefix="cb-ceiling-") as folder:
        client = Client(compiled(Path(folder)), broker, options)
        return [
            await _asks(client, broker, options),
            await _stores(client, broker, options),
            *[await _tasks(client, broker, options, way) for way in ("pull", "work", "batch")],
        ]


class Client:
    """Runs the program; a rate that was seen decides how long the next run of its kind is."""

    def __init__(self, program: Path, broker: Broker, options: Options) -> None:
        self._program = program
        self._broker = broker
        self._options = options
        self._rates: dict[str, float] = {}

    def much(self, what: str) -> int:
        """Return how many make a round."""
        rate = self._rates.get(what, _GUESSES[self._broker.mode])
        return max(LEAST, int(rate * self._options.seconds))

    def run(self, what: str, subject: str, number: int, *more: object) -> Ran:
        """Run it and return what it said.

        Raises:
            RuntimeError: If it failed; with what it said.
        """
        port = self._broker.url.rpartition(":")[2]
        words = [str(self._program), what, port, subject, str(number), *map(str, more)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode:
            message = f"{' '.join(words[1:])} failed: {done.stderr[-2000:]}"
            raise RuntimeError(message)
        found = msgspec.json.decode(done.stdout, type=Ran)
        self._rates[what] = found.rate
        return found


async def _asks(client: Client, broker: Broker, options: Options) -> Row:
    number = 300 if options.is_quick else 3000
    ours, ceiling = Side(name="our port, nats-py answers"), Side(name=CEILING)
    async with job.started("bench.side_serve", broker.url, "bench-serve"), broker.bus() as bus:
        for _ in range(options.rounds):
            ours.figures.append(await _p50_us(bus, ECHO, number))
            ceiling.figures.append(client.run("ask", "bench.ceiling", number).p50_us)
    return _row("core request-reply, p50", broker, ours, ceiling, in_flight=1, unit="µs", is_less_better=True)


async def _stores(client: Client, broker: Broker, options: Options) -> Row:
    ours, ceiling = Side(name="our port"), Side(name=CEILING)
    async with broker.bus() as bus:
        for _ in range(options.rounds):
            await broker.reset()
            number = client.much("publish")
            began = time.perf_counter()
            for _ in range(0, number, IN_FLIGHT):
                answers = await bus.store_many([Write("cb.task.bench", PAYLOAD)] * IN_FLIGHT, timeout_s=30)
                assert all(isinstance(answer, PubAck) for answer in answers)
            ours.figures.append(-(-number // IN_FLIGHT) * IN_FLIGHT / (time.perf_counter() - began))
            await broker.reset()
            ceiling.figures.append(client.run("publish", "cb.task.bench", number, IN_FLIGHT, PAYLOAD_BYTES).rate)
    return _row("publish, each acknowledged", broker, ours, ceiling, in_flight=IN_FLIGHT, unit="/s")


async def _tasks(client: Client, broker: Broker, options: Options, way: str) -> Row:
    """Empty a queue by the client and by our own: the bus alone for ``pull``, a whole worker else."""
    what = {
        "pull": "pull and ack",
        "work": "pull, record, ack: single records",
        "batch": "pull, record, ack: records in batches",
    }[way]
    name = "bare" if way == "pull" else "ours"
    ours, ceiling = Side(name=name), Side(name=CEILING)
    for _ in range(options.rounds):
        number = client.much(way)
        capability = await _filled(broker, number)
        own = Job(url=broker.url, capability=capability, concurrency=MAIN_CONCURRENCY, count=number, loop=options.loop)
        ours.figures.append(job.run(name, own).rate)
        capability = await _filled(broker, number)
        consumer = next(each for each in task_consumers(capability, WorkSettings()) if each.name.endswith("-normal"))
        async with broker.bus() as bus:
            await bus.create_consumer(subjects.WORK, consumer)
        more = () if way == "pull" else (_record_bytes(capability), f"cb.result.{capability}")
        place = f"{subjects.WORK}.{consumer.name}"
        ceiling.figures.append(client.run(way, place, number, MAIN_CONCURRENCY, *more).rate)
        if way != "pull":
            await _check(broker, number)
    return _row(what, broker, ours, ceiling, in_flight=MAIN_CONCURRENCY, unit="/s")


async def _filled(broker: Broker, number: int) -> str:
    capability = f"ceiling{next(_numbers)}"
    await broker.reset()
    await broker.fill(f"cb.task.{capability}", number)
    return capability


async def _check(broker: Broker, number: int) -> None:
    """A ceiling that has not done the work is none."""
    async with broker.bus() as bus:
        queue, ledger = await bus.stream_info(subjects.WORK), await bus.stream_info(subjects.LEDGER)
    assert queue is not None
    assert ledger is not None
    assert (queue.messages, ledger.messages) == (0, number), (queue.messages, ledger.messages, number)


def _record_bytes(capability: str) -> int:
    """Return how large the record of such a task is that a worker of ours stores."""
    at = datetime.now(UTC)
    submitted = record.Submission(seq=100_000, at=at, lane="normal", payload=msgspec.Raw(PAYLOAD))
    return len(
        record.encode(
            record.TaskRecord(
                v=record.VERSION,
                task="~100000",
                capability=capability,
                status="completed",
                result=msgspec.Raw(b"true"),
                submitted=submitted,
                worker="w-bench-100000-abcdef",
                claimed_at=at,
                finished_at=at,
            )
        )
    )


async def _p50_us(bus: Bus, subject: str, number: int) -> float:
    took = []
    for _ in range(number):
        began = time.perf_counter()
        await bus.request(subject, PAYLOAD)
        took.append((time.perf_counter() - began) * 1e6)
    return statistics.median(took)


def _row(
    what: str, broker: Broker, ours: Side, ceiling: Side, *, in_flight: int, unit: str, is_less_better: bool = False
) -> Row:
    return Row(
        key="u",
        what=what,
        mode=broker.mode,
        concurrency=str(in_flight),
        unit=unit,
        ours=ours,
        base=ceiling,
        is_less_better=is_less_better,
    )
