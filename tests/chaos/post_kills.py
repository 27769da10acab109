"""The host that makes mail of the post is killed again and again in mid-batch; each entry becomes mail once, in order.

``python -m tests.chaos.post_kills --kills 20`` prints what became of every entry; the status is 1 when a promise was
broken. Each round hands in a flood over several keys and kills the carrier as soon as it has stored a part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.post import Position
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus, PubAck, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.errors import CallboardError
from callboard.runtime.worker import Worker, WorkerOptions
from tests.chaos.fleet import ROOT
from tests.chaos.stage import staged
from tests.support.eventually import eventually

TYPE = "ledger"
HOSTS = 2
KEYS = 4
ENTRIES = 600
WITHIN_S = 120.0
# At most this long after the first of a flood became mail the carrier dies.
SOON_S = 0.03


class Entry(Struct, frozen=True):
    """The number of an entry among those of its key."""

    number: int


class Tally(Struct, frozen=True):
    """How many entries came as the next in order, and which came otherwise."""

    count: int = 0
    wrong: list[int] = []


class Ledger(Actor, name=TYPE):
    """Counts entries, as long as each is the next."""

    State = Tally

    @on
    async def enter(self, message: Entry) -> None:
        tally: Tally = self.state
        if message.number == tally.count:
            self.state = Tally(tally.count + 1, tally.wrong)
        elif len(tally.wrong) < 100:
            self.state = Tally(tally.count, [*tally.wrong, message.number])

    @on(read_only=True)
    async def look(self, _: int) -> Tally:
        tally: Tally = self.state
        return tally


class Report(Struct, frozen=True, kw_only=True):
    """What a run left.

    Attributes:
        sent: Entries acknowledged, by key.
        tallies: What each key's actor says.
        cut: Kills with a part of the flood carried and a part not: the others have tested little.
        left: Entries still in the post.
        away_s: From each kill to the next entry carried.
    """

    sent: dict[str, int]
    tallies: dict[str, Tally]
    kills: int
    cut: int
    left: int
    away_s: list[float]

    @property
    def problems(self) -> list[str]:
        """Broken promises, and a run that has tested nothing."""
        found = [
            f"{key}: {tally.count} of {self.sent[key]} came in order, then {tally.wrong[:5]}"
            for key, tally in sorted(self.tallies.items())
            if tally != Tally(self.sent[key])
        ]
        if self.left:
            found.append(f"{self.left} entries are left in the post")
        if not self.cut:
            found.append("no kill struck in the middle of a flood")
        return found

    def __str__(self) -> str:
        """Return two lines of figures."""
        times = sorted(self.away_s)
        return (
            f"{self.kills} kills of the carrier's host, {self.cut} in the middle of a flood; {sum(self.sent.values())} "
            f"entries on {len(self.sent)} keys, {sum(tally.count for tally in self.tallies.values())} came once and in "
            f"order, {sum(len(tally.wrong) for tally in self.tallies.values())} otherwise, {self.left} left in the "
            f"post\ncarried on after p50 {times[len(times) // 2]:.2f} s, max {times[-1]:.2f} s"
        )


async def serve(url: str) -> None:
    """Host the actors until killed."""

    async def connected(name: str) -> Bus:
        bus: Bus = await connect(url, name=name)
        return bus

    worker = Worker(
        [], connected, actors=[Ledger], worker_id=f"host-{os.getpid()}", options=WorkerOptions(hosts_registry=False)
    )
    await worker.run(lambda: print("ready", flush=True))  # noqa: T201 - its parent waits for it


class Round:
    """Hosts, and whoever hands in."""

    def __init__(self, folder: Path, bus: Bus, *, url: str, seed: int) -> None:
        self.sent = {f"k{number}": 0 for number in range(KEYS)}
        self.cut = 0
        self.away_s: list[float] = []
        self._dice = random.Random(seed)
        self._folder = folder
        self._bus = bus
        self._url = url
        self._hosts: dict[str, asyncio.subprocess.Process] = {}

    async def fill(self) -> None:
        """Start hosts up to two."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CALLBOARD_")} | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        }
        while len(self._hosts) < HOSTS:
            with (self._folder / "workers.err").open("ab") as errors:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "tests.chaos.post_kills", "--serve", self._url),
                    cwd=ROOT,
                    env=environment,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                )
            self._hosts[f"host-{process.pid}"] = process
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), WITHIN_S) == b"ready\n"

    async def close(self) -> None:
        """End all hosts."""
        for process in self._hosts.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            _ = await process.wait()

    async def kill(self, entries: int) -> None:
        """Hand in a flood, and kill the carrier in the middle of it."""
        await eventually(self._carrier, within_s=WITHIN_S, what="a carrier", every_s=0.02)
        first = await self._last() + 1
        handing = asyncio.create_task(self._hand_in(entries))
        await eventually(lambda: self._is_past(first), within_s=WITHIN_S, what="the first of the flood", every_s=0.005)
        name = await self._carrier()
        assert name is not None
        await asyncio.sleep(self._dice.uniform(0, SOON_S))
        process = self._hosts.pop(name)
        process.send_signal(signal.SIGKILL)
        began_s = time.monotonic()
        _ = await process.wait()
        await handing
        last, reached = await self._last(), await self._upto()
        if reached < last:
            self.cut += 1
            await eventually(lambda: self._is_past(reached + 1), within_s=WITHIN_S, what="the next", every_s=0.02)
            self.away_s.append(time.monotonic() - began_s)

    async def report(self, kills: int) -> Report:
        """Wait until nothing moves any more, and count."""
        await eventually(self._is_carried, within_s=WITHIN_S, what="an empty post", every_s=0.2)
        with contextlib.suppress(AssertionError):
            await eventually(self._is_entered, within_s=WITHIN_S, what="all entries", every_s=0.5)
        tallies = await self._tallies()
        return Report(
            sent=self.sent,
            tallies=tallies,
            kills=kills,
            cut=self.cut,
            left=await self._left(),
            away_s=self.away_s or [0.0],
        )

    # --- inside

    async def _tallies(self) -> dict[str, Tally]:
        refs = {key: ActorRef(self._bus, f"{TYPE}/{key}") for key in self.sent}
        return {key: await ref.ask(1, returns=Tally, timeout_s=WITHIN_S) for key, ref in refs.items()}

    async def _is_entered(self) -> bool:
        try:
            tallies = await self._tallies()
        except CallboardError:
            # its host has just been killed: it is asked again
            return False
        return all(tally.wrong or tally.count >= self.sent[key] for key, tally in tallies.items())

    async def _hand_in(self, entries: int) -> None:
        writes = []
        for _ in range(entries):
            key = self._dice.choice(list(self.sent))
            writes.append(Write(subjects.tell(TYPE, key), msgspec.json.encode(Entry(self.sent[key])), _HEADERS))
            self.sent[key] += 1
        for start in range(0, len(writes), 100):
            acks = await self._bus.store_many(writes[start : start + 100], timeout_s=WITHIN_S)
            # an id would have the mailbox sort out what was carried twice, so none is handed in a second time
            assert all(isinstance(ack, PubAck) for ack in acks), acks[-1]

    async def _carrier(self) -> str | None:
        stored = await self._bus.get_last(subjects.ACTORS, f"cb.cursor.{TYPE}.0", from_leader=True)
        owner = cursors.decode(stored.data).owner if stored is not None else ""
        return owner if owner in self._hosts else None

    async def _upto(self) -> int:
        stored = await self._bus.get_last(subjects.ACTORS, subjects.posted(TYPE), from_leader=True)
        return msgspec.json.decode(stored.data, type=Position).upto if stored is not None else 0

    async def _is_past(self, seq: int) -> bool:
        return await self._upto() >= seq

    async def _last(self) -> int:
        info = await self._bus.stream_info(subjects.POST)
        assert info is not None
        return info.last_seq

    async def _left(self) -> int:
        info = await self._bus.stream_info(subjects.POST)
        assert info is not None
        return info.messages

    async def _is_carried(self) -> bool:
        return await self._left() == 0


_HEADERS = {"Cb-Type": "Entry"}


async def run(kills: int, folder: Path, *, entries: int = ENTRIES, seed: int = 1) -> Report:
    """Kill the carrier's host so often; return what became of every entry."""
    async with staged(folder) as stage:
        found = Round(folder, stage.bus, url=stage.server.url, seed=seed)
        try:
            await found.fill()
            for number in range(kills):
                await found.kill(entries)
                print(f"… kill {number + 1}, {found.cut} in mid-flood", file=sys.stderr, flush=True)  # noqa: T201
                await found.fill()
            return await found.report(kills)
        finally:
            await found.close()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--entries", type=int, default=ENTRIES, help="handed in around each kill")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", metavar="URL", help="be a host")
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.serve))
        return 0
    with tempfile.TemporaryDirectory(prefix="callboard-post-") as scratch:
        report = asyncio.run(run(given.kills, Path(scratch), entries=given.entries, seed=given.seed))
    print(report)  # noqa: T201 - a command
    for problem in report.problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
