"""Who gets the next request: a pure choice among candidates, and the reason for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.errors import NoAgentError
from callboard.runtime.labels import pool_name, told
from callboard.runtime.registry.message import Picked, PoolWorkerView, Query, Status, Why

# Latencies whose ratio is below this count as equal: noise decides nothing.
_SAME_RATIO = 1.25
# An agent in one of these states takes work.
HEALTHY: frozenset[Status] = frozenset({"idle", "busy"})


class Candidate(Struct, frozen=True, gc=False):
    """An agent that has the capability and fits the query.

    Attributes:
        busy: Requests under way, waiting, and reserved by picks of the last moments.
        weight: Requests that it can do at once.
        latency_s: Mean time of its recent answers, None before the first: it counts as the fastest, and is tried.
    """

    address: str
    status: Status = "idle"
    busy: int = 0
    weight: int = 1
    latency_s: float | None = None

    @property
    def load(self) -> float:
        """Requests for each that it can do at once."""
        return self.busy / self.weight


class Choice(Struct, frozen=True):
    """The chosen one, None when nobody takes work, and why."""

    address: str | None
    why: Why


def choose_pool(workers: Sequence[PoolWorkerView], query: Query) -> Picked:
    """Choose the pool that does it where no agent does: the one by label, where labels are asked for.

    Args:
        workers: The live ones with slots of the capability, one at least.
        query: What was asked for.

    Raises:
        NoAgentError: If none of them fits; it says who comes nearest. Also for a host, which no task can ask for.
        InvalidNameError: If no task can ask for labels that are spelt so.
    """
    fitting = [each for each in workers if fits(each, query)]
    if not fitting:
        raise _misfit(workers, query)
    if query.host:
        message = (
            f"no agent offers {query.capability} on {query.host}, and a task cannot ask for a host: give the workers "
            "there a label and ask for that"
        )
        raise NoAgentError(message, refused={"host": len(workers)})
    pool = pool_name(query.capability, query.labels)
    slots = sum(each.slots for each in fitting)
    why = Why(
        text=f"no agent offers {told(pool)}; its pool does, with {slots} slots", able=0, healthy=0, refused={}, load=0.0
    )
    return Picked(agent=None, pool=pool, ask=subjects.task(pool), why=why, reserved_s=0.0)


def fits(worker: PoolWorkerView, query: Query) -> bool:
    """Return whether a worker bears the labels, runs on the host and has the type that were asked for."""
    return not _lacks(worker, query)


def choose(
    candidates: Sequence[Candidate], *, turn: int, refused: Mapping[str, int] | None = None, able: int | None = None
) -> Choice:
    """Choose the healthy candidate with the least load for its weight; deterministic.

    Ties go to the lowest latency (those within a quarter of each other count as equal), then by turn: the first at or
    after place ``turn`` in the order of the candidates.

    Args:
        candidates: Those that have the capability and fit; in an order that is the same for equal sets.
        turn: Number of this choice, for the last tie.
        refused: How many were left out before, by reason; goes into the explanation.
        able: How many fit in all, where ``candidates`` are only some of them.
    """
    count = len(candidates)
    left_out = dict(refused or {})
    ranked: list[tuple[tuple[float, int, int], Candidate]] = []
    for place, found in enumerate(candidates):
        if found.status in HEALTHY:
            ranked.append(((found.load, _latency_class(found.latency_s), (place - turn) % count), found))
        else:
            left_out[found.status] = left_out.get(found.status, 0) + 1
    total = count if able is None else able
    if not ranked:
        return Choice(None, _nobody(total, left_out))
    best = min(ranked, key=lambda item: item[0])
    others = [item for item in ranked if item is not best]
    second = min(others, key=lambda item: item[0]) if others else None
    return Choice(best[1].address, _why(best, second, able=total, looked_at=count, healthy=len(ranked), left=left_out))


def _latency_class(latency_s: float | None) -> int:
    if latency_s is None or latency_s <= 0:
        return -(1 << 30)
    return math.floor(math.log(latency_s) / math.log(_SAME_RATIO))


def _nobody(able: int, refused: dict[str, int]) -> Why:
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(refused.items())) or "there is none"
    return Why(text=f"nobody takes work: {reasons}", able=able, healthy=0, refused=refused, load=0.0)


_Ranked = tuple[tuple[float, int, int], Candidate]


def _why(
    best: _Ranked, second: _Ranked | None, *, able: int, looked_at: int, healthy: int, left: dict[str, int]
) -> Why:
    chosen = best[1]
    among = f"of {healthy} that take work" if looked_at >= able else f"of {looked_at} looked at among {able}"
    text = f"{chosen.address} has the least load, {chosen.load:.2g}, {among}"
    if second is not None and second[0][0] == best[0][0]:
        how = "it answers faster" if second[0][1] != best[0][1] else "it is its turn"
        text = f"{chosen.address} has load {chosen.load:.2g} as {second[1].address} has, {among}; {how}"
    if left:
        text += f"; left out: {', '.join(f'{number} {reason}' for reason, number in sorted(left.items()))}"
    return Why(
        text=text,
        able=able,
        healthy=healthy,
        refused=left,
        load=chosen.load,
        runner_up=second[1].address if second is not None else "",
        runner_up_load=second[1].load if second is not None else None,
    )


def _lacks(worker: PoolWorkerView, query: Query) -> dict[str, str]:
    """Return what was asked for and a worker is not, by reason, each with what it is instead."""
    found = {
        f"labels.{name}": worker.labels.get(name, "")
        for name, value in query.labels.items()
        if worker.labels.get(name) != value
    }
    if query.host not in ("", worker.host):
        found["host"] = worker.host
    if query.type not in ("", worker.type):
        found["type"] = worker.type
    return found


def _misfit(workers: Sequence[PoolWorkerView], query: Query) -> NoAgentError:
    lacking = [_lacks(each, query) for each in workers]
    refused = Counter(reason for each in lacking for reason in each)
    wanted = {f"labels.{name}": value for name, value in query.labels.items()}
    wanted |= {"host": query.host, "type": query.type}
    parts = []
    for reason, number in refused.items():
        there = ", ".join(sorted({each[reason] for each in lacking if each.get(reason)})[:10])
        what = f"{reason.replace('labels.', 'label ')}={wanted[reason]}"
        parts.append(f"{what} left out {number} (there are: {there or 'none'})")
    nearest = min(zip(workers, lacking, strict=True), key=lambda pair: (len(pair[1]), pair[0].worker))[0]
    bears = ",".join(f"{name}={value}" for name, value in sorted(nearest.labels.items())) or "no labels"
    message = (
        f"no agent offers {query.capability}, and none of the {len(workers)} workers with slots for it fits: "
        f"{'; '.join(parts)}; the nearest is {nearest.worker} on {nearest.host}, with {bears}"
    )
    return NoAgentError(message, refused=dict(refused))
