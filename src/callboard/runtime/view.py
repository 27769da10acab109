"""A worker's counters at one moment, read from its pools and its actors: for metrics and for service discovery."""

from __future__ import annotations

from typing import Protocol

from callboard.runtime.actor.hosting import ActorHost
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.label_pools import LabelPools
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.metrics import ActorView, PoolView, WorkerView
from callboard.runtime.pool import Pool


class Observed(Protocol):
    """What of a worker is looked at."""

    id: str
    pools: dict[str, Pool]
    host: ActorHost | None
    label_pools: LabelPools | None
    keeper: LeaseKeeper
    reconnects: int

    @property
    def loop_lag_s(self) -> float:
        """How late its event loop was at the last tick."""
        ...

    def ready_problem(self) -> str | None:
        """Return why it is not ready, or None."""
        ...


def view_of(worker: Observed) -> WorkerView:
    """Return a worker's counters at this moment."""
    fetched = [at_s for pool in worker.pools.values() if (at_s := pool.last_fetch()) is not None]
    return WorkerView(
        worker=worker.id,
        pools=tuple(_pool(name, pool) for name, pool in worker.pools.items()),
        actors=_actors(worker.host) if worker.host is not None else (),
        takeovers=worker.host.takeovers if worker.host is not None else 0,
        is_ready=worker.ready_problem() is None,
        fetch_age_s=max(0.0, SYSTEM_CLOCK.monotonic() - min(fetched)) if fetched else 0.0,
        late_extensions=worker.keeper.late_extensions,
        reconnects=worker.reconnects,
        loop_lag_s=worker.loop_lag_s,
        unmatched=sum(worker.label_pools.unmatched.values()) if worker.label_pools is not None else 0,
    )


def _pool(name: str, pool: Pool) -> PoolView:
    load = pool.load()
    return PoolView(
        capability=name,
        slots=pool.slots,
        running=load.busy,
        waiting_commit=load.unsettled,
        backlog=load.backlog,
        stats=pool.stats,
    )


def _actors(host: ActorHost) -> tuple[ActorView, ...]:
    return tuple(
        ActorView(
            kind=load.kind,
            partitions=len(load.partitions),
            active=load.active,
            running=load.running,
            waiting=load.mails,
            stats=host.services.stats[load.kind],
        )
        for load in host.load()
    )
