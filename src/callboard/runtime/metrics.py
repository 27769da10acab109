"""The collector that shows a worker's plain counters to Prometheus when it asks.

The hot path touches the integers of ``stats`` and the worker's own fields only: no locks, no labels, no client library
(which is imported on the first scrape). A scrape reads them on the event loop's thread, the one that writes them.
Every metric of ``METRICS`` is described in ``docs/metrics.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from msgspec import Struct

from callboard.runtime.backlog import Backlog
from callboard.runtime.group_beat import GroupBeat
from callboard.runtime.stats import BUCKETS_S, ENDINGS, Histogram, PoolStats, TurnStats

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Value = float | Histogram


class PoolView(Struct, frozen=True, kw_only=True):
    """One capability's pool at the moment of a scrape.

    Attributes:
        slots: Tasks that may run at once.
        running: Tasks whose handler is running now.
        waiting_commit: Finished runs whose record is not stored yet.
        backlog: Tasks the broker still had waiting at the last delivery.
        stats: What it did since the process started.
    """

    capability: str
    slots: int
    running: int
    waiting_commit: int
    backlog: int
    stats: PoolStats


class ActorView(Struct, frozen=True, kw_only=True):
    """One actor type at the moment of a scrape.

    Attributes:
        partitions: Partitions that this worker owns.
        active: Actors in memory.
        running: Turns under way.
        waiting: Mails waiting in the mailboxes of the actors in memory, as far as they were seen.
        stats: What turns did since the process started.
    """

    kind: str
    partitions: int
    active: int
    running: int
    waiting: int
    stats: TurnStats


class WorkerView(Struct, frozen=True, kw_only=True):
    """A worker process at the moment of a scrape.

    Attributes:
        actors: The actor types that it hosts.
        takeovers: Partitions taken from hosts that died.
        is_ready: Whether it fetched lately and takes work.
        fetch_age_s: Seconds since the broker last answered its pulls.
        late_extensions: Leases that were extended later than they should have been.
        reconnects: Times the link to the broker came back.
        loop_lag_s: How late the event loop last was.
        unmatched: Tasks of its capabilities that ask for labels which no worker alive bears.
    """

    worker: str
    pools: tuple[PoolView, ...] = ()
    actors: tuple[ActorView, ...] = ()
    takeovers: int = 0
    is_ready: bool = False
    fetch_age_s: float = 0.0
    late_extensions: int = 0
    reconnects: int = 0
    loop_lag_s: float = 0.0
    unmatched: int = 0


class Spec(NamedTuple):
    """A metric: its name, its kind, its help and how its value is read from a view."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str


class Table(NamedTuple):
    """A metric, the names of its labels, and for each row their values and its own."""

    spec: Spec
    labels: tuple[str, ...]
    rows: Sequence[tuple[tuple[str, ...], float]]


_ENDING_HELP: Final = {
    "completed": "Runs that gave a result",
    "failed": "Tasks that failed for good and became dead letters",
    "retried": "Runs that failed and will be tried again",
    "cancelled": "Tasks cancelled by request",
    "expired": "Tasks whose deadline passed before or while they ran",
    "returned": "Tasks given back unfinished, by a drain for example",
    "duplicate": "Redeliveries skipped, or runs whose result was refused, because the record existed",
    "dropped": "Redeliveries left to the worker that holds them",
    "postponed": "Deliveries put off because they could not be judged or started now",
    "lapsed": "Claims whose lease was lost before they were settled; another worker may have run them",
}


def _ending(name: str) -> Callable[[PoolView], Value]:
    return lambda pool: pool.stats.endings[name]


POOL_METRICS: Final[dict[Spec, Callable[[PoolView], Value]]] = {
    Spec("callboard_tasks_claimed_total", "counter", "Deliveries taken, redeliveries included"): (
        lambda pool: pool.stats.claimed
    ),
    Spec("callboard_tasks_started_total", "counter", "Runs of the handler that began"): lambda pool: pool.stats.started,
    **{Spec(f"callboard_tasks_{name}_total", "counter", _ENDING_HELP[name]): _ending(name) for name in ENDINGS},
    Spec("callboard_pool_stalled_total", "counter", "Times it took no work because the loop was stalled"): (
        lambda pool: pool.stats.stalled
    ),
    Spec("callboard_pool_slots", "gauge", "Tasks that may run at once"): lambda pool: pool.slots,
    Spec("callboard_pool_backlog", "gauge", "Tasks still waiting at the last delivery"): lambda pool: pool.backlog,
    Spec("callboard_tasks_running", "gauge", "Tasks whose handler is running"): lambda pool: pool.running,
    Spec("callboard_tasks_waiting_commit", "gauge", "Finished runs whose record is not stored yet"): (
        lambda pool: pool.waiting_commit
    ),
    Spec("callboard_task_handler_seconds", "histogram", "Time in the handler"): lambda pool: pool.stats.run_time,
    Spec(
        "callboard_task_delivery_seconds", "histogram", "From storing a task to its delivery, redeliveries included"
    ): (lambda pool: pool.stats.wait_time),
}
ACTOR_METRICS: Final[dict[Spec, Callable[[ActorView], Value]]] = {
    Spec("callboard_turns_started_total", "counter", "Runs of handlers that began, further attempts included"): (
        lambda actor: actor.stats.started
    ),
    Spec("callboard_turns_committed_total", "counter", "Runs whose outcome was stored"): (
        lambda actor: actor.stats.committed
    ),
    Spec("callboard_turns_failed_total", "counter", "Runs that raised"): lambda actor: actor.stats.failed,
    Spec("callboard_turns_dead_total", "counter", "Mails that became dead letters"): lambda actor: actor.stats.dead,
    Spec("callboard_turns_fenced_total", "counter", "Runs thrown away because another host had written since"): (
        lambda actor: actor.stats.fenced
    ),
    Spec("callboard_turns_interrupted_total", "counter", "Runs stopped by a drain or a loss; another host goes on"): (
        lambda actor: actor.stats.interrupted
    ),
    Spec("callboard_steps_recorded_total", "counter", "Steps whose value was recorded"): (
        lambda actor: actor.stats.steps_run
    ),
    Spec("callboard_steps_replayed_total", "counter", "Steps whose value was there from an earlier run"): (
        lambda actor: actor.stats.steps_replayed
    ),
    Spec("callboard_actor_partitions", "gauge", "Partitions that the worker owns"): lambda actor: actor.partitions,
    Spec("callboard_actors_active", "gauge", "Actors in memory"): lambda actor: actor.active,
    Spec("callboard_turns_running", "gauge", "Turns under way"): lambda actor: actor.running,
    Spec("callboard_mail_waiting", "gauge", "Mails waiting for the actors in memory, as far as they were seen"): (
        lambda actor: actor.waiting
    ),
}
WORKER_METRICS: Final[dict[Spec, Callable[[WorkerView], Value]]] = {
    Spec("callboard_worker_ready", "gauge", "1 while it takes work, else 0"): lambda worker: int(worker.is_ready),
    Spec("callboard_worker_fetch_age_seconds", "gauge", "Time since the broker last answered its pulls"): (
        lambda worker: worker.fetch_age_s
    ),
    Spec("callboard_lease_late_extensions_total", "counter", "Leases extended later than they should be"): (
        lambda worker: worker.late_extensions
    ),
    Spec("callboard_actor_takeovers_total", "counter", "Partitions taken from hosts that died"): (
        lambda worker: worker.takeovers
    ),
    Spec("callboard_bus_reconnects_total", "counter", "Times the link to the broker came back"): (
        lambda worker: worker.reconnects
    ),
    Spec("callboard_tasks_unmatched", "gauge", "Tasks that ask for labels which no worker alive bears"): (
        lambda worker: worker.unmatched
    ),
    Spec("callboard_loop_lag_seconds", "gauge", "How late the event loop last was"): lambda worker: worker.loop_lag_s,
}
BACKLOG_METRICS: Final[dict[Spec, Callable[[Backlog], Value]]] = {
    Spec("callboard_backlog_pending", "gauge", "Tasks that no worker has"): lambda work: work.pending,
    Spec("callboard_backlog_in_flight", "gauge", "Tasks handed out and not settled"): lambda work: work.in_flight,
    Spec("callboard_backlog_oldest_seconds", "gauge", "How long the oldest pending task has waited"): (
        lambda work: work.oldest_s
    ),
}
GROUP_METRICS: Final[dict[Spec, Callable[[GroupBeat], Value]]] = {
    Spec("callboard_group_processes_wanted", "gauge", "Worker processes that there shall be"): (
        lambda group: group.wanted
    ),
    Spec("callboard_group_processes_ready", "gauge", "Worker processes that serve, without those that leave"): (
        lambda group: sum(process.status == "ready" for process in group.processes)
    ),
}
METRICS: Final = (*POOL_METRICS, *ACTOR_METRICS, *WORKER_METRICS, *BACKLOG_METRICS, *GROUP_METRICS)


class Collector:
    """Reads a view when Prometheus scrapes; between scrapes it costs nothing.

    Args:
        view: Returns the present state of this process; called once a scrape.
        more: Returns further metrics, once a scrape; they are at hand, nobody is asked for them.
    """

    def __init__(self, view: Callable[[], WorkerView], more: Callable[[], Iterable[Table]] = tuple) -> None:
        self._view = view
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """Yield one family a metric: with the label ``worker``, of pools ``capability`` too, of actors ``type``."""
        view = self._view()
        for spec, read in POOL_METRICS.items():
            rows = [((view.worker, pool.capability), read(pool)) for pool in view.pools]
            yield _family(spec, ("worker", "capability"), rows)
        for spec, read_actor in ACTOR_METRICS.items():
            rows = [((view.worker, actor.kind), read_actor(actor)) for actor in view.actors]
            yield _family(spec, ("worker", "type"), rows)
        for spec, read_worker in WORKER_METRICS.items():
            yield _family(spec, ("worker",), [((view.worker,), read_worker(view))])
        for table in self._more():
            yield _family(*table)


class GroupCollector:
    """Reads what the parent of a group says when Prometheus scrapes it."""

    def __init__(self, beat: GroupBeat) -> None:
        self._beat = beat

    def collect(self) -> Iterator[Metric]:
        """Yield one family a metric: with the label ``group``, of the backlog ``capability`` too."""
        beat = self._beat
        for spec, read in BACKLOG_METRICS.items():
            rows = [((beat.group, work.capability), read(work)) for work in beat.backlog]
            yield _family(spec, ("group", "capability"), rows)
        for spec, read_group in GROUP_METRICS.items():
            yield _family(spec, ("group",), [((beat.group,), read_group(beat))])


def render(view: Callable[[], WorkerView], more: Callable[[], Iterable[Table]] = tuple) -> bytes:
    """Return a scrape's answer: ours, and what stands in the default registry of ``prometheus_client``.

    That is the process's own (CPU, memory, open files) and whatever handlers register. A few milliseconds.
    """
    return _render(Collector(view, more))


def render_group(beat: GroupBeat) -> bytes:
    """Return the answer of a group's parent, and its process's own. A few milliseconds."""
    return _render(GroupCollector(beat))


def _render(collector: Collector | GroupCollector) -> bytes:
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest  # noqa: PLC0415 - slow import

    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry) + generate_latest(REGISTRY)


def _family(spec: Spec, labels: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], Value]]) -> Metric:
    from prometheus_client.core import (  # noqa: PLC0415 - slow import
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    if spec.kind == "histogram":
        histogram = HistogramMetricFamily(spec.name, spec.help, labels=labels)
        for values, value in rows:
            if isinstance(value, Histogram):
                histogram.add_metric(values, _cumulative(value), value.sum_s)
        return histogram
    kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    family = kind(spec.name, spec.help, labels=labels)
    for values, value in rows:
        if not isinstance(value, Histogram):
            family.add_metric(values, value)
    return family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Return (bound, values not above it) as Prometheus wants them, ``+Inf`` last."""
    bounds = [str(bound) for bound in BUCKETS_S] + ["+Inf"]
    return list(zip(bounds, (float(count) for count in accumulate(histogram.counts)), strict=True))
