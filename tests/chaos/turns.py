"""Evidence about turns: what the actors' files, their records and their journals in the stream say together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Struct

from callboard.runtime import subjects
from callboard.runtime.actor import record, step
from callboard.runtime.bus.base import Bus
from tests.chaos.checker import Run, overlaps, repeats, runs_of
from tests.chaos.fleet import Fleet
from tests.chaos.journal import Event
from tests.chaos.troupe import LONG, SINK, Heard


class TurnVerdict(Struct, frozen=True, kw_only=True):
    """What became of a load of turns; ``problems`` is empty when every promise was kept.

    Attributes:
        lost: Mails that were acknowledged and did not reach the sink.
        doubled: Outputs that reached the sink more than once.
        disordered: Keys whose outputs, or whose own state, are out of order or incomplete.
        overlaps: Turns begun while another living worker was running them.
        repeated: Steps that ran again after their result was recorded: ``(turn, step)``.
        starts: Turns begun in all.
        reruns: Turns begun again after a death.
        steps: Steps begun in all.
        steps_again: Steps begun again because no result was recorded.
    """

    lost: list[int]
    doubled: list[int]
    disordered: list[str]
    overlaps: list[tuple[Run, Run]]
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
            "recorded steps repeated": self.repeated,
        }
        return [f"{name}: {len(what)} {what[:5]}" for name, what in found.items() if what]

    def __str__(self) -> str:
        """Return one line of figures."""
        return (
            f"turns begun {self.starts}, begun again after a death {self.reruns}, second runs of a living worker's "
            f"turn {len(self.overlaps)}; steps begun {self.steps}, unrecorded ones begun again {self.steps_again}, "
            f"recorded ones repeated {len(self.repeated)}; lost {len(self.lost)}, doubled {len(self.doubled)}, "
            f"out of order {len(self.disordered)}"
        )


async def judge(bus: Bus, fleet: Fleet, sent: dict[str, list[int]]) -> TurnVerdict:
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


async def recorded_by(bus: Bus) -> dict[tuple[int, int], int]:
    """Return the process whose run of a step was recorded, by turn and step."""
    found: dict[tuple[int, int], int] = {}
    async for stored in bus.read(subjects.ACTORS, subjects=(f"cb.step.{LONG}.>",)):
        entry = step.decode(stored.data)
        if entry.name.startswith("step "):
            # the value names the step, the arguments the turn: both stand in the mail, so it is read from there
            mail_seq = int(stored.subject.split(".")[4])
            found[mail_seq, int(entry.name.removeprefix("step "))] = int(entry.worker.split("-")[-2])
    numbers = {}
    async for stored in bus.read(subjects.ACTORS, subjects=(f"cb.mbox.{LONG}.*.*",)):
        numbers[stored.seq] = int(msgspec.json.decode(stored.data)["n"])
    return {(numbers[seq], number): pid for (seq, number), pid in found.items() if seq in numbers}


def repeated_steps(events: list[Event], recorded: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    """Return the steps that began once more after the run that was recorded had returned."""
    begun: dict[tuple[int, int], list[Event]] = defaultdict(list)
    ended: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if event.kind == "step":
            begun[event.n, event.step].append(event)
        elif event.kind == "stepped":
            ended[event.n, event.step].append(event)
    found = []
    for place, pid in recorded.items():
        returned = [event.at_s for event in ended[place] if event.pid == pid]
        if not returned:
            # recorded by a process that never ran it to its end
            found.append(place)
        elif any(event.at_s > max(returned) for event in begun[place]):
            found.append(place)
    return found
