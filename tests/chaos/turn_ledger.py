"""The ledger of long turns: hosts and servers die under turns that outlast every lease; nothing is run twice or lost.

``python -m tests.chaos.turn_ledger --turns 1000 --seed 7`` runs it by hand and prints its table.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from msgspec import Struct

from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.errors import BusError
from tests.chaos.checker import Fault, Run, runs_of, table
from tests.chaos.nemesis import Faults, Nemesis
from tests.chaos.stage import Stage, staged
from tests.chaos.troupe import LONG, SINK, Long
from tests.chaos.turns import TurnVerdict, heard, judge
from tests.support.eventually import eventually

SETTLE_WITHIN_S = 180.0
ATTEMPT_S = 2.0
RETRY_S = 0.1
LOOK_EVERY_S = 0.1


class Plan(Struct, frozen=True, kw_only=True):
    """How large a run is.

    Attributes:
        keys: Actors that the turns are spread over.
        queued: Mails that wait for an actor, on average, while there are more to send.
        steps: Steps of a turn, with ``step_s`` longer than any lease or silence that counts as death.
        faults: What is done meanwhile.
    """

    turns: int = 1000
    seed: int = 7
    keys: int = 40
    queued: int = 3
    workers: int = 4
    servers: int = 1
    steps: int = 5
    step_s: float = 1.0
    faults: Faults = Faults(worker_kills=20, freezes=5, server_kills=5, outages=1, double_kills=3)


class Report(Struct, frozen=True, kw_only=True):
    """What a run left."""

    plan: Plan
    faults: list[Fault]
    runs: list[Run]
    verdict: TurnVerdict
    acked: int
    began_s: float
    took_s: float

    @property
    def problems(self) -> list[str]:
        """Broken promises; a run in which nothing ran again has tested nothing and is one of them."""
        found = list(self.verdict.problems)
        if not self.verdict.reruns:
            found.append("no turn was begun a second time: this has tested nothing")
        if self.acked != self.plan.turns:
            found.append(f"{self.acked} of {self.plan.turns} mails were acknowledged")
        if len(self.faults) != self.plan.faults.count:
            found.append(f"{len(self.faults)} of {self.plan.faults.count} faults were injected")
        return found

    def __str__(self) -> str:
        """Return the table."""
        plan = self.plan
        began_s = self.began_s
        head = (
            f"seed {plan.seed}: {plan.turns} turns of {plan.steps} x {plan.step_s:g} s, {plan.keys} actors, "
            f"{plan.workers} workers, {plan.servers} server(s), {len(self.faults)} faults, {self.took_s:.0f} s"
        )
        lines = [head, *table(self.faults, self.runs, began_s=began_s), str(self.verdict)]
        lines += [f"  second run: {a.task} by {a.pid} {a.start_s - began_s:.2f}..{a.end_s - began_s:.2f}, "
                  f"by {b.pid} at {b.start_s - began_s:.2f}" for a, b in self.verdict.overlaps[:10]]  # fmt: skip
        return "\n".join(lines)


class Post:
    """Sends the mails of a run, so many ahead of what has ended.

    Attributes:
        sent: Numbers by key, in the order of their mail.
    """

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self.sent: dict[str, list[int]] = defaultdict(list)
        self._stage = stage
        self._plan = plan
        self._dice = random.Random(plan.seed)

    async def send_all(self) -> None:
        """Send every mail until it is acknowledged; each key's one after the other."""
        plan = self._plan
        fleet = self._stage.fleet
        for n in range(plan.turns):
            await eventually(
                lambda: n - fleet.count("end") < plan.queued * plan.keys,  # noqa: B023 - awaited at once
                within_s=SETTLE_WITHIN_S,
                what=f"room for mail {n}",
                every_s=LOOK_EVERY_S,
            )
            # the first rounds reach every key, the rest are dealt out
            number = n % plan.keys if n < plan.queued * plan.keys else self._dice.randrange(plan.keys)
            await self._send(f"k{number}", n)

    async def _send(self, key: str, n: int) -> None:
        plan = self._plan
        ref = ActorRef(self._stage.bus, f"{LONG}/{key}")
        numbers = self.sent[key]
        mail = Long(n=n, order=len(numbers), steps=plan.steps, step_s=plan.step_s)
        while True:
            try:
                # the same id each time: what was stored unseen is not stored again
                _ = await ref.tell(mail, id=f"n{n}", timeout_s=ATTEMPT_S)
            except BusError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                numbers.append(n)
                return


async def run(plan: Plan, folder: Path, *, breaks: tuple[str, ...] = ()) -> Report:
    """Run it and return the report. ``breaks`` takes protections away, for the controls."""
    began_s = time.monotonic()
    async with staged(folder, servers=plan.servers, has_actors=True, breaks=breaks) as stage:
        await asyncio.gather(*(stage.fleet.start() for _ in range(plan.workers)))
        post = Post(stage, plan)
        nemesis = Nemesis(
            stage, plan.faults, seed=plan.seed + 1, total=plan.turns, pause=plan.turns // (2 * plan.faults.count + 2)
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(post.send_all(), name="post")
            group.create_task(nemesis.run(), name="nemesis")
        await eventually(
            lambda: _is_done(stage, plan), within_s=SETTLE_WITHIN_S, what="all outputs, and quiet", every_s=0.5
        )
        verdict = await judge(stage.bus, stage.fleet, dict(post.sent))
        return Report(
            plan=plan,
            faults=nemesis.faults,
            runs=runs_of(stage.fleet.events(), stage.fleet.deaths),
            verdict=verdict,
            acked=sum(len(numbers) for numbers in post.sent.values()),
            began_s=began_s,
            took_s=time.monotonic() - began_s,
        )


async def _is_done(stage: Stage, plan: Plan) -> bool:
    """Return whether every mail reached the sink and no run is under way that could still add to it."""
    try:
        outputs = await heard(stage.bus, SINK)
    except BusError:
        return False
    if sum(len(set(numbers)) for numbers in outputs.values()) < plan.turns:
        return False
    alive = {worker.pid for worker in stage.fleet.alive}
    events = [event for event in stage.fleet.events() if event.pid in alive]
    starts = sum(event.kind == "start" for event in events)
    return starts == sum(event.kind in {"end", "fail"} for event in events)


def small(seed: int) -> Plan:
    """Return the plan of a run of a minute with one fault of each kind."""
    faults = Faults(worker_kills=1, freezes=1, server_kills=1, outages=1, double_kills=1)
    return Plan(turns=60, seed=seed, keys=15, queued=2, faults=faults)


def clustered(seed: int) -> Plan:
    """Return the plan of a small run on three servers, whose leader is killed, is away and hangs."""
    faults = Faults(worker_kills=2, freezes=1, server_kills=2, server_freezes=2)
    return Plan(turns=100, seed=seed, keys=15, queued=2, servers=3, faults=faults)


def _arguments() -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=plan.turns)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--keys", type=int, default=plan.keys, help="actors")
    parser.add_argument("--workers", type=int, default=plan.workers)
    parser.add_argument("--servers", type=int, default=plan.servers, choices=(1, 3))
    parser.add_argument("--kills", type=int, default=plan.faults.worker_kills, help="kill -9 of a host")
    parser.add_argument("--freezes", type=int, default=plan.faults.freezes, help="SIGSTOP of a host for 7 s")
    parser.add_argument("--server-kills", type=int, default=plan.faults.server_kills, help="kill -9 of the server")
    parser.add_argument("--outages", type=int, default=plan.faults.outages, help="the server away for 6 s")
    parser.add_argument("--double-kills", type=int, default=plan.faults.double_kills, help="a host and the server")
    parser.add_argument("--server-freezes", type=int, default=0, help="SIGSTOP of the server for 8 s; with three")
    parser.add_argument("--keep", type=Path, help="folder for journals and the server's store, kept afterwards")
    return parser.parse_args()


def main() -> int:
    """Run from the command line; the status is 1 when a promise was broken."""
    given = _arguments()
    plan = Plan(
        turns=given.turns,
        seed=given.seed,
        keys=given.keys,
        workers=given.workers,
        servers=given.servers,
        faults=Faults(
            worker_kills=given.kills,
            freezes=given.freezes,
            server_kills=given.server_kills,
            outages=given.outages,
            double_kills=given.double_kills,
            server_freezes=given.server_freezes,
        ),
    )
    with tempfile.TemporaryDirectory(prefix="callboard-turns-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(run(plan, folder))
    print(report)  # noqa: T201 - a command
    for problem in report.problems:
        print(f"BROKEN: {problem}")  # noqa: T201 - a command
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
