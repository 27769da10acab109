"""Was a promise broken? Plain functions over sets of task ids and over what handlers wrote down.

``lost``, ``doubled`` and ``phantom`` are about recorded effects; ``overlaps`` is about runs: a start of a task while
another living worker was running it. ``reruns`` is not a fault, it is the proof that a fault has tested something.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from msgspec import Struct

from tests.chaos.journal import Event


class Death(Struct, frozen=True, kw_only=True):
    """A worker that counts as dead from here on: killed, or stopped for longer than its leases last.

    Attributes:
        until_s: When it was let go on, for a stopped one. Runs that were under way at ``at_s`` stay dead.
    """

    pid: int
    at_s: float
    until_s: float = math.inf


class Fault(Struct, frozen=True, kw_only=True):
    """A fault that was injected, to be accounted for.

    Attributes:
        pids: Workers it hit; empty for the server, which hits them all.
    """

    name: str
    at_s: float
    pids: frozenset[int] = frozenset()


class Run(Struct, frozen=True, kw_only=True):
    """One run of a task: from its start to its end, its worker's death, or for ever.

    Attributes:
        has_returned: It came to its end without an error, in the life of its worker.
        has_raised: It ended with an error, or was broken off, in the life of its worker.
    """

    task: str
    pid: int
    attempt: int
    start_s: float
    end_s: float
    has_returned: bool
    has_raised: bool = False


class Evidence(Struct, frozen=True, kw_only=True):
    """Everything known after a load has settled.

    Attributes:
        acked: Ids whose acknowledgement the submitter saw.
        offered: Ids that were sent at all, acknowledged or not.
        unnamed_unknown: Submissions without an id whose outcome is unknown: so many effects may bear an unknown id.
        effects: Records by id.
        statuses: Status of the record by id.
        dead: Dead-lettered ids.
        pending: Ids still in the queue.
    """

    acked: AbstractSet[str]
    offered: AbstractSet[str]
    effects: Mapping[str, int]
    statuses: Mapping[str, str]
    dead: AbstractSet[str]
    pending: AbstractSet[str]
    events: Sequence[Event]
    deaths: Sequence[Death] = ()
    unnamed_unknown: int = 0


class Verdict(Struct, frozen=True, kw_only=True):
    """What the checker found; ``problems`` says it in words and is empty when every promise was kept.

    Attributes:
        lost: Acknowledged and nowhere to be found.
        doubled: Ids with more than one record.
        phantom: Records nobody asked for.
        overlaps: ``(earlier run, later run)`` of one task, the later one begun while the earlier was alive and running.
        buried_alive: Dead-lettered although a run of it ended well.
        starts: Handler starts in all.
        reruns: Starts of an attempt that had begun before.
        retries: Starts of a further attempt, after a run that raised.
    """

    lost: frozenset[str]
    doubled: dict[str, int]
    phantom: frozenset[str]
    overlaps: list[tuple[Run, Run]]
    buried_alive: frozenset[str]
    starts: int
    reruns: int
    retries: int

    @property
    def problems(self) -> list[str]:
        """What is broken, in words."""
        found = {
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "phantom": len(self.phantom),
            "overlapping starts": len(self.overlaps),
            "buried alive": len(self.buried_alive),
        }
        return [f"{name}: {count}" for name, count in found.items() if count]


def check(evidence: Evidence) -> Verdict:
    """Return what is wrong with a load that has settled."""
    runs = runs_of(evidence.events, evidence.deaths)
    effects = frozenset(evidence.effects)
    strangers = effects - evidence.offered
    well_ended = {run.task for run in runs if run.has_returned}
    return Verdict(
        lost=frozenset(evidence.acked - effects - evidence.pending - evidence.dead),
        doubled={task: count for task, count in evidence.effects.items() if count > 1},
        phantom=frozenset(strangers) if len(strangers) > evidence.unnamed_unknown else frozenset(),
        overlaps=overlaps(runs),
        buried_alive=frozenset(evidence.dead & well_ended),
        starts=len(runs),
        reruns=len(repeats(runs)),
        retries=len({(run.task, run.attempt) for run in runs}) - len({run.task for run in runs}),
    )


def runs_of(events: Iterable[Event], deaths: Sequence[Death]) -> list[Run]:
    """Return the runs, by start; a run without an end lasted until its worker's death, or lasts still."""
    starts: list[Event] = []
    ends: dict[tuple[int, str], list[Event]] = defaultdict(list)
    for event in events:
        if event.kind == "start":
            starts.append(event)
        elif event.kind in {"end", "fail"}:
            ends[event.pid, event.task].append(event)
    runs = []
    for start in sorted(starts, key=lambda event: event.at_s):
        end = next((event for event in ends[start.pid, start.task] if event.at_s >= start.at_s), None)
        ended_s = end.at_s if end is not None else math.inf
        own_deaths = [death.at_s for death in deaths if death.pid == start.pid and death.at_s >= start.at_s]
        died_s = min(own_deaths, default=math.inf)
        runs.append(
            Run(
                task=start.task,
                pid=start.pid,
                attempt=start.attempt,
                start_s=start.at_s,
                end_s=min(ended_s, died_s),
                has_returned=end is not None and end.kind == "end" and ended_s < died_s,
                has_raised=end is not None and end.kind == "fail" and ended_s < died_s,
            )
        )
    return runs


def overlaps(runs: Iterable[Run]) -> list[tuple[Run, Run]]:
    """Return pairs of runs of one task where the later began while the earlier was still going on."""
    found: list[tuple[Run, Run]] = []
    for own in by_task(runs).values():
        for index, later in enumerate(own):
            found.extend((earlier, later) for earlier in own[:index] if later.start_s < earlier.end_s)
    return found


def repeats(runs: Iterable[Run]) -> list[Run]:
    """Return the runs of an attempt that had begun before."""
    return [
        later
        for own in by_task(runs).values()
        for index, later in enumerate(own)
        if any(earlier.attempt == later.attempt for earlier in own[:index])
    ]


def by_task(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return each task's runs, by start."""
    grouped: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda item: item.start_s):
        grouped[run.task].append(run)
    return grouped


class Row(Struct, frozen=True, kw_only=True):
    """What a fault did.

    Attributes:
        starts: Runs begun before it.
        in_flight: Runs under way that it hit.
        reruns: Starts of an attempt that had begun before, between this fault and the next.
        first_rerun_s: How long after it the first of them began.
    """

    fault: Fault
    starts: int
    in_flight: int
    reruns: int
    first_rerun_s: float


def account(faults: Sequence[Fault], runs: Sequence[Run]) -> list[Row]:
    """Return what each fault did, in order."""
    rerun_at = sorted(run.start_s for run in repeats(runs))
    rows = []
    for index, fault in enumerate(faults):
        next_s = faults[index + 1].at_s if index + 1 < len(faults) else math.inf
        in_flight = sum(
            run.start_s <= fault.at_s <= run.end_s and (not fault.pids or run.pid in fault.pids) for run in runs
        )
        starts = sum(run.start_s <= fault.at_s for run in runs)
        own = [at_s - fault.at_s for at_s in rerun_at if fault.at_s <= at_s < next_s]
        rows.append(
            Row(
                fault=fault,
                starts=starts,
                in_flight=in_flight,
                reruns=len(own),
                first_rerun_s=min(own, default=math.inf),
            )
        )
    return rows


def table(faults: Sequence[Fault], runs: Sequence[Run], *, began_s: float) -> list[str]:
    """Return lines that say what each fault did; times count from ``began_s``."""
    lines = [f"{'at s':>6}  {'fault':<28}{'starts so far':>14}{'in flight':>11}{'re-runs':>9}{'first after s':>15}"]
    for row in account(faults, runs):
        first = f"{row.first_rerun_s:.1f}" if row.reruns else "-"
        lines.append(
            f"{row.fault.at_s - began_s:6.1f}  {row.fault.name:<28}{row.starts:>14}{row.in_flight:>11}"
            f"{row.reruns:>9}{first:>15}"
        )
    return lines


def spins(events: Iterable[Event], *, gap_s: float) -> Counter[str]:
    """Return how often each task was handed out again sooner than ``gap_s`` after it was handed out before."""
    last: dict[str, float] = {}
    found: Counter[str] = Counter()
    for event in events:
        if event.kind == "claim":
            if event.at_s - last.get(event.task, -math.inf) < gap_s:
                found[event.task] += 1
            last[event.task] = event.at_s
    return found
