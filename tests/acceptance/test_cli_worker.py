"""Worker processes: drain, crash, restart, and what happens when their parent dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.runtime import server_binary
from tests.acceptance.console import Background, Console, eventually, is_alive


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("shop"))
    found.up()
    yield found
    found.close()


@pytest.fixture
def console(shop: Console) -> Iterator[Console]:
    """The shop with no worker in it and nothing marked."""
    (shop.folder / "marks.txt").unlink(missing_ok=True)
    yield shop
    for background in shop.running[1:]:
        if background.process.poll() is None:
            background.send(signal.SIGTERM)
            background.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pids(worker: Background) -> list[int]:
    return [event["pid"] for event in worker.events]


def _naps(console: Console, names: list[str], seconds: float) -> None:
    for name in names:
        body = f'{{"name": "{name}", "seconds": {seconds}}}'
        assert console.run("submit", "nap", body, "--id", f"nap/{name}", "--no-warn").status == 0


@pytest.mark.parametrize(("processes", "strategy"), [(1, "immediate"), (2, "immediate"), (1, "finish-step")])
def test_a_drain_goes_by_the_strategy_of_the_flag(console: Console, processes: int, strategy: str) -> None:
    name = f"strategy-{processes}-{strategy}"
    worker = console.work("--shutdown", strategy, "--turns", "8", "--drain-grace", "60s", processes=processes)
    _naps(console, [name], 600.0 if strategy == "immediate" else 1.0)
    eventually(lambda: console.marks("start"))
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    # a task has no steps: it comes to its end, or is cancelled
    assert len(console.marks("end")) == (strategy == "finish-step")
    console.run("tasks", "cancel", f"nap/{name}")


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_drains_with_status_0_and_no_second_run(console: Console, processes: int) -> None:
    names = [f"drain-{processes}-{number}" for number in range(3)]
    worker = console.work(processes=processes)
    _naps(console, names, 1.0)
    eventually(lambda: len(console.marks("start")) == 3)
    assert worker.stop() == 0, "".join(worker.err)
    assert len(console.marks("end")) == 3
    after = console.work()
    assert console.run("submit", "echo", "1", "--wait").status == 0
    assert after.stop() == 0
    assert len(console.marks("start")) == 3
    for name in names:
        assert console.run("tasks", "show", f"nap/{name}", "--json").json["state"] == "completed"


def test_a_second_signal_stops_at_once_and_hands_the_task_back(console: Console) -> None:
    worker = console.work(processes=2)
    _naps(console, ["long"], 45.0)
    eventually(lambda: console.marks("start long"))
    worker.send(signal.SIGINT)
    eventually(lambda: any("drain_begun" in line for line in worker.err), worker.err)
    assert worker.stop(signal.SIGINT, timeout_s=12) == 0
    assert console.run("tasks", "show", "nap/long", "--json").json["state"] == "waiting"
    assert console.run("tasks", "cancel", "nap/long").status == 0


def test_a_handler_that_never_ends_does_not_keep_the_process(console: Console) -> None:
    worker = console.work()
    assert console.run("submit", "stuck", '"s"', "--id", "stuck/1", "--no-warn").status == 0
    eventually(lambda: console.marks("start s"))
    worker.send(signal.SIGTERM)
    eventually(lambda: any("drain_begun" in line for line in worker.err), worker.err)
    assert worker.stop(timeout_s=15) == 0, "".join(worker.err)
    assert console.run("tasks", "cancel", "stuck/1").status == 0


def test_a_killed_child_is_started_again_and_its_task_runs_again(console: Console) -> None:
    worker = console.work(processes=2)
    _naps(console, ["orphan"], 2.0)
    eventually(lambda: console.marks("start orphan"))
    victim = int(console.marks("start orphan")[0].split()[-1])
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(worker.events) == 3, worker.err)
    assert len(set(_pids(worker))) == 3
    eventually(lambda: len(console.marks("start orphan")) == 2, worker.err)
    eventually(lambda: console.run("tasks", "show", "nap/orphan", "--json").json["state"] == "completed")
    assert worker.stop() == 0


def test_no_child_outlives_its_parent(console: Console) -> None:
    worker = console.work(processes=3)
    pids = _pids(worker)
    worker.stop(signal.SIGKILL)
    eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_drain_by_order_ends_the_worker_with_status_0(console: Console) -> None:
    worker = console.work()
    run = console.run("workers", "drain", worker.events[0]["worker"], "--wait", "--json")
    assert run.json == {"drained": [worker.events[0]["worker"]]}
    assert worker.wait() == 0


def test_health_and_metrics_are_served_and_a_taken_port_is_named(console: Console) -> None:
    port = _free_port()
    worker = console.work("--health-port", str(port))
    assert console.run("submit", "echo", "1", "--wait").status == 0
    for path in ("livez", "readyz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
            assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert 'capability="echo"' in text
    run = console.run("worker", "start", "shop.py", "--health-port", str(port))
    assert run.status == 4
    assert "error[port_in_use]" in run.err
    assert worker.stop() == 0


def test_a_pool_serves_its_own_capabilities_and_those_of_none(console: Console) -> None:
    text = '@capability("gpu", pool="gpu")\ndef gpu(): ...\n@capability\ndef any(): ...\n'
    (console.folder / "pools.py").write_text(f"from callboard import capability\n{text}")
    for pool, served in (("gpu", ["any", "gpu"]), ("fast", ["any"]), ("default", ["any", "gpu"])):
        worker = console.start("worker", "start", "pools.py", "--json", "--pool", pool)
        eventually(lambda: worker.events, worker.err)  # noqa: B023 - called here
        assert worker.events[0]["capabilities"] == served
        assert worker.stop() == 0


def test_a_broker_without_the_streams_is_refused_with_the_remedy(tmp_path: Path, console: Console) -> None:
    port = _free_port()
    (tmp_path / "nats.conf").write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{tmp_path}/js" }}\n'
        'authorization { user: "u", password: "right" }\n'
    )
    binary = server_binary.find().path
    server = subprocess.Popen([str(binary), "-c", str(tmp_path / "nats.conf")], stderr=subprocess.DEVNULL)
    url, user = f"nats://127.0.0.1:{port}", {"CALLBOARD_NATS__USER": "u"}
    try:
        right = user | {"CALLBOARD_NATS__PASSWORD": "right"}
        eventually(
            lambda: '"check":"server","level":"ok"' in console.run("doctor", "--json", "--nats", url, **right).out
        )
        wrong = console.run("tasks", "ls", "--nats", url, **user, CALLBOARD_NATS__PASSWORD="wrong")
        assert (wrong.status, "error[bus_auth]" in wrong.err) == (3, True), wrong.err
        assert "wrong" not in wrong.err
        bare = console.run("worker", "start", "shop.py", "--nats", url, **right)
        assert bare.status == 3
        assert "callboard provision" in bare.err
        assert console.run("submit", "echo", "1", "--nats", url, **right).status == 3
        report = console.run("doctor", "--json", "--nats", url, **right)
        assert (report.status, "callboard provision" in report.out) == (1, True)
        assert console.run("provision", "--plan", "--nats", url, **right).status == 1
        done = console.run("provision", "--json", "--nats", url, **right)
        assert (done.status, done.json["applied"]) == (0, True)
        assert console.run("provision", "--plan", "--nats", url, **right).status == 0
    finally:
        server.terminate()
        server.wait()
