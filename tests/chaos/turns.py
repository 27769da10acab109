"""Evidence about turns: what the actors' files, their records and their journals in the stream say together."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from msgspec import UNSET, Struct

from callboard.runtime import subjects
from callboard.runtime.actor import record, step
from callboard.runtime.bus.base import Bus
from tests.chaos.checker import Death, Run, overlaps, repeats, runs_of
from tests.chaos.journal import Event
from tests.chaos.troupe import LONG, SINK, Heard

# Who looked just before a record stood may begin just after: that long a look may take on a busy machine. A step that
# is begun again after its worker's death begins much later.
READ_S = 0.25


class Witnesses(Protocol):
    """The processes of a run, and what they wrote down."""

    @property
    def deaths(self) -> list[Death]:
        """Processes that ended."""

    @property
    def crashed(self) -> set[int]:
        """Processes that ended by themselves, as far as ``note_deaths`` has looked."""

    def note_deaths(self) -> None:
        """Look for processes that ended by themselves."""

    def events(self) -> list[Event]:
        """Return everything written down so far, by time."""


class Recorded(Struct, frozen=True):
    """The record of a step: the process whose run it is, and when it was stored, in monotonic seconds."""

    pid: int
    at_s: float


class TurnVerdict(Struct, frozen=True, kw_only=True):
    """What became of a load of turns; ``problems`` is empty when every promise was kept.

    Attributes:
        lost: Mails that were acknowledged and did not reach the sink.
        doubled: Outputs that reached the sink more than once.
        disordered: Keys whose outputs, or whose own state, are out of order or incomplete.
        overlaps: Turns begun while another living worker was running them.
        broken_off: Turns that a living worker did not bring to their end, so that they were begun again.
        crashed: Workers that ended by themselves.
        repeated: Steps that ran again after their result was recorded: ``(turn, step)``.
        starts: Turns begun in all.
        reruns: Turns begun again.
        steps: Steps begun in all.
        steps_again: Steps begun again because no result was recorded.
    """

    lost: list[int]
    doubled: list[int]
    disordered: list[str]
    overlaps: list[tuple[Run, Run]]
    broken_off: list[Run]
    crashed: list[int]
    repeated: list[tuple[int, int]]
    starts: int
    reruns: int
    steps: int
    steps_again: int

    @property
    def problems(self) -> list[str]:
        """What is broken, in words."""
        found: dict[str, Sequence[object]] = {
            "lost": self.lost,
            "doubled outputs": self.doubled,
            "out of order": self.disordered,
            "second runs of a living worker's turn": self.overlaps,
            "living workers' turns broken off": self.broken_off,
            "workers that ended by themselves": self.crashed,
            "recorded steps repeated": self.repeated,
        }
        return [f"{name}: {len(what)} {what[:5]}" for name, what in found.items() if what]

    def __str__(self) -> str:
        """Return one line of figures."""
        return (
            f"turns begun {self.starts}, begun again {self.reruns}, second runs of a living worker's turn "
            f"{len(self.overlaps)}, broken off {len(self.broken_off)}; steps begun {self.steps}, unrecorded ones begun "
            f"again {self.steps_again}, "
            f"recorded ones repeated {len(self.repeated)}; lost {len(self.lost)}, doubled {len(self.doubled)}, "
            f"out of order {len(self.disordered)}"
        )


async def judge(bus: Bus, fleet: Witnesses, sent: dict[str, list[int]]) -> TurnVerdict:
    """Return what is wrong with a load that has settled. ``sent``: numbers by key, in the order of their mail."""
    fleet.note_deaths()
    events = fleet.events()
    runs = runs_of(events, fleet.deaths)
    outputs = await heard(bus, SINK)
    own = await heard(bus, LONG)
    counts = Counter(n for numbers in outputs.values() for n in numbers)
    begun = [event for event in events if event.kind == "step"]
    return TurnVerdict(
        lost=[n for numbers in sent.values() for n in numbers if not counts[n]],
        doubled=[n for n, count in counts.items() if count > 1],
        disordered=[key for key, numbers in sent.items() if outputs.get(key) != numbers or own.get(key) != numbers],
        overlaps=overlaps(runs),
        broken_off=[run for run in runs if run.has_raised],
        crashed=sorted(fleet.crashed),
        repeated=repeated_steps(events, await recorded_by(bus)),
        starts=len(runs),
        reruns=len(repeats(runs)),
        steps=len(begun),
        steps_again=len(begun) - len({(event.n, event.step) for event in begun}),
    )


async def heard(bus: Bus, kind: str) -> dict[str, list[int]]:
    """Return the numbers in the state of every actor of a type, by key."""
    found = {}
    for stored in await bus.get_many(subjects.ACTORS, [f"cb.state.{kind}.*"]):
        _, key = subjects.actor_of(stored.subject)
        state = record.decode(stored.data).state
        found[key] = msgspec.json.decode(state, type=Heard).numbers if state is not UNSET else []
    return found


async def recorded_by(bus: Bus) -> dict[tuple[int, int], Recorded]:
    """Return what was recorded of each step, by turn and step."""
    found: dict[tuple[int, int], Recorded] = {}
    # the server stamps what it stores with the wall clock of this machine
    offset_s = datetime.now(UTC).timestamp() - time.monotonic()
    async for stored in bus.read(subjects.ACTORS, subjects=(f"cb.step.{LONG}.>",)):
        entry = step.decode(stored.data)
        if entry.name.startswith("step "):
            # the value names the step, the arguments the turn: both stand in the mail, so it is read from there
            mail_seq = int(stored.subject.split(".")[4])
            place = mail_seq, int(entry.name.removeprefix("step "))
            found[place] = Recorded(pid=int(entry.worker.split("-")[-2]), at_s=stored.time.timestamp() - offset_s)
    numbers = {}
    async for stored in bus.read(subjects.ACTORS, subjects=(f"cb.mbox.{LONG}.*.*",)):
        numbers[stored.seq] = int(msgspec.json.decode(stored.data)["n"])
    return {(numbers[seq], number): entry for (seq, number), entry in found.items() if seq in numbers}


def repeated_steps(events: list[Event], recorded: Mapping[tuple[int, int], Recorded]) -> list[tuple[int, int]]:
    """Return the steps that began once more after a run of them was recorded, or whose record nobody ran."""
    begun: dict[tuple[int, int], list[Event]] = defaultdict(list)
    ended: dict[tuple[int, int], set[int]] = defaultdict(set)
    for event in events:
        if event.kind == "step":
            begun[event.n, event.step].append(event)
        elif event.kind == "stepped":
            ended[event.n, event.step].add(event.pid)
    return [
        place
        for place, record in recorded.items()
        if record.pid not in ended[place] or any(event.at_s > record.at_s + READ_S for event in begun[place])
    ]
