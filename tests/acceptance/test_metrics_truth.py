"""What workers say of themselves at /metrics is what the streams and the handlers' own notes say they did."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

import callboard
from callboard.runtime import record, subjects
from callboard.runtime.actor import archive
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.client import Client
from callboard.runtime.config import Settings
from callboard.runtime.host import connector
from callboard.runtime.stats import ENDINGS, FINAL
from tests.acceptance.console import Background, Console, eventually

ACT = """
import asyncio, os
from pathlib import Path
from msgspec import Struct
from callboard import Actor, RetryPolicy, RetryableError, TaskContext, TerminalError, capability, on

def mark(text):
    fd = os.open("marks.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text} {os.getpid()}\\n".encode())
    os.close(fd)

@capability("work", concurrency=16, retry=RetryPolicy(attempts=3, base_s=0.05, max_s=0.1))
async def work(how: str, number: int, task: TaskContext) -> int:
    mark("task work")
    if how == "fail":
        raise TerminalError("for good")
    if how == "spent" or (how == "again" and task.attempt < 3):
        raise RetryableError("not yet", after_s=0.05)
    if how == "hang":
        mark(f"hangs {task.id}")
        await asyncio.sleep(600)
    await asyncio.sleep(0.01)
    return number

@capability("hold", concurrency=1)
async def hold(name: str) -> str:
    mark("task hold")
    while not Path(f"open-{os.getpid()}").exists():
        await asyncio.sleep(0.05)
    return name

class Act(Struct):
    how: str
    number: int

class Actress(Actor, name="actress", retry=RetryPolicy(attempts=2, base_s=0.05, max_s=0.1)):
    class State(Struct):
        turns: int = 0

    @on
    async def act(self, m: Act) -> int:
        mark("turn actress")
        first = await self.step("first", plus, m.number, 1)
        if m.how == "fail":
            mark("raised actress")
            raise TerminalError("for good")
        if m.how == "again" and self.attempt == 1:
            mark("raised actress")
            raise RetryableError("not yet", after_s=0.05)
        if m.how == "ask":
            first += await self.ask(f"extra/{m.number}", Act("plain", m.number))
        self.state.turns += 1
        return await self.step("second", plus, first, 1)

class Extra(Actor, name="extra"):
    @on
    async def act(self, m: Act) -> int:
        mark("turn extra")
        return m.number

async def plus(a: int, b: int) -> int:
    return a + b
"""
TASKS = ("plain",) * 20 + ("again", "again", "spent", "fail", "fail")
TURNS = ("plain",) * 6 + ("again", "fail", "ask", "ask")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Scrape:
    """One answer of a worker's /metrics."""

    def __init__(self, text: str) -> None:
        self._values: dict[tuple[str, str], float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "le" not in sample.labels:
                    kind = sample.labels.get("capability") or sample.labels.get("type") or ""
                    self._values[sample.name, kind] += sample.value

    def __call__(self, name: str, kind: str = "") -> int:
        return int(self._values[f"callboard_{name}", kind])

    @property
    def unsettled(self) -> Counter[str]:
        """Claims that have not ended, by capability; what was claimed ends in one way or is in the worker's hands."""
        left: Counter[str] = Counter()
        for (name, kind), value in list(self._values.items()):
            if name == "callboard_tasks_claimed_total":
                left[kind] += int(value) - sum(self(f"tasks_{ending}_total", kind) for ending in ENDINGS)
        return +left

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way but the one task that holds the worker."""
        turns = sum(value for (name, _), value in self._values.items() if name == "callboard_turns_running")
        return self.unsettled == Counter(hold=1) and not turns


class Hand:
    """A worker process with a health port, and the last that it said of itself."""

    def __init__(self, console: Console) -> None:
        self.port = _free_port()
        self.background: Background = console.start(
            "worker", "start", "act.py", "--json", "--health-port", str(self.port), "--drain-grace", "60s"
        )
        eventually(lambda: self.background.events or self.background.process.poll() is not None, self.background.err)
        assert self.background.events, "".join(self.background.err)
        self.name: str = self.background.events[0]["worker"]
        self.pid: int = self.background.events[0]["pid"]

    def scrape(self) -> Scrape:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return Scrape(answer.read().decode())

    def is_ready(self) -> bool:
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz"):
            return True
        return False

    async def quiet(self, *, drains: bool) -> Scrape:
        """Return what it says once it has nothing in hand but the task that holds it."""
        last = [self.scrape()]

        def is_quiet() -> bool:
            last[0] = self.scrape()
            return last[0].is_quiet and self.is_ready() is not drains

        await _until(is_quiet)
        return last[0]


async def _until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(eventually, condition, timeout_s=30)


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    found = Console(tmp_path)
    (tmp_path / "act.py").write_text(ACT)
    yield found
    # shown when the test fails
    sys.stderr.writelines(line for each in found.running for line in each.err[-20:])
    found.close()


@asynccontextmanager
async def _linked(url: str) -> AsyncIterator[tuple[Client, Bus]]:
    settings = Settings.load(flags={"nats.url": url})
    bus = await connector(settings)("truth")
    async with callboard.connect(settings=settings) as client:
        try:
            yield client, bus
        finally:
            await bus.close()


class Load:
    """Tasks and mails of every kind, and how many duplicates and cancels of them nobody ran."""

    def __init__(self, console: Console, client: Client, bus: Bus) -> None:
        self._console, self._client, self._bus = console, client, bus
        self._number = 0
        self.duplicates = 0

    async def tasks(self, rounds: int) -> None:
        """Submit so many rounds of tasks, with ids of ours in every second."""
        for number in range(rounds):
            values = [{"how": how, "number": n} for n, how in enumerate(TASKS)]
            self._number += 1
            ids = [f"work/{self._number}-{n}" for n in range(len(TASKS))] if number % 2 else None
            await self._client.submit_many("work", values, task_ids=ids)

    async def strays(self) -> None:
        """Cancel running and waiting ones, let deadlines pass, send some that ran already once more."""
        self._number += 1
        name = f"stray-{self._number}"
        client = self._client
        for number in range(3):
            await client.submit("work", {"how": "hang", "number": 0}, id=f"work/{name}-{number}")
        await _until(lambda: len(self._console.marks(f"hangs work/{name}-")) == 3)
        for number in range(3):
            cancelled = await client.cancel("work", f"work/{name}-{number}")
            assert cancelled.found == "running"
        await client.submit("work", {"how": "plain", "number": 0}, id=f"work/{name}-later", delay_s=600)
        assert (await client.cancel("work", f"work/{name}-later")).found == "waiting"
        past = {header.DEADLINE: "2020-01-01T00:00:00Z"}
        body = b'{"how": "hang", "number": 0}'
        for _ in range(4):
            await self._bus.store(Write(subjects.task("work"), body, past))
        deadline = timedelta(seconds=0.5)
        for _ in range(2):
            await client.submit("work", {"how": "hang", "number": 0}, deadline=deadline)
        handle = await client.submit("work", {"how": "plain", "number": 0}, id=f"work/{name}-twice")
        await client.wait(handle)
        self.duplicates += 5
        for _ in range(5):
            # under another message id the broker takes them for new ones
            again = {header.TASK_ID: handle.id}
            await self._bus.store(Write(subjects.task("work"), b'{"how": "plain", "number": 0}', again))

    async def turns(self, rounds: int) -> None:
        """Ask and tell."""
        asks = []
        for number in range(rounds):
            for place, how in enumerate(TURNS):
                ref = self._client.actor(f"actress/{(number + place) % 7}")
                self._number += 1
                message = {"how": how, "number": self._number}
                if how == "ask":
                    asks.append(asyncio.create_task(ref.ask(message, type="Act")))
                else:
                    await ref.tell(message, type="Act")
        await asyncio.gather(*asks)


class Truth:
    """What the streams and the handlers' notes say of one worker."""

    def __init__(self, hand: Hand, console: Console) -> None:
        self.hand = hand
        self.marks = Counter(line.rpartition(" ")[0] for line in console.marks("") if line.endswith(f" {hand.pid}"))
        self.ended: Counter[tuple[str, str]] = Counter()
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.dead: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()

    async def read(self, bus: Bus) -> None:
        """Read ledger, dead letters and audit."""
        async for stored in bus.read(subjects.LEDGER):
            if stored.subject.startswith("cb.result."):
                ended = record.decode_task(stored.data)
                self.ended[ended.capability, ended.status] += ended.worker == self.hand.name
            else:
                note = record.decode_attempt(stored.data)
                self.attempts[note.capability, note.kind] += note.worker == self.hand.name
        async for stored in bus.read(subjects.DEAD):
            _, _, what, name, *_ = stored.subject.split(".")
            self.dead[f"{what}.{name}"] += json.loads(stored.data)["worker"] == self.hand.name
        async for stored in bus.read(subjects.AUDIT, subjects=["cb.step.>"]):
            step = msgspec.json.decode(stored.data, type=StepRecord)
            self.steps[stored.subject.split(".")[2]] += step.worker == self.hand.name and step.kind == "done"


def _agree(scrape: Scrape, truth: Truth) -> None:
    """Check every counter of a worker that is quiet."""
    for capability in ("work", "hold"):
        for status in ("completed", "failed", "cancelled", "expired"):
            said = scrape(f"tasks_{status}_total", capability)
            assert said == truth.ended[capability, status], (capability, status)
        assert scrape("tasks_retried_total", capability) == truth.attempts[capability, "failed"]
        assert scrape("tasks_returned_total", capability) == truth.attempts[capability, "returned"]
        assert scrape("tasks_failed_total", capability) == truth.dead[f"task.{capability}"]
        started = scrape("tasks_started_total", capability)
        assert started == truth.marks[f"task {capability}"]
        assert scrape("tasks_running", capability) == scrape.unsettled[capability]
        assert scrape("task_handler_seconds_count", capability) == started - scrape("tasks_running", capability)
        assert scrape("task_delivery_seconds_count", capability) == scrape("tasks_claimed_total", capability)
    for kind in ("actress", "extra"):
        assert scrape("turns_started_total", kind) == truth.marks[f"turn {kind}"]
        assert scrape("turns_failed_total", kind) == truth.marks[f"raised {kind}"]
        assert scrape("turns_dead_total", kind) == truth.dead[f"mail.{kind}"]
        assert scrape("steps_recorded_total", kind) == truth.steps[kind]


async def _mails(bus: Bus) -> int:
    """Return how many mails there ever were for the actors that are counted; the registry has its own."""
    mailboxes = [f"cb.mbox.{kind}.*.*" for kind in ("actress", "extra")]
    return len([stored.seq async for stored in bus.read(subjects.AUDIT, subjects=mailboxes)])


def _disagree(scrape: Scrape, truth: Truth) -> None:
    """Check that the comparison would notice one more of anything."""
    facts: list[tuple[Counter[Any], Any]] = [(truth.ended, ("work", name)) for name in FINAL]
    facts += [(truth.attempts, ("work", "failed")), (truth.dead, "task.work"), (truth.dead, "mail.actress")]
    facts += [(truth.marks, "task work"), (truth.marks, "turn extra"), (truth.marks, "raised actress")]
    for counter, key in [*facts, (truth.steps, "actress")]:
        counter[key] += 1
        with pytest.raises(AssertionError):
            _agree(scrape, truth)
        counter[key] -= 1


async def _is_done(bus: Bus) -> bool:
    """Return whether nothing waits but the task that holds the second worker, and the audit has everything."""
    later, work = await bus.stream_info(subjects.LATER), await bus.stream_info(subjects.WORK)
    assert later is not None
    assert work is not None
    return later.messages == 0 and work.messages == 1 and await _is_copied(bus)


async def _is_copied(bus: Bus, upto: int | None = None) -> bool:
    """Return whether the audit has all that the actors' stream has, or what it had at a sequence."""
    extent = await archive.extent(bus)
    found = [await bus.get_next(subjects.ACTORS, extent.upto + 1, subject) for subject in subjects.AUDITED]
    return not any(each for each in found if each and (upto is None or each.seq <= upto))


async def _soon(condition: Callable[[], Awaitable[object]], *, timeout_s: float = 40) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - what is looked at lies in other processes
            await asyncio.sleep(0.1)


async def _ended(hand: Hand, console: Console, bus: Bus) -> tuple[Scrape, Truth]:
    """See a worker that was told to end come to rest, compare, and let it go."""
    scrape, truth = await hand.quiet(drains=True), Truth(hand, console)
    actors = await bus.stream_info(subjects.ACTORS)
    assert actors is not None
    await _soon(lambda: _is_copied(bus, actors.last_seq))
    await truth.read(bus)
    _agree(scrape, truth)
    _disagree(scrape, truth)
    (console.folder / f"open-{hand.pid}").touch()
    assert hand.background.wait() == 0
    return scrape, truth


async def test_metrics_equal_the_ledger_the_attempts_and_the_audit(console: Console) -> None:
    url = console.up().events[0]["url"]
    first, second = Hand(console), Hand(console)
    async with _linked(url) as (client, bus):
        for name in ("one", "two"):
            await client.submit("hold", name)
        await _until(lambda: len({line.split()[-1] for line in console.marks("task hold")}) == 2)
        load = Load(console, client, bus)
        await load.tasks(4)
        await load.turns(4)
        await load.strays()
        await load.tasks(4)
        drained = console.run("workers", "drain", first.name, "--json")
        assert drained.status == 0, drained.err
        await load.turns(4)
        one, _ = await _ended(first, console, bus)

        await load.tasks(2)
        await load.strays()
        await load.turns(2)
        await _soon(lambda: _is_done(bus))
        dead = await bus.stream_info(subjects.DEAD)
        assert dead is not None

        def is_surveyed() -> bool:
            """Return whether the worker's look at the broker is a new one, and true."""
            scrape = second.scrape()
            handed = one("tasks_claimed_total", "work") + scrape("tasks_claimed_total", "work")
            said = (scrape("dead_letters"), scrape("queue_deliveries_total", "work"), scrape("queue_claimed", "hold"))
            return said == (dead.messages, handed, 1)

        await _until(is_surveyed)
        second.background.send(signal.SIGTERM)
        two, _ = await _ended(second, console, bus)

        # what only the sum of both tells
        assert one("tasks_duplicate_total", "work") + two("tasks_duplicate_total", "work") == load.duplicates
        turns = sum(
            scrape(f"turns_{ending}_total", kind)
            for scrape in (one, two)
            for kind in ("actress", "extra")
            for ending in ("committed", "dead")
        )
        assert turns == await _mails(bus)
        assert one("tasks_completed_total", "work") > 0
        assert one("turns_committed_total", "actress") > 0
