"""How much work there is: what an autoscaler goes by, the local one as well as KEDA.

The signal of a capability is ``pending + in_flight`` of its consumers, ``num_pending + num_ack_pending`` to the broker.
What is scheduled for later, long back-offs among it, waits on other subjects and does not count until it is due.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from callboard.runtime import labels, subjects
from callboard.runtime.bus.base import Bus, ConsumerInfo
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.control import CONFIG_BUCKET, PAUSE_PREFIX

# Looks that are remembered of each capability; of more, a task that waits for long is taken for a younger one.
MAX_LOOKS = 120
_DEPTH = 3  # cb.task.<capability>


class Backlog(Struct, frozen=True, kw_only=True):
    """The work of one capability, over its lanes and what has fallen due.

    Attributes:
        pending: Tasks that no worker has.
        in_flight: Tasks handed out and not settled; those in a retry's pause of under 30 s count here.
        oldest_s: Seconds since the oldest pending task was stored; 0 when none is pending.
        deliveries: Tasks handed out so far, each time counted.
        is_paused: Whether an operator holds it back.
    """

    capability: str
    pending: int = 0
    in_flight: int = 0
    oldest_s: float = 0.0
    deliveries: int = 0
    is_paused: bool = False

    @property
    def load(self) -> int:
        """The signal: 0 while it is paused, for no process could begin anything."""
        return 0 if self.is_paused else self.pending + self.in_flight


class Ages:
    """How long the oldest pending task has waited at least, for those who may not read the queue.

    Tasks are handed out in their order. If fewer were handed out since a look than were pending then, one of those is
    pending still, and has waited since. What is handed out again makes it a little less, never more.
    """

    def __init__(self) -> None:
        """Know of no look."""
        # by capability: when it was looked, what was pending then and had been handed out by then
        self._looks: dict[str, deque[tuple[float, int, int]]] = {}

    def of(self, work: Backlog, now_s: float) -> float:
        """Take in what was seen of a capability at ``now_s``, monotonic; return seconds, 0 when none is pending."""
        looks = self._looks.setdefault(work.capability, deque(maxlen=MAX_LOOKS))
        if looks and work.deliveries < looks[-1][2]:
            # its consumer was made anew
            looks.clear()
        while looks and work.deliveries - looks[0][2] >= looks[0][1]:
            looks.popleft()
        if work.pending:
            looks.append((now_s, work.pending, work.deliveries))
        return now_s - looks[0][0] if looks else 0.0


async def read(
    bus: Bus, names: Collection[str], *, clock: Clock = SYSTEM_CLOCK, with_age: bool = True
) -> list[Backlog]:
    """Return the work of each of ``names``. Three round trips, and one for each lane in which tasks are pending.

    Without ``with_age``, which takes leave to read the queue, ``oldest_s`` stays 0.

    Raises:
        BusError: If the broker does not answer.
    """
    infos: dict[str, list[ConsumerInfo]] = {name: [] for name in names}
    for info in [*await bus.consumers(subjects.WORK), *await bus.consumers(subjects.LATER)]:
        if (name := _capability(info.config.filter_subject)) in infos:
            infos[name].append(info)
    paused = {entry.key.removeprefix(PAUSE_PREFIX) for entry in await Bucket(bus, CONFIG_BUCKET).entries(PAUSE_PREFIX)}
    found = []
    for name, lanes in infos.items():
        ages = [await _oldest_s(bus, info, clock) for info in lanes if info.pending and with_age]
        found.append(
            Backlog(
                capability=name,
                pending=sum(info.pending for info in lanes),
                in_flight=sum(info.ack_pending for info in lanes),
                oldest_s=max(ages, default=0.0),
                deliveries=sum(info.deliveries for info in lanes),
                is_paused=not paused.isdisjoint(labels.reach(name)),
            )
        )
    return found


async def _oldest_s(bus: Bus, info: ConsumerInfo, clock: Clock) -> float:
    stored = await bus.get_next(info.stream, info.delivered_seq + 1, info.config.filter_subject)
    return max(0.0, (clock.now() - stored.time).total_seconds()) if stored is not None else 0.0


async def labelled(bus: Bus, bases: Iterable[str]) -> dict[str, int]:
    """Return the pools by label of some capabilities that were ever offered or have tasks, and how many tasks wait.

    Four requests, in the time of two round trips.

    Raises:
        BusError: If the broker does not answer.
    """
    known = set(bases)
    waiting: dict[str, int] = {}
    work, later, counted = await asyncio.gather(
        bus.consumers(subjects.WORK), bus.consumers(subjects.LATER), counts(bus)
    )
    for info in [*work, *later]:
        if _asks_for_one_of(name := _capability(info.config.filter_subject), known):
            waiting[name] = 0
    return waiting | {name: count for name, count in counted.items() if _asks_for_one_of(name, known)}


async def counts(bus: Bus) -> dict[str, int]:
    """Return how many tasks of each name lie on the broker, waiting, running or fallen due. Two round trips.

    Raises:
        BusError: If the broker does not answer.
    """
    found: dict[str, int] = {}
    for stream, wildcard in ((subjects.WORK, "cb.task.>"), (subjects.LATER, "cb.due.*")):
        for subject, count in (await bus.subject_counts(stream, wildcard)).items():
            name = _capability(subject)
            found[name] = found.get(name, 0) + count
    return found


def fitting(names: Iterable[str], own: Mapping[str, str]) -> list[str]:
    """Return those pools by label that a worker with the labels ``own`` may serve."""
    return sorted(name for name in names if labels.fits(own, labels.split(name)[1]))


def _capability(subject: str) -> str:
    parts = subject.split(".")
    return parts[2] if len(parts) >= _DEPTH and parts[1] in ("task", "due") else ""


def _asks_for_one_of(name: str, bases: set[str]) -> bool:
    base, wanted = labels.split(name)
    return bool(wanted) and base in bases
