"""Kill the worker of an agent at every step of its run: is a model call paid twice, is an effect had twice?

``python -m tests.chaos.agent_kills`` runs it by hand and prints a table. A run of the agent has ten steps: five calls
of the model and five of tools, of which one must not be repeated. Each round takes one of them, kills the worker
process in it with SIGKILL, and lets another go on: in a call of the model while the provider thinks, in a call of a
tool before its effect, and after it, before anybody could record it. Server, provider and workers are real.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.agents.message import AgentResult, Task
from callboard.runtime import subjects
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import CallboardError
from tests.chaos import agent_cast
from tests.chaos.agent_cast import Event, Kill
from tests.chaos.stage import staged
from tests.support.eventually import eventually
from tests.support.provider import Call, Provider, Say, Want

ROOT = Path(__file__).parents[2]
WORKERS = 2
WITHIN_S = 90.0
NOTES = 4
LETTER = 5
MODEL_CALLS = 5
SIDE_BY_SIDE = 2
# (kind, number): what happens in a run, in its order; the first two notes are asked for in one answer, side by side
STEPS = [
    ("model", 1), ("note", 1), ("note", 2), ("model", 2), ("note", 3), ("model", 3), ("note", 4), ("model", 4),
    ("send", LETTER), ("model", 5),
]  # fmt: skip


class Point(Struct, frozen=True, kw_only=True):
    """Where a round kills: a step, and ``during`` (the model thinks), ``before`` or ``after`` (a tool's effect)."""

    kind: str
    number: int
    when: str

    def __str__(self) -> str:
        """Return step and moment."""
        return f"{self.kind} {self.number} {self.when}"


class Row(Struct, frozen=True, kw_only=True):
    """What a round left.

    Attributes:
        calls: Calls at the provider.
        paid_twice: Calls that repeat a question, but for the one in flight.
        keys: Idempotency keys of the notes, which are four.
        notes: Effects of tools that may be repeated.
        sent: Effects of the one that must not.
        asked: Whether a person was asked about its outcome.
        took_s: From the kill to the end of the run.
    """

    point: Point
    calls: int
    paid_twice: int
    keys: int
    notes: int
    sent: int
    asked: bool
    runs: int
    status: str
    took_s: float

    @property
    def problems(self) -> list[str]:
        """Promises that were broken."""
        is_letter = self.point.kind == "send"
        allowed = int(self.point.kind == "model")
        # the neighbour of a call that was killed may have been under way as well
        again = 0 if self.point.kind != "note" else 2 if self.point.number <= SIDE_BY_SIDE else 1
        wrong = {
            f"the run did not end: {self.status}": not self.status.startswith("done"),
            "it was not killed": self.runs < 2,
            f"{self.paid_twice} calls of the model were paid twice": self.paid_twice > 0,
            f"{self.calls} calls of the model": not MODEL_CALLS <= self.calls <= MODEL_CALLS + allowed,
            f"{self.keys} keys for {NOTES} notes": self.keys != NOTES,
            f"{self.notes} notes": self.notes > NOTES + again,
            f"{self.sent} letters sent": self.sent != (0 if is_letter and self.point.when == "before" else 1),
            "nobody was asked what became of the letter": is_letter and not self.asked,
            "a person was asked without need": self.asked and not is_letter,
        }
        return [f"{self.point}: {text}" for text, is_wrong in wrong.items() if is_wrong]


POINTS = [
    Point(kind=kind, number=number, when=when)
    for kind, number in STEPS
    for when in (("during",) if kind == "model" else ("before", "after"))
]


class KillingProvider(Provider):
    """A provider that thinks of one question until whoever asked is dead."""

    trap: tuple[str, int] | None = None
    sprung: asyncio.Event

    async def _say(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        if self.trap is not None and (run_of(call), number_of(call)) == self.trap:
            self.trap = None
            self.sprung.set()
            await asyncio.Event().wait()
        return await super()._say(call, writer)


def script(run: str) -> list[Say]:
    """Return what the model says in a run."""

    def want(name: str, number: int) -> Want:
        return Want(name, {"run": run, "number": number})

    return [
        Say(when=f"[{run}]", answered=0, tools=(want("note", 1), want("note", 2))),
        *(Say(when=f"[{run}]", answered=done, tools=(want("note", done + 1),)) for done in (2, 3)),
        Say(when=f"[{run}]", answered=4, tools=(want("send", LETTER),)),
        Say("all is done", when=f"[{run}]", answered=5),
    ]


def run_of(call: Call) -> str:
    """Return the run that a call belongs to."""
    text = next(str(m["content"]) for m in call.body["messages"] if m["role"] == "user")
    return text.partition("[")[2].partition("]")[0]


def number_of(call: Call) -> int:
    """Return which question of its run a call is, 1-based."""
    return 1 + len([message for message in call.body["messages"] if message["role"] == "assistant"])


class Theatre:
    """Server, provider and workers of all rounds."""

    def __init__(self, folder: Path, bus: Bus, provider: KillingProvider, *, url: str) -> None:
        self.folder = folder
        self.bus = bus
        self.provider = provider
        self._url = url
        self._workers: dict[int, asyncio.subprocess.Process] = {}

    async def start(self) -> None:
        """Start a worker and wait until it is ready."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CALLBOARD_")} | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "CALLBOARD_NATS__URL": self._url,
            "CALLBOARD_AGENTS__MODEL": "local/clerk",
            "CALLBOARD_AGENTS__PROVIDERS__LOCAL__BASE_URL": self.provider.url,
            "CALLBOARD_AGENTS__PROVIDERS__LOCAL__IS_LOCAL": "true",
            agent_cast.FOLDER: str(self.folder),
        }
        words = ["-m", "callboard", "worker", "start", "tests.chaos.agent_cast", "--json", "--log-level", "warning"]
        with (self.folder / "workers.err").open("ab") as errors:
            worker = await asyncio.create_subprocess_exec(
                sys.executable, *words, cwd=self.folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=errors
            )
        self._workers[worker.pid] = worker
        assert worker.stdout is not None
        line = await asyncio.wait_for(worker.stdout.readline(), WITHIN_S)
        assert b'"ready"' in line, f"no worker: see {self.folder / 'workers.err'}"

    def kill(self, pid: int) -> None:
        """Kill a worker of ours."""
        self._workers[pid].send_signal(signal.SIGKILL)

    async def fill(self) -> None:
        """Start new workers for those that are dead."""
        for pid in [pid for pid, worker in self._workers.items() if worker.returncode is not None]:
            del self._workers[pid]
        await asyncio.gather(*(self.start() for _ in range(WORKERS - len(self._workers))))

    async def end(self) -> None:
        """End them all."""
        for worker in self._workers.values():
            if worker.returncode is None:
                worker.kill()
            _ = await worker.wait()

    async def round(self, number: int, point: Point) -> Row:
        """Run the agent once and kill its worker at a point."""
        run = f"r{number}"
        self.provider.script[:0] = script(run)
        self.provider.sprung = asyncio.Event()
        if point.kind == "model":
            self.provider.trap = (run, point.number)
        else:
            wanted = Kill(run=run, number=point.number, when=point.when)
            (self.folder / "kill.json").write_bytes(msgspec.json.encode(wanted))
        asking = asyncio.create_task(self._ask(run))
        if point.kind == "model":
            await eventually(lambda: self.provider.sprung.is_set() or asking.done(), within_s=WITHIN_S)
            self.kill(self._mine(run, "begin")[-1].pid)
        await eventually(partial(self._is_killed, run, point), within_s=WITHIN_S, what=f"the kill of {point}")
        killed_s = time.monotonic()
        assert not asking.done(), await asking
        filling = asyncio.create_task(self.fill())
        asked = point.kind == "send" and await self._decide(run)
        try:
            result = await asking
        except CallboardError as error:
            result = AgentResult(status="failed", reason=f"{error.code}: {error}")
        took_s = time.monotonic() - killed_s
        await filling
        return self._row(run, point, result, asked=asked, took_s=took_s)

    async def _ask(self, run: str) -> AgentResult:
        ref = ActorRef(self.bus, f"clerk/{run}")
        found: AgentResult = await ref.ask(Task(f"[{run}]"), returns=AgentResult, timeout_s=WITHIN_S)
        return found

    def _mine(self, run: str, kind: str) -> list[Event]:
        return [e for e in agent_cast.events(self.folder) if e.run.strip("[]") == run and e.kind == kind]

    def _is_killed(self, run: str, point: Point) -> bool:
        pid = self._mine(run, "begin")[-1].pid if point.kind == "model" else 0
        kills = self._mine(run, "kill")
        pid = kills[-1].pid if kills else pid
        return pid != 0 and self._workers[pid].returncode is not None

    async def _decide(self, run: str) -> bool:
        """Look what became of the letter, as a person would, and say so; return whether anybody was asked."""

        async def pending() -> list[ActorRef]:
            counts = await self.bus.subject_counts(subjects.ACTORS, "cb.state.approval.*")
            found = []
            for subject in counts:
                ref = ActorRef(self.bus, f"approval/{subjects.unescape(subject.rpartition('.')[2])}")
                entry = await ref.ask({}, type="Show")
                if entry["requester"] == f"clerk/{run}" and entry["status"] == "pending":
                    found.append(ref)
            return found

        await eventually(pending, within_s=WITHIN_S, what="a question about the letter", every_s=0.2)
        (ref,) = await pending()
        # whether it was sent or not, nobody shall send it now
        _ = await ref.ask({"by": "chaos", "suggestion": "it was seen to"}, type="Suggest")
        return True

    def _row(self, run: str, point: Point, result: AgentResult, *, asked: bool, took_s: float) -> Row:
        calls = [call for call in self.provider.calls if run_of(call) == run]
        repeats = Counter(call.digest for call in calls)
        in_flight = {call.digest for call in calls if point.kind == "model" and number_of(call) == point.number}
        notes = self._mine(run, "note")
        return Row(
            point=point,
            calls=len(calls),
            paid_twice=sum(count - 1 - (digest in in_flight and count > 1) for digest, count in repeats.items()),
            keys=len({event.key for event in notes}),
            notes=len(notes),
            sent=len(self._mine(run, "send")),
            asked=asked,
            runs=len(self._mine(run, "begin")),
            status=f"{result.status} {result.reason}".strip(),
            took_s=took_s,
        )


@asynccontextmanager
async def theatre(folder: Path) -> AsyncIterator[Theatre]:
    """Start everything, and end it."""
    (folder / "notes").mkdir(parents=True)
    async with staged(folder) as stage, KillingProvider(calls_file=folder / "calls") as provider:
        found = Theatre(folder, stage.bus, provider, url=stage.server.url)
        try:
            await asyncio.gather(*(found.start() for _ in range(WORKERS)))
            yield found
        finally:
            await found.end()


async def run(points: Sequence[Point], folder: Path) -> list[Row]:
    """Run a round for each point."""
    async with theatre(folder) as found:
        rows = []
        for number, point in enumerate(points):
            rows.append(await found.round(number, point))
            print(f"… {rows[-1].point}: {rows[-1].took_s:.1f} s", file=sys.stderr, flush=True)  # noqa: T201
    return rows


def table(rows: Sequence[Row]) -> str:
    """Return the table, and the sums."""
    head = ("killed in", "model calls", "paid twice", "note keys", "notes written", "letters", "person asked", "s")
    lines = [
        (
            str(row.point), str(row.calls), str(row.paid_twice), str(row.keys), str(row.notes), str(row.sent),
            "yes" if row.asked else "-", f"{row.took_s:.1f}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [head, *lines]]
    times = sorted(row.took_s for row in rows)
    text.append(
        f"{len(rows)} kills: {sum(row.paid_twice for row in rows)} model calls paid twice, "
        f"{sum(row.keys - NOTES for row in rows)} notes under a second key, the end after p50 "
        f"{times[len(times) // 2]:.1f} s, max {times[-1]:.1f} s"
    )
    return "\n".join(text)


def main() -> int:
    """Run from the command line; the status is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each point is taken")
    parser.add_argument("--keep", type=Path, help="new folder for journals and the server's store, kept afterwards")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="callboard-agents-") as scratch:
        rows = asyncio.run(run(POINTS * given.rounds, given.keep or Path(scratch) / "run"))
    print(table(rows))  # noqa: T201 - a command
    problems = [problem for row in rows for problem in row.problems]
    for problem in problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
