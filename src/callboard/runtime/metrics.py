"""Counters that cost an integer addition, and the collector that shows them to Prometheus when it asks.

The hot path touches ``PoolStats`` and ``WorkerStats`` only: plain slots, no locks, no labels, no client library (which
is imported on the first scrape). Each is written by one thread, the event loop's; a scrape reads it there.
Every metric of ``METRICS`` is described in ``docs/metrics.md``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from prometheus_client.core import Metric

HANDLER_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
DELIVERY_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Counts of values in fixed buckets; ``observe`` is one bisection and two additions."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count ``value`` in the first bucket whose bound is not below it; negative values count as 0."""
        if value < 0:  # clocks of two machines differ
            value = 0.0
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Values observed so far."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (bound, values not above it) pairs as Prometheus wants them, ``+Inf`` last."""
        bounds = [str(float(bound)) for bound in self.bounds] + ["+Inf"]
        return list(zip(bounds, (float(count) for count in accumulate(self.counts)), strict=True))


class PoolStats:
    """What one capability's pool in this process has done since it started.

    Attributes:
        claimed: Tasks taken to run, retries and redeliveries included.
        completed: Runs that gave a result.
        failed: Runs that raised, whatever came of it.
        retried: Failed runs that will be tried again.
        dead: Tasks that became dead letters.
        expired: Tasks whose deadline passed before or while they ran.
        cancelled: Tasks cancelled by request.
        skipped: Redeliveries acked without a run because their record existed.
        dropped: Redeliveries left alone because another worker holds them.
        slots: Tasks that may run at once.
        running: Tasks whose handler is running now.
        waiting_commit: Finished runs whose record is not stored yet.
        handler_s: Time in the handler.
        delivery_s: From storing a task to claiming it, first deliveries only.
    """

    __slots__ = (
        "cancelled",
        "capability",
        "claimed",
        "completed",
        "dead",
        "delivery_s",
        "dropped",
        "expired",
        "failed",
        "handler_s",
        "retried",
        "running",
        "skipped",
        "slots",
        "waiting_commit",
    )

    def __init__(self, capability: str, *, slots: int = 0) -> None:
        self.capability = capability
        self.slots = slots
        self.claimed = self.completed = self.failed = self.retried = self.dead = 0
        self.expired = self.cancelled = self.skipped = self.dropped = 0
        self.running = self.waiting_commit = 0
        self.handler_s = Histogram(HANDLER_BUCKETS_S)
        self.delivery_s = Histogram(DELIVERY_BUCKETS_S)


class WorkerStats:
    """What one worker process has seen since it started.

    Attributes:
        pools: Stats of each capability it offers.
        extends: Lease extensions sent.
        late_extends: Extensions that went out later than they should.
        lapsed: Leases given up or lost while the task ran.
        reconnects: Times the link to the broker came back.
        repulls: Times a standing pull had to be asked for again.
        beats: Heartbeats sent.
        commits: Atomic batches and single writes of ledger records.
        committed: Records stored by them.
        commit_s: From handing a record over to the broker's word.
        loop_lag_s: How late the event loop last was.
    """

    __slots__ = (
        "beats",
        "commit_s",
        "commits",
        "committed",
        "extends",
        "lapsed",
        "late_extends",
        "loop_lag_s",
        "pools",
        "reconnects",
        "repulls",
        "worker",
    )

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.pools: dict[str, PoolStats] = {}
        self.extends = self.late_extends = self.lapsed = 0
        self.reconnects = self.repulls = self.beats = 0
        self.commits = self.committed = 0
        self.commit_s = Histogram(DELIVERY_BUCKETS_S)
        self.loop_lag_s = 0.0

    def pool(self, capability: str, *, slots: int = 0) -> PoolStats:
        """Return the stats of a capability, made on first use; ``slots`` over 0 is noted."""
        stats = self.pools.get(capability)
        if stats is None:
            stats = self.pools[capability] = PoolStats(capability)
        if slots:
            stats.slots = slots
        return stats


class Spec(NamedTuple):
    """A metric and where its value comes from. ``field`` is an attribute of the stats object."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    field: str
    help: str


POOL_METRICS: Final = (
    Spec("callboard_tasks_claimed_total", "counter", "claimed", "Tasks taken to run, redeliveries included"),
    Spec("callboard_tasks_completed_total", "counter", "completed", "Runs that gave a result"),
    Spec("callboard_tasks_failed_total", "counter", "failed", "Runs that raised"),
    Spec("callboard_tasks_retried_total", "counter", "retried", "Failed runs that will be tried again"),
    Spec("callboard_tasks_dead_total", "counter", "dead", "Tasks that became dead letters"),
    Spec("callboard_tasks_expired_total", "counter", "expired", "Tasks whose deadline passed"),
    Spec("callboard_tasks_cancelled_total", "counter", "cancelled", "Tasks cancelled by request"),
    Spec("callboard_tasks_skipped_total", "counter", "skipped", "Redeliveries acked because their record existed"),
    Spec("callboard_tasks_dropped_total", "counter", "dropped", "Redeliveries left to the worker that holds them"),
    Spec("callboard_pool_slots", "gauge", "slots", "Tasks that may run at once"),
    Spec("callboard_tasks_running", "gauge", "running", "Tasks whose handler is running"),
    Spec("callboard_tasks_waiting_commit", "gauge", "waiting_commit", "Finished runs whose record is not stored yet"),
    Spec("callboard_task_handler_seconds", "histogram", "handler_s", "Time in the handler"),
    Spec("callboard_task_delivery_seconds", "histogram", "delivery_s", "From storing a task to claiming it"),
)
WORKER_METRICS: Final = (
    Spec("callboard_lease_extends_total", "counter", "extends", "Lease extensions sent"),
    Spec("callboard_lease_late_extends_total", "counter", "late_extends", "Lease extensions sent too late"),
    Spec("callboard_lease_lapsed_total", "counter", "lapsed", "Leases lost while the task ran"),
    Spec("callboard_bus_reconnects_total", "counter", "reconnects", "Times the link to the broker came back"),
    Spec("callboard_bus_repulls_total", "counter", "repulls", "Times a standing pull was asked for again"),
    Spec("callboard_worker_beats_total", "counter", "beats", "Heartbeats sent"),
    Spec("callboard_commits_total", "counter", "commits", "Writes of ledger records, a batch being one"),
    Spec("callboard_committed_records_total", "counter", "committed", "Ledger records stored"),
    Spec("callboard_commit_seconds", "histogram", "commit_s", "From handing a record over to the broker's word"),
    Spec("callboard_loop_lag_seconds", "gauge", "loop_lag_s", "How late the event loop last was"),
)
METRICS: Final = POOL_METRICS + WORKER_METRICS


class Collector:
    """Reads the stats when Prometheus scrapes; between scrapes it costs nothing.

    Args:
        stats: Returns the stats of this process; called once a scrape.
    """

    def __init__(self, stats: Callable[[], WorkerStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield one family per metric. Pool metrics carry the label ``capability``, all carry ``worker``."""
        stats = self._stats()
        pools = list(stats.pools.values())
        for spec in POOL_METRICS:
            yield _family(spec, [((stats.worker, pool.capability), getattr(pool, spec.field)) for pool in pools])
        for spec in WORKER_METRICS:
            yield _family(spec, [((stats.worker,), getattr(stats, spec.field))])


def render(stats: Callable[[], WorkerStats]) -> bytes:
    """Return a scrape's answer: ours, and the process's own (CPU, memory, open files). A few milliseconds."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest  # noqa: PLC0415 - slow import

    registry = CollectorRegistry()
    registry.register(Collector(stats))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _family(spec: Spec, rows: list[tuple[tuple[str, ...], float | Histogram]]) -> Metric:
    from prometheus_client.core import (  # noqa: PLC0415 - slow import
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    labels = ("worker", "capability") if spec in POOL_METRICS else ("worker",)
    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(spec.name, spec.help, labels=labels)
        for values, value in rows:
            if isinstance(value, Histogram):
                histogram.add_metric(values, value.cumulative(), value.total)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if spec.kind == "counter":
        family = CounterMetricFamily(spec.name, spec.help, labels=labels)
    else:
        family = GaugeMetricFamily(spec.name, spec.help, labels=labels)
    for values, value in rows:
        if not isinstance(value, Histogram):
            family.add_metric(values, value)
    return family
