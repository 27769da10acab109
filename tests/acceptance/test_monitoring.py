"""Rules and dashboards name what a living fleet exposes, and every alert has its page in the operations guide."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from callboard.runtime.registry.message import Status
from tests.acceptance.console import Console, eventually
from tests.support.promql import Malformed, faults, labels_of, parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text("utf-8"))["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
pytestmark = pytest.mark.slow
Exposed = dict[str, frozenset[str]]
CAST = """
from msgspec import Struct
from callboard import Actor, RetryPolicy, capability, on

@capability("echo")
async def echo(value: str) -> str:
    return value

@capability("breaks", retry=RetryPolicy(attempts=1))
async def breaks(value: str) -> str:
    raise ValueError(value)

class Add(Struct):
    amount: int

class Sum(Actor, name="sum", capabilities=["adds"]):
    class State(Struct):
        total: int = 0

    @on
    async def add(self, m: Add) -> int:
        self.state.total += await self.step("same", same, m.amount)
        return self.state.total

async def same(amount: int) -> int:
    return amount
"""


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        for probe in (one, two):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def _scrape(port: int) -> Exposed:
    """Return the series of one target, and the labels of each."""
    with suppress(OSError, urllib.error.HTTPError):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        found: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return {name: frozenset(labels) for name, labels in found.items()}
    return {}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exposed]:
    """Run a server, a group of workers, tasks and an actor, and return all that they expose."""
    console = Console(tmp_path_factory.mktemp("fleet"))
    (console.folder / "cast.py").write_text(CAST)
    try:
        console.up()
        health, group = _free_ports()
        ports = ("--health-port", str(health), "--group-port", str(group))
        worker = console.start("worker", "start", "cast.py", "--json", "--min", "1", "--max", "1", *ports)
        eventually(lambda: worker.events or worker.process.poll() is not None, worker.err)
        assert console.run("submit", "echo", '"a"', "--wait").status == 0
        assert console.run("submit", "breaks", '"a"', "--wait").status != 0
        assert console.run("ask", "sum/1", "Add", '{"amount": 2}').out.strip() == "2"
        console.run("submit", "echo", '"a"', "--labels", "gpu=yes", "--no-warn")

        def seen() -> Exposed:
            return {**_scrape(health), **_scrape(group)}

        # the look at the broker comes every 15 s, and what it needs must have happened before
        wanted = {
            "callboard_stream_left_hours",
            "callboard_agents",
            "callboard_backlog_pending",
            "callboard_queue_waiting",
        }
        eventually(lambda: wanted <= seen().keys(), worker.err, timeout_s=60)
        yield seen()
    finally:
        console.close()


def _with_recorded(exposed: Mapping[str, frozenset[str]]) -> Exposed:
    known = dict(exposed)
    for rule in RULES:
        if "record" in rule:
            known[rule["record"]] = labels_of(rule["expr"], known)
    return known


def _rule_faults(rule: Mapping[str, Any], known: Exposed) -> list[str]:
    found = faults(rule["expr"], known)
    if not found:
        result = labels_of(rule["expr"], known) | set(rule.get("labels", ()))
        texts = " ".join(rule.get("annotations", {}).values())
        found += [f"no label {name} to show" for name in re.findall(r"\$labels\.(\w+)", texts) if name not in result]
        found += _value_faults(rule["expr"])
    return found


def _value_faults(expression: str) -> list[str]:
    """Find values that a label never has; the statuses are known, the rest is up to the user."""
    picked = [value for _, label, _, value in parse(expression).picks if label == "status"]
    return [f"no status {word}" for value in picked for word in value.split("|") if word not in get_args(Status)]


def _dashboard_faults(board: Mapping[str, Any], known: Exposed) -> list[str]:
    found = []
    panels = board["panels"]
    if len({panel["id"] for panel in panels}) != len(panels):
        found.append("two panels have one id")
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    if len(set(cells)) != len(cells) or max(x for x, _ in cells) > 23:
        found.append("panels overlap or stick out")
    variables = {each["name"] for each in board["templating"]["list"]}
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"]
            wrong = faults(expression, known)
            wrong += [
                f"no variable {name}" for name in re.findall(r"\$(?!__)(\w+)", expression) if name not in variables
            ]
            if not wrong:
                shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
                wrong += [f"no label {name} to show" for name in shown if name not in labels_of(expression, known)]
            found += [f"{panel['title']}: {each}" for each in wrong]
    for each in board["templating"]["list"]:
        if each["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"]["query"]).groups()  # type: ignore[union-attr]
            if label not in known.get(metric, ()):
                found.append(f"the variable {each['name']} has no values")
    return found


def test_every_rule_names_what_is_exposed(exposed: Exposed) -> None:
    known = _with_recorded(exposed)
    assert {rule.get("alert") or rule["record"]: found for rule in RULES if (found := _rule_faults(rule, known))} == {}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_names_what_is_exposed(path: Path, exposed: Exposed) -> None:
    assert _dashboard_faults(json.loads(path.read_text("utf-8")), exposed) == []


def test_a_rule_with_a_wrong_name_is_caught(exposed: Exposed) -> None:
    """Negative control."""
    known, alert = _with_recorded(exposed), ALERTS[-1]
    for rule in ALERTS:
        name = min(parse(rule["expr"]).metrics)
        assert _rule_faults(rule | {"expr": rule["expr"].replace(name, f"{name}_gone")}, known), rule["alert"]
    for wrong in (
        "callboard_no_such > 0",
        "sum by (capabilty) (callboard_pool_slots) > 0",
        'callboard_pool_slots{worke="a"} > 0',
        "callboard_tasks_failed_total > 0",
        "incraese(callboard_tasks_failed_total[5m]) > 0",
        'callboard_agents{status="away"} > 0',
        "sum(callboard_pool_slots > 0",
    ):
        assert _rule_faults({"expr": wrong}, known), wrong
    assert _rule_faults(alert | {"annotations": {"summary": "{{ $labels.nothing }}"}}, known)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_with_a_wrong_name_is_caught(path: Path, exposed: Exposed) -> None:
    """Negative control."""
    text = path.read_text("utf-8")
    assert _dashboard_faults(json.loads(text), exposed) == []
    name = min(parse(json.loads(text)["panels"][5]["targets"][0]["expr"]).metrics)
    for broken in (
        text.replace(name, f"{name}_gone"),
        re.sub(r'"legendFormat": "\{\{\w+', '"legendFormat": "{{nothing', text),
        text.replace("[$__rate_interval]", ""),
        re.sub(r"label_values\(\w+", "label_values(callboard_gone", text),
        re.sub(r'"x": 12', '"x": 11', text),
    ):
        assert broken != text
        assert _dashboard_faults(json.loads(broken), exposed)


def test_every_exposed_metric_of_ours_is_used_somewhere(exposed: Exposed) -> None:
    text = "".join(path.read_text("utf-8") for path in [*DASHBOARDS, FOLDER / "alerts.yaml"])
    used = set(re.findall(r"callboard_\w+", text))
    ours = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exposed if name.startswith("callboard_")}
    assert ours - {re.sub(r"_bucket$", "", name) for name in used} == {
        "callboard_pool_backlog",
        "callboard_stream_left_bytes",
        "callboard_queue_claimed",
    }


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    sections = dict(re.findall(r"^### (Callboard\w+)\n+(.+?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL))
    assert sections.keys() == {rule["alert"] for rule in ALERTS}
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}
        assert len(sections[rule["alert"]]) > 100, rule["alert"]


def test_the_parser_refuses_what_it_does_not_know() -> None:
    """Negative control."""
    for wrong in ("a ~ b", "sum(a", "a{b}", "fn(a)", "1 + 2", 'a{b="c" d="e"}'):
        with pytest.raises(Malformed):
            parse(wrong)
    read = parse('sum by (a, b) (rate(x_total{c=~"d|e", f!="g"}[5m])) > on (a) y:z')
    assert (read.metrics, read.groups, read.joins, read.unranged) == ({"x_total", "y:z"}, {"a", "b"}, {"a"}, {"y:z"})
    assert read.picks == [("x_total", "c", "=~", "d|e"), ("x_total", "f", "!=", "g")]


UNITS = """
rule_files: [alerts.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'callboard_queue_oldest_seconds{worker="a",capability="slow"}', values: '0+60x30'}
      - {series: 'callboard_queue_oldest_seconds{worker="b",capability="slow"}', values: '0+60x30'}
      - {series: 'callboard_queue_paused{worker="a",capability="slow"}', values: '0x30'}
      - {series: 'callboard_queue_oldest_seconds{worker="a",capability="held"}', values: '0+60x30'}
      - {series: 'callboard_queue_paused{worker="a",capability="held"}', values: '1x30'}
      - {series: 'callboard_tasks_failed_total{worker="a",capability="slow"}', values: '0x10 1x20'}
      - {series: 'callboard_worker_ready{worker="a"}', values: '1x10 0x20'}
    alert_rule_test:
      - eval_time: 25m
        alertname: CallboardTasksWait
        exp_alerts:
          - exp_labels: {severity: warning, capability: slow}
            exp_annotations:
              summary: "Tasks for slow have waited for 25m 0s"
              runbook: docs/operations.md#callboardtaskswait
      - eval_time: 4m
        alertname: CallboardTasksWait
        exp_alerts: []
      - eval_time: 12m
        alertname: CallboardTasksFail
        exp_alerts:
          - exp_labels: {severity: warning, capability: slow}
            exp_annotations:
              summary: "Tasks for slow became dead letters"
              runbook: docs/operations.md#callboardtasksfail
      - eval_time: 13m
        alertname: CallboardNoWorkerReady
        exp_alerts:
          - exp_labels: {severity: critical}
            exp_annotations: {summary: "No worker takes work", runbook: docs/operations.md#callboardnoworkerready}
"""


def test_promtool_agrees(tmp_path: Path) -> None:
    promtool = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if promtool is None:
        pytest.skip("SKIP promtool: not installed; PROMTOOL names one")
    for name in ("alerts.yaml", "prometheus.yaml"):
        shutil.copy(FOLDER / name, tmp_path / name)
    (tmp_path / "units.yaml").write_text(UNITS)
    (tmp_path / "wrong.yaml").write_text(
        (FOLDER / "alerts.yaml").read_text("utf-8").replace("min_over_time", "min_of_time")
    )

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([promtool, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    for order in (("check", "config", "prometheus.yaml"), ("test", "rules", "units.yaml")):
        status, said = run(*order)
        assert status == 0, said
    assert run("check", "rules", "wrong.yaml")[0] != 0  # negative control
