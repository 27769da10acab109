"""What a worker's beat says of the actors that it hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest

from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.owners import Place
from callboard.runtime.actor.partition import Partition
from callboard.runtime.actor.services import Services
from callboard.runtime.beat import ActorLoad
from callboard.runtime.stats import TurnStats

# Keys that a beat lists as busy.
MAX_BUSY = 256


def loads_of(types: Iterable[ActorType], partitions: Mapping[Place, Partition], services: Services) -> list[ActorLoad]:
    """Return the load of each type; called from the keeper's thread, reads plain values only.

    Args:
        types: Those that the worker hosts.
        partitions: Those that it owns.
        services: Whose counters and rules go for all.
    """
    owned = sorted(partitions.items())
    count = services.rules.partitions
    return [
        _load_of(kind, [p for (name, _), p in owned if name == kind.name], services.stats[kind.name], partitions=count)
        for kind in types
    ]


def _load_of(kind: ActorType, owned: Sequence[Partition], stats: TurnStats, *, partitions: int) -> ActorLoad:
    """Return what the beat says of a type, given the partitions of it that the worker owns."""
    return ActorLoad(
        kind=kind.name,
        partitions=[partition.number for partition in owned],
        active=sum(len(partition.activations) for partition in owned),
        running=sum(partition.running for partition in owned),
        waiting=sum(partition.waiting for partition in owned),
        version=kind.version,
        fingerprint=kind.fingerprint,
        mails=sum(partition.depth for partition in owned),
        ended=stats.committed,
        run_times_s=stats.latest.sample(),
        of=partitions,
        only=list(kind.numbers(partitions)) if kind.options.residents else [],
        busy=_busy(owned) if kind.capabilities else {},
    )


def _busy(owned: Sequence[Partition]) -> dict[str, int]:
    """Return how much the busiest actors have to do; called from the keeper's thread, so on a copy."""
    found = {
        key: activation.mailbox.depth
        for partition in owned
        for key, activation in list(partition.activations.items())
        if activation.mailbox.depth
    }
    if len(found) > MAX_BUSY:
        found = dict(nlargest(MAX_BUSY, found.items(), key=lambda item: item[1]))
    return found
