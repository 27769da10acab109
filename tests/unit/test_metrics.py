"""Metrics equal the plain counters, and the document names exactly what is exposed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from callboard.runtime import metrics
from callboard.runtime.metrics import Histogram, WorkerStats

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


def _samples(stats: WorkerStats) -> dict[tuple[str, str, str], float]:
    """Return value by (sample name, capability, le) of what a scrape would see."""
    text = metrics.render(lambda: stats).decode()
    return {
        (sample.name, sample.labels.get("capability", ""), sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_counter_and_gauge_shows_its_field() -> None:
    stats = WorkerStats("w1")
    for pool in (stats.pool("search", slots=4), stats.pool("mail", slots=2)):
        for number, spec in enumerate(metrics.POOL_METRICS, start=len(pool.capability)):
            if spec.kind != "histogram":
                setattr(pool, spec.field, number)
    for number, spec in enumerate(metrics.WORKER_METRICS, start=50):
        if spec.kind != "histogram":
            setattr(stats, spec.field, number)
    samples = _samples(stats)
    for capability, pool in stats.pools.items():
        for spec in metrics.POOL_METRICS:
            if spec.kind != "histogram":
                assert samples[spec.name, capability, ""] == getattr(pool, spec.field), spec
    for spec in metrics.WORKER_METRICS:
        if spec.kind != "histogram":
            assert samples[spec.name, "", ""] == getattr(stats, spec.field), spec


def test_a_histogram_is_cumulative_and_sums() -> None:
    stats = WorkerStats("w1")
    for value in (0.0001, 0.001, 0.0011, 7.0, 9999.0):
        stats.pool("search").handler_s.observe(value)
    samples = _samples(stats)
    name = "callboard_task_handler_seconds"
    assert samples[f"{name}_bucket", "search", "0.001"] == 2
    assert samples[f"{name}_bucket", "search", "0.0025"] == 3
    assert samples[f"{name}_bucket", "search", "10.0"] == 4
    assert samples[f"{name}_bucket", "search", "+Inf"] == 5
    assert samples[f"{name}_count", "search", ""] == 5
    assert samples[f"{name}_sum", "search", ""] == pytest.approx(10006.0022)


@pytest.mark.property
@given(st.lists(st.floats(min_value=-5, max_value=1e6, allow_nan=False), max_size=30))
def test_a_bucket_counts_what_is_not_above_its_bound(values: list[float]) -> None:
    histogram = Histogram(metrics.HANDLER_BUCKETS_S)
    for value in values:
        histogram.observe(value)
    for bound, count in histogram.cumulative():
        assert count == sum(value <= float(bound) for value in values)
    assert histogram.count == len(values)
    assert histogram.total >= 0


def test_the_process_is_measured_too() -> None:
    assert _samples(WorkerStats("w1"))["process_resident_memory_bytes", "", ""] > 0


def test_the_document_names_every_metric_with_its_kind_and_no_other() -> None:
    rows = re.findall(r"^\| `(callboard_\w+)` \| (\w+) \|", DOC.read_text("utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted((spec.name, spec.kind) for spec in metrics.METRICS)


def test_names_follow_the_custom() -> None:
    for spec in metrics.METRICS:
        assert spec.name.endswith("_total") == (spec.kind == "counter"), spec.name
        assert spec.name.endswith("_seconds") or spec.kind != "histogram", spec.name
