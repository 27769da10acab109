"""Row o: a host joins while long turns run elsewhere; partitions move, turns stay where they are."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.options import Options
from bench.table import Row, Side
from callboard.runtime import subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus, Message
from tests.chaos.stage import Stage, staged
from tests.chaos.troupe import LONG, Long
from tests.chaos.turns import TurnVerdict, heard, judge
from tests.support.eventually import eventually

TURNS = 50
STEPS = 8
_WITHIN_S = 90.0


class Moves:
    """Owners of the partitions, by what is written of them."""

    def __init__(self) -> None:
        self.owners: dict[str, tuple[int, str]] = {}
        self.moved: dict[str, float] = {}

    async def begin(self, bus: Bus) -> None:
        """Read who owns what, and listen from then on."""
        await bus.subscribe("cb.cursor.*.*", self.hear)
        for stored in await bus.get_many(subjects.ACTORS, ["cb.cursor.*.*"]):
            self._note(stored.subject, stored.data)
        self.moved.clear()

    def hear(self, message: Message) -> None:
        """Take a cursor that is being written."""
        self._note(message.subject, message.data)

    def _note(self, subject: str, data: bytes) -> None:
        found = cursors.decode(data)
        epoch, owner = self.owners.get(subject, (0, ""))
        if found.epoch > epoch:
            self.owners[subject] = (found.epoch, found.owner)
            if owner not in ("", found.owner):
                self.moved[subject] = time.monotonic()


async def rows(options: Options) -> list[Row]:
    """Measure on a server and workers of its own, every write synced."""
    turns = 10 if options.is_quick else TURNS
    sent: dict[str, list[int]] = {f"j{number}": [number, number + turns] for number in range(turns)}
    moves = Moves()
    with tempfile.TemporaryDirectory(prefix="cb-bench-join-", dir=options.folder) as folder:
        async with staged(Path(folder), has_actors=True) as stage:
            await asyncio.gather(*(stage.fleet.start() for _ in range(2)))
            await _tell(stage, sent, steps=3 if options.is_quick else STEPS)
            await eventually(
                lambda: stage.fleet.count("start") >= turns, within_s=_WITHIN_S, what="turns", every_s=0.05
            )
            await moves.begin(stage.bus)
            began_s = time.monotonic()
            await stage.fleet.start()
            ready_s = time.monotonic() - began_s
            running = stage.fleet.count("start") - stage.fleet.count("end")
            await eventually(lambda: _is_done(stage, sent), within_s=_WITHIN_S, what="all outputs", every_s=0.25)
            verdict = await judge(stage.bus, stage.fleet, sent)
    return _rows(moves, verdict, began_s=began_s, ready_s=ready_s, turns=turns, running=running)


def _rows(moves: Moves, verdict: TurnVerdict, *, began_s: float, ready_s: float, turns: int, running: int) -> list[Row]:
    times = sorted(moves.moved.values())
    long = sum(f".{LONG}." in subject for subject in moves.moved)
    broken = sum(
        len(each) for each in (verdict.lost, verdict.doubled, verdict.disordered, verdict.overlaps, verdict.repeated)
    )
    shared: dict[str, Any] = {"key": "o", "mode": "always", "concurrency": f"{turns} turns"}
    return [
        Row(
            what="a host joins: turns run again, lost, doubled, out of order",
            unit="",
            ours=_one(broken + verdict.reruns),
            note=f"{verdict.starts} turns begun, {running} running when it was ready",
            goal="0",
            **shared,
        ),
        Row(
            what="a host joins: partitions moved",
            unit="",
            ours=_one(len(moves.moved)),
            note=f"{long} of those with the turns",
            **shared,
        ),
        Row(
            what="a host joins: first to last partition moved",
            unit="ms",
            ours=_one((times[-1] - times[0]) * 1000 if times else 0.0),
            note=f"first {times[0] - began_s if times else 0:.2f} s after the process began, ready at {ready_s:.2f} s",
            **shared,
        ),
    ]


async def _tell(stage: Stage, sent: dict[str, list[int]], *, steps: int) -> None:
    for key, (first, second) in sent.items():
        ref = ActorRef(stage.bus, f"{LONG}/{key}")
        _ = await ref.tell(Long(n=first, order=0, steps=steps, step_s=1.0))
        _ = await ref.tell(Long(n=second, order=1, steps=1, step_s=0.05))


async def _is_done(stage: Stage, sent: dict[str, list[int]]) -> bool:
    outputs = await heard(stage.bus, "sink")
    return all(len(outputs.get(key, [])) >= len(numbers) for key, numbers in sent.items())


def _one(figure: float) -> Side:
    return Side(name="ours", figures=[figure])
