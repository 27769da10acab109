"""Metrics equal the plain counters, and the document names exactly what is exposed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, Counter
from prometheus_client.parser import text_string_to_metric_families

from callboard.runtime import metrics, survey
from callboard.runtime.metrics import PoolView, WorkerView
from callboard.runtime.stats import BUCKETS_S, ENDINGS, PoolStats

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


def _samples(view: WorkerView) -> dict[tuple[str, str, str], float]:
    """Return value by (sample name, capability, le) of what a scrape would see."""
    text = metrics.render(lambda: view).decode()
    return {
        (sample.name, sample.labels.get("capability", ""), sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _pool(capability: str, stats: PoolStats, first: int = 0) -> PoolView:
    return PoolView(
        capability=capability,
        slots=first + 1,
        running=first + 2,
        waiting_commit=first + 3,
        backlog=first + 4,
        stats=stats,
    )


def test_a_pools_counters_and_gauges_are_shown_under_its_capability() -> None:
    pools = []
    for first, capability in ((100, "search"), (200, "mail")):
        stats = PoolStats()
        stats.claimed, stats.started, stats.stalled = first + 5, first + 6, first + 7
        stats.endings = {ending: first + 10 + number for number, ending in enumerate(ENDINGS)}
        pools.append(_pool(capability, stats, first))
    samples = _samples(WorkerView(worker="w1", pools=tuple(pools)))
    names = {"slots": "callboard_pool_slots", "backlog": "callboard_pool_backlog"}
    names |= {"running": "callboard_tasks_running", "waiting_commit": "callboard_tasks_waiting_commit"}
    for pool in pools:
        key = pool.capability
        for field, name in names.items():
            assert samples[name, key, ""] == getattr(pool, field)
        for ending, count in pool.stats.endings.items():
            assert samples[f"callboard_tasks_{ending}_total", key, ""] == count
        assert samples["callboard_tasks_claimed_total", key, ""] == pool.stats.claimed
        assert samples["callboard_tasks_started_total", key, ""] == pool.stats.started
        assert samples["callboard_pool_stalled_total", key, ""] == pool.stats.stalled


def test_a_workers_own_values_are_shown() -> None:
    view = WorkerView(worker="w1", is_ready=True, fetch_age_s=1.5, late_extensions=3, reconnects=4, loop_lag_s=0.25)
    samples = _samples(view)
    assert samples["callboard_worker_ready", "", ""] == 1
    assert samples["callboard_worker_fetch_age_seconds", "", ""] == 1.5
    assert samples["callboard_lease_late_extensions_total", "", ""] == 3
    assert samples["callboard_bus_reconnects_total", "", ""] == 4
    assert samples["callboard_loop_lag_seconds", "", ""] == 0.25


@pytest.mark.property
@given(st.lists(st.sampled_from(BUCKETS_S) | st.floats(min_value=0, max_value=1e6), max_size=30))
def test_a_bucket_counts_what_is_not_above_its_bound(values: list[float]) -> None:
    stats = PoolStats()
    for value in values:
        stats.run_time.observe(value)
    samples = _samples(WorkerView(worker="w1", pools=(_pool("search", stats),)))
    name = "callboard_task_handler_seconds"
    for bound in (*map(str, BUCKETS_S), "+Inf"):
        assert samples[f"{name}_bucket", "search", bound] == sum(value <= float(bound) for value in values)
    assert samples[f"{name}_count", "search", ""] == len(values)
    assert samples[f"{name}_sum", "search", ""] == pytest.approx(sum(values))


def test_the_process_is_measured_too() -> None:
    assert _samples(WorkerView(worker="w1"))["process_resident_memory_bytes", "", ""] > 0


def test_a_metric_of_a_handlers_own_is_served_too() -> None:
    own = Counter("shop_orders", "Orders taken")
    try:
        own.inc(3)
        assert _samples(WorkerView(worker="w1"))["shop_orders_total", "", ""] == 3
    finally:
        REGISTRY.unregister(own)


def test_the_document_names_every_metric_with_its_kind_and_help_and_no_other() -> None:
    text = DOC.read_text("utf-8")
    rows = re.findall(r"^\| `(callboard_\w+)` \| (\w+) \| (.+?) \|$", text, flags=re.MULTILINE)
    assert sorted(rows) == sorted(tuple(spec) for spec in (*metrics.METRICS, *survey.METRICS))


def test_names_follow_the_custom() -> None:
    for spec in (*metrics.METRICS, *survey.METRICS):
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        assert spec.name.endswith("_seconds") or spec.kind != "histogram", spec.name
