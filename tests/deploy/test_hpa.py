"""The autoscaler's rules over time, the verdict on its rehearsal, and the drawing of it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from msgspec import structs

from callboard.cli import k8s_pool
from tests.chaos.checker import Evidence, check
from tests.chaos.journal import Event
from tests.deploy import scaling
from tests.deploy.generated import keda_default
from tests.deploy.hpa import Autoscaler
from tests.deploy.scaling import Plan, Report
from tests.deploy.scaling_plot import Sample, page


def _scaler() -> Autoscaler:
    return Autoscaler(k8s_pool.files(keda_default())["scaled-object.yaml"][0])


def _pods(scaler: Autoscaler, load: float, *, from_s: int, to_s: int) -> list[int]:
    """Return the numbers of pods it comes to while the load stays the same."""
    seen = [scaler.see(load, at_s=float(at_s)) for at_s in range(from_s, to_s, int(scaler.poll_s))]
    return [each for number, each in enumerate(seen) if number == 0 or each != seen[number - 1]]


def test_the_first_work_brings_one_pod_and_more_work_at_most_doubles_them_or_adds_four() -> None:
    scaler = _scaler()
    assert _pods(scaler, 0, from_s=0, to_s=60) == [0]
    # 15 s apart, which are two looks of KEDA
    assert _pods(scaler, 400, from_s=60, to_s=160) == [1, 5, 10]


def test_a_load_within_a_tenth_of_what_is_there_changes_nothing() -> None:
    scaler = _scaler()
    _pods(scaler, 40, from_s=0, to_s=200)
    assert scaler.replicas == 5
    assert _pods(scaler, 43, from_s=200, to_s=900) == [5]
    assert _pods(scaler, 45, from_s=900, to_s=1000) == [6]


def test_pods_go_after_five_minutes_a_quarter_or_one_a_minute_and_the_last_after_another_wait() -> None:
    scaler = _scaler()
    _pods(scaler, 80, from_s=0, to_s=200)
    assert scaler.replicas == 10
    assert _pods(scaler, 8, from_s=200, to_s=470) == [10]
    assert _pods(scaler, 8, from_s=470, to_s=1200) == [10, 7, 5, 3, 2, 1]
    assert _pods(scaler, 0, from_s=1200, to_s=1480) == [1]
    assert _pods(scaler, 0, from_s=1480, to_s=1600) == [1, 0]


def test_a_short_lull_ends_no_pod() -> None:
    scaler = _scaler()
    _pods(scaler, 80, from_s=0, to_s=200)
    _pods(scaler, 0, from_s=200, to_s=400)
    assert _pods(scaler, 80, from_s=400, to_s=600) == [10]


def _sample(at_s: float, *, wanted: int, alive: int, lag: float = 0.0) -> Sample:
    return Sample(at_s=at_s, rate=1.0, lag=lag, wanted=wanted, alive=alive, ready=alive, busy=alive)


SAMPLES = [_sample(0, wanted=0, alive=0), _sample(1, wanted=2, alive=2, lag=9.0), _sample(2, wanted=0, alive=0)]


def test_a_report_names_whatever_went_wrong() -> None:
    own, none = frozenset({"hello/0"}), frozenset[str]()
    run = [Event(kind="start", pid=1, at_s=1.0, task="hello/0"), Event(kind="end", pid=1, at_s=2.0, task="hello/0")]
    again = [structs.replace(event, at_s=event.at_s + 5) for event in run]
    evidence = Evidence(
        acked=own, offered=own, effects={"hello/0": 1}, statuses={}, dead=none, pending=none, events=run
    )
    good = Report(
        plan=Plan(), samples=SAMPLES, verdict=check(evidence), tasks=1, wait_s=1.0, ended_busy=0, forced=[], crashed=0
    )
    assert good.problems == []
    spoiled = [
        structs.replace(good, verdict=check(structs.replace(evidence, effects={}))),
        structs.replace(good, verdict=check(structs.replace(evidence, effects={"hello/0": 2}))),
        structs.replace(good, verdict=check(structs.replace(evidence, events=[*run, *again]))),
        structs.replace(good, samples=SAMPLES[:2]),
        structs.replace(good, samples=SAMPLES[:1]),
        structs.replace(good, forced=["default-1, its grace is over"]),
        structs.replace(good, crashed=1),
    ]
    assert [len(each.problems) for each in spoiled] == [1] * len(spoiled)


def test_the_drawing_is_whole_and_shows_every_line() -> None:
    text = page(SAMPLES, slots=8, about="a <test>", figures="& figures")
    assert "a &lt;test&gt;" in text
    assert "&amp; figures" in text
    svg = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])
    lines = [each for each in svg if each.tag == "polyline"]
    assert len(lines) == 7
    assert all(len(each.attrib["points"].split()) == 2 * len(SAMPLES) - 1 for each in lines)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(400)
async def test_worker_processes_follow_a_load_from_none_and_back_without_losing_a_task(tmp_path: Path) -> None:
    report = await scaling.run(Plan(speed=30, peak=10, length_s=20, most=3), tmp_path)
    print(report)  # noqa: T201 - the figures belong into the test's output
    assert report.problems == [], str(report)
