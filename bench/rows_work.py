"""Rows a, b, e, f and h: a worker that empties a queue, against naive nats-py on the same queue."""

from __future__ import annotations

from itertools import count
from typing import Literal

from bench import job
from bench.broker import Broker
from bench.job import Job, Report
from bench.options import Options
from bench.table import Row, Side

CONCURRENCIES = (8, 256)
MAIN_CONCURRENCY = 64
# Beginning and end of a round should not weigh much.
LEAST = 3000
GOALS = {"default": "6x", "always": "2x"}
# Tasks a second to begin with; a side's own last rate replaces them.
GUESSES = {
    ("ours", "default"): 15_000.0,
    ("bare", "default"): 40_000.0,
    ("naive", "default"): 5_000.0,
    ("ours", "always"): 3_000.0,
}
GUESS = 1_000.0

Name = Literal["ours", "naive", "bare"]
_numbers = count()


class Rounds:
    """Runs rounds of both sides and keeps what they took."""

    def __init__(self, broker: Broker, options: Options) -> None:
        self._broker = broker
        self._options = options
        self._rates: dict[tuple[str, int], float] = {}

    async def pair(self, concurrency: int) -> tuple[list[Report], list[Report]]:
        """Return the rounds of both sides, which took turns."""
        ours, naive = [], []
        for _ in range(self._options.rounds):
            ours.append(await self.one("ours", concurrency))
            naive.append(await self.one("naive", concurrency))
        return ours, naive

    async def one(
        self, side: Name, concurrency: int, *, profile: str = "", lanes: tuple[str, ...] = ("",), loop: str = ""
    ) -> Report:
        """Fill the queue and have one side empty it."""
        guess = GUESSES.get((side, self._broker.mode), GUESS)
        rate = self._rates.get((side, concurrency), guess)
        tasks = max(LEAST, int(rate * self._options.seconds))
        capability = f"{side}{next(_numbers)}"
        await self._broker.reset()
        for index, lane in enumerate(lanes):
            share = tasks // len(lanes) + (tasks % len(lanes) if index == 0 else 0)
            await self._broker.fill(f"cb.task.{capability}{lane}", share)
        report = job.run(
            side,
            Job(
                url=self._broker.url,
                capability=capability,
                concurrency=concurrency,
                count=tasks,
                loop=loop or self._options.loop,
                profile=profile,
            ),
        )
        self._rates[side, concurrency] = report.rate
        return report


async def rows(broker: Broker, options: Options) -> list[Row]:
    """Measure the chosen rows on one broker."""
    rounds = Rounds(broker, options)
    found: list[Row] = []
    if set("ab") & set(options.rows):
        found += await _main(broker, rounds, options)
    if "f" in options.rows:
        for concurrency in CONCURRENCIES:
            ours, naive = await rounds.pair(concurrency)
            found.append(_rate_row("f", ours, naive, mode=broker.mode, concurrency=concurrency))
    if "e" in options.rows:
        found.append(await _bare(rounds, options, broker.mode))
        if broker.mode == "default":
            found.append(await _lanes(rounds, options))
    return found


async def profile(broker: Broker, options: Options) -> str:
    """Row h: run row a once more under the sampler; return the text that it wrote."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"profile-{broker.mode}.txt"
    await Rounds(broker, options).one("ours", MAIN_CONCURRENCY, profile=str(path))
    return path.read_text("utf-8")


async def _main(broker: Broker, rounds: Rounds, options: Options) -> list[Row]:
    ours, naive = await rounds.pair(MAIN_CONCURRENCY)
    found = []
    if "a" in options.rows:
        row = _rate_row("a", ours, naive, mode=broker.mode, concurrency=MAIN_CONCURRENCY)
        row.goal = GOALS[broker.mode]
        row.note = ours[-1].note
        found.append(row)
        if options.loop != "asyncio" and not options.is_quick:
            found.append(await _plain_loop(rounds, options, broker.mode))
    if "b" in options.rows:
        found.append(
            Row(
                key="b",
                what="Python CPU a task",
                mode=broker.mode,
                concurrency=str(MAIN_CONCURRENCY),
                unit="µs",
                ours=Side(name="ours", figures=[report.cpu_us for report in ours]),
                base=Side(name="naive", figures=[report.cpu_us for report in naive]),
                goal="15 µs, at most 25" if broker.mode == "default" else "",
                is_less_better=True,
            )
        )
    return found


async def _plain_loop(rounds: Rounds, options: Options, mode: str) -> Row:
    """Ours on uvloop, as the command line runs it, against the naive side on asyncio's own loop, as its docs run it."""
    ours, naive = [], []
    for _ in range(options.rounds):
        ours.append(await rounds.one("ours", MAIN_CONCURRENCY))
        naive.append(await rounds.one("naive", MAIN_CONCURRENCY, loop="asyncio"))
    row = _rate_row("a", ours, naive, mode=mode, concurrency=MAIN_CONCURRENCY)
    if row.base is not None:
        row.base.name = "naive on asyncio's loop"
    return row


async def _bare(rounds: Rounds, options: Options, mode: str) -> Row:
    """What the broker and the client library allow: pull and ack, no handler, no record."""
    ours, bare = [], []
    for _ in range(options.rounds):
        ours.append(await rounds.one("ours", MAIN_CONCURRENCY))
        bare.append(await rounds.one("bare", MAIN_CONCURRENCY))
    row = _rate_row("e", ours, bare, mode=mode, concurrency=MAIN_CONCURRENCY)
    if row.base is not None:
        row.base.name = "pull and ack alone"
    return row


async def _lanes(rounds: Rounds, options: Options) -> Row:
    mixed, single = [], []
    for _ in range(options.rounds):
        mixed.append(await rounds.one("ours", MAIN_CONCURRENCY, lanes=(".high", "", ".low")))
        single.append(await rounds.one("ours", MAIN_CONCURRENCY))
    row = _rate_row(
        "e", mixed, single, mode="default", concurrency=MAIN_CONCURRENCY, what="tasks/s, three lanes filled"
    )
    if row.base is not None:
        row.base.name = "one lane"
    return row


def _rate_row(
    key: str, ours: list[Report], base: list[Report], *, mode: str, concurrency: int, what: str = "tasks/s"
) -> Row:
    return Row(
        key=key,
        what=what,
        mode=mode,
        concurrency=str(concurrency),
        unit="/s",
        ours=Side(name="ours", figures=[report.rate for report in ours]),
        base=Side(name="naive", figures=[report.rate for report in base]),
    )
