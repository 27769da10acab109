"""How many worker processes there should be: a plain function of the work, the bounds and the recent past."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

# What fits one process fewer must do so with this much room, or the last one would come and go.
HEADROOM = 1.1


class Rules(Struct, frozen=True, kw_only=True):
    """Bounds and patience.

    Attributes:
        min: The fewest processes.
        max: The most.
        cool_down_s: A process goes only when it was not needed for this long.
        grow_after_s: A process is added to others only when a task has waited for this long; the first one at once.
    """

    min: int
    max: int
    cool_down_s: float = 30.0
    grow_after_s: float = 0.5


class Demand(Struct, frozen=True, kw_only=True):
    """One kind of work.

    Attributes:
        name: The capability, or the actor type.
        load: Tasks pending and in flight; actors with mail.
        slots: How many of them one process takes at a time.
        elsewhere: How many of them are taken by workers that are not ours.
        oldest_s: How long one has waited by now.
    """

    name: str
    load: int
    slots: int
    elsewhere: int = 0
    oldest_s: float = math.inf

    def needs(self, headroom: float = 1.0) -> int:
        """Return the processes that this work alone keeps busy."""
        return math.ceil(max(0.0, self.load * headroom - self.elsewhere) / max(1, self.slots))


class Need(Struct, frozen=True):
    """How many processes were needed at a moment, monotonic seconds."""

    at_s: float
    processes: int


class Decision(Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        processes: How many there shall be.
        why: In a few words.
        past: What to hand to the next call.
    """

    processes: int
    why: str
    past: tuple[Need, ...] = ()


def decide(demands: Sequence[Demand], *, processes: int, past: Sequence[Need], rules: Rules, now_s: float) -> Decision:
    """Return how many processes there shall be.

    Growing follows the work at once (after ``grow_after_s`` beside running processes); shrinking waits until all of the
    last ``cool_down_s`` needed fewer, and keeps as many as any moment of it needed.

    Args:
        demands: The work, each kind with slots of its own in every process.
        processes: How many there are, without those that are leaving.
        past: ``Decision.past`` of the last call; empty at first.
        rules: Bounds and patience.
        now_s: Monotonic seconds.
    """
    greatest = max(demands, key=lambda demand: demand.needs(), default=None)
    need = greatest.needs() if greatest is not None else 0
    calm = _bounded(max((demand.needs(HEADROOM) for demand in demands), default=0), rules)
    seen = _recent([*past, Need(now_s, calm)], now_s - rules.cool_down_s)
    if not rules.min <= processes <= rules.max:
        return Decision(processes=_bounded(processes, rules), why="the bounds say so", past=seen)
    if greatest is not None and _bounded(need, rules) > processes:
        hungry = [demand for demand in demands if demand.needs() > processes]
        waited_s = max(demand.oldest_s for demand in hungry)
        if processes and waited_s < rules.grow_after_s:
            return Decision(processes=processes, why=f"{greatest.name} has a burst of {greatest.load}", past=seen)
        why = f"{greatest.name}: {greatest.load} for {greatest.slots} slots a process"
        return Decision(processes=_bounded(need, rules), why=why, past=seen)
    highest = max(each.processes for each in seen)
    if highest < processes and seen[0].at_s <= now_s - rules.cool_down_s:
        why = f"no more than {highest} needed for {rules.cool_down_s:g} s"
        return Decision(processes=highest, why=why, past=seen)
    return Decision(processes=processes, why="as many as needed" if highest >= processes else "cooling down", past=seen)


def _bounded(number: int, rules: Rules) -> int:
    return max(rules.min, min(rules.max, number))


def _recent(needs: Sequence[Need], since_s: float) -> tuple[Need, ...]:
    """Return what is younger than ``since_s`` and, to tell how far it goes back, one that is older."""
    older = [need for need in needs if need.at_s <= since_s]
    return (*older[-1:], *(need for need in needs if need.at_s > since_s))
