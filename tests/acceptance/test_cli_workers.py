"""Groups of worker processes: scaled by order and by the work, recycled and drained, on a real server."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest

import callboard
from tests.acceptance.console import SHOP, Background, Console, eventually, is_alive
from tests.acceptance.test_cli_worker import _free_port

# every process takes seconds to start on a busy machine, and these tests start many, one after the other
pytestmark = pytest.mark.timeout(400)
HOLD = """
@capability("hold")
async def hold(name: str) -> None:
    mark(f"start {name}")
    while not os.path.exists("go"):
        await asyncio.sleep(0.02)
    mark(f"end {name}")
"""
soon = partial(eventually, timeout_s=120)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("fleet"))
    (found.folder / "shop.py").write_text(SHOP + HOLD)
    found.up()
    yield found
    found.close()


@pytest.fixture
def console(shop: Console) -> Iterator[Console]:
    """The shop with no worker in it, nothing marked and the gate of `hold` shut."""
    for name in ("marks.txt", "go"):
        (shop.folder / name).unlink(missing_ok=True)
    yield shop
    for background in shop.running[1:]:
        if background.process.poll() is None:
            background.send(signal.SIGTERM)
            background.stop()


def _naps(console: Console, name: str, count: int, seconds: float) -> list[str]:
    """Submit naps, all at once: a command for each takes as long as a short nap."""
    names = [f"{name}-{number}" for number in range(count)]

    _submit(console, "nap", names, [{"name": each, "seconds": seconds} for each in names])
    return names


def _submit(console: Console, capability: str, names: list[str], bodies: Sequence[object]) -> None:
    async def submit() -> None:
        async with callboard.connect(console.running[0].events[0]["url"]) as client:
            await client.submit_many(capability, bodies, task_ids=[f"{capability}/{each}" for each in names])

    asyncio.run(submit())


def _shown(console: Console, name: str) -> Any:  # noqa: ANN401 - as it was written
    return console.run("workers", "show", name, "--json").json


def _statuses(console: Console, name: str) -> list[str]:
    return [process["status"] for process in _shown(console, name)["processes"]]


def _once_each(console: Console, names: list[str]) -> None:
    soon(lambda: len(console.marks("end")) >= len(names))
    assert sorted(line.split()[1] for line in console.marks("start")) == sorted(names)


def test_a_group_is_scaled_by_order_and_loses_nothing_at_zero(console: Console) -> None:
    worker = console.work("--concurrency", "1", processes=2)
    group = worker.group
    listed = console.run("workers", "ls", "--json").json
    assert [found["group"] for found in listed["groups"]] == [group]
    assert {found["group"] for found in listed["workers"]} == {group}
    names = [f"held-{number}" for number in range(6)]
    _submit(console, "hold", names, names)
    soon(lambda: len(console.marks("start")) >= 2)
    assert console.run("workers", "scale", group, "0", "--json").json == {"group": group, "processes": 0}
    soon(lambda: _statuses(console, group) == ["leaving"] * 2)
    (console.folder / "go").touch()
    soon(lambda: _shown(console, group)["processes"] == [])
    # what ran was finished, the rest waits for a process
    assert len(console.marks("start")) == len(console.marks("end")) == 2
    assert worker.process.poll() is None
    assert console.run("workers", "scale", group, "3").out == f"{group}: processes 3\n"
    soon(lambda: _statuses(console, group) == ["ready"] * 3)
    _once_each(console, names)
    text = console.run("workers", "show", group).out
    assert f"group     {group}" in text
    assert "3 of 3: by order" in text
    assert console.run("workers", "drain", group, "--wait", "--json").json == {"drained": [group]}
    assert worker.wait() == 0


def test_orders_that_fit_nobody_are_refused_with_the_remedy(console: Console) -> None:
    single = console.work()
    name = single.events[0]["worker"]
    for args, status, word in (
        (("scale", name, "2"), 2, "--processes or --max"),
        (("scale", name), 2, "COUNT"),
        (("scale", name, "0", "--slots", "echo"), 2, "callboard pause"),
        (("scale", name, "2", "--slots", "nothing"), 5, "does not offer"),
        (("show", "nobody-1"), 5, "there are"),
        (("stop", "nobody-1"), 5, "there are"),
    ):
        run = console.run("workers", *args)
        assert (run.status, word in run.err) == (status, True), run.err
    assert console.run("workers", "scale", name, "3", "--slots", "echo").out == f"echo has 3 slots in {name}\n"
    group = console.work(processes=2)
    run = console.run("workers", "scale", group.group, "--max", "3")
    assert (run.status, "fixed size" in run.err) == (2, True), run.err
    run = console.run("workers", "scale", group.events[0]["worker"], "3")
    assert (run.status, group.group in run.err) == (2, True), run.err


def test_stop_cuts_off_what_runs_and_hands_it_back(console: Console) -> None:
    worker = console.work(processes=2)
    _naps(console, "cut", 1, 60.0)
    soon(lambda: console.marks("start"))
    assert console.run("workers", "stop", worker.group, "--wait", "--json").json == {"stopped": [worker.group]}
    assert worker.wait() == 0
    assert console.run("tasks", "show", "nap/cut-0", "--json").json["state"] == "waiting"
    assert console.run("tasks", "cancel", "nap/cut-0").status == 0


def _scaling(console: Console, *args: str) -> Background:
    worker = console.start("worker", "start", "shop.py", "--json", "--cool-down", "2s", *args)
    soon(lambda: worker.out or worker.process.poll() is not None, worker.err)
    assert worker.process.poll() is None, "".join(worker.err)
    return worker


def test_a_group_follows_the_work_from_none_to_the_most_and_back(console: Console) -> None:
    port = _free_port()
    worker = _scaling(console, "--min", "0", "--max", "3", "--concurrency", "1", "--group-port", str(port))
    group = worker.group
    soon(lambda: _shown(console, group)["processes"] == [])
    # later work holds no process
    later = console.run("submit", "echo", '"later"', "--delay", "1h", "--json")
    assert later.status == 0
    assert "warning" not in later.err
    assert worker.events == []
    # none of it ends before all three are there, however long they take to start
    names = [f"grown-{number}" for number in range(8)]
    _submit(console, "hold", names, names)
    soon(lambda: len(worker.events) == 3, worker.err)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert f'callboard_group_processes_wanted{{group="{group}"}} 3.0' in text
    assert f'callboard_backlog_pending{{capability="hold",group="{group}"}}' in text.replace(
        f'group="{group}",capability="hold"', f'capability="hold",group="{group}"'
    )
    (console.folder / "go").touch()
    _once_each(console, names)
    soon(lambda: _shown(console, group)["processes"] == [], worker.err)
    assert all(not is_alive(event["pid"]) for event in worker.events)
    # the first one after nothing
    assert console.run("submit", "echo", "1", "--wait", "--timeout", "20s").out == "1\n"
    assert console.run("tasks", "cancel", later.json["task"]).status == 0
    run = console.run("workers", "scale", group, "2")
    assert (run.status, "scales itself between 0 and 3" in run.err) == (2, True)
    assert console.run("workers", "scale", group, "--min", "2", "--max", "2").status == 0
    soon(lambda: _statuses(console, group) == ["ready"] * 2)
    assert console.run("workers", "scale", group, "--min", "3").status == 2
    assert worker.stop() == 0


def test_a_group_with_actors_keeps_one_host(console: Console) -> None:
    (console.folder / "troupe.py").write_text(
        "from msgspec import Struct\nfrom callboard import Actor, on\n\nclass Hi(Struct):\n    n: int\n\n"
        "class Greeter(Actor, name='greeter'):\n    @on\n    async def hi(self, m: Hi) -> int:\n        return m.n\n"
    )
    worker = console.start("worker", "start", "troupe.py", "--min", "0", "--max", "2", "--cool-down", "1s")
    soon(lambda: any("is ready" in line for line in worker.err), worker.err)
    assert any("one process always stays" in line for line in worker.err)
    assert console.run("ask", "greeter/a", "Hi", '{"n": 3}').out == "3\n"
    assert worker.stop() == 0


def test_a_group_that_cannot_begin_ends_with_the_status_of_its_error(console: Console) -> None:
    (console.folder / "broken.py").write_text("raise RuntimeError('no such thing')\n")
    run = console.run("worker", "start", "broken.py", "--max", "2")
    assert (run.status, "no such thing" in run.err) == (2, True), run.err
    nowhere = ("--nats", "nats://127.0.0.1:1")
    (console.folder / "hogs.py").write_text(HOGS)
    run = console.run("worker", "start", "hogs.py", "--max", "2", *nowhere, CALLBOARD_NATS__CONNECT_DEADLINE_S="1")
    assert (run.status, "error[bus_connect]" in run.err) == (3, True), run.err
    run = console.run("worker", "start", "hogs.py", "--min", "2")
    assert (run.status, "must be at most max" in run.err) == (2, True), run.err


def test_a_worn_process_is_replaced_before_it_goes(console: Console) -> None:
    worker = console.work("--recycle-tasks", "3")
    first = worker.events[0]["pid"]
    for number in range(4):
        assert console.run("submit", "echo", str(number), "--wait", "--timeout", "20s").status == 0
    soon(lambda: len(worker.events) >= 2 and not is_alive(first), worker.err)
    assert _shown(console, worker.group)["wanted"] == 1
    assert worker.stop() == 0


HOGS = """
import os, time
from callboard import RetryPolicy, capability

def mark(text):
    with open("marks.txt", "a") as file:
        file.write(f"{text} {os.getpid()}\\n")

@capability("eat", retry=RetryPolicy(attempts=1))
async def eat(mib: int) -> int:
    return len(bytearray(mib << 20)) >> 20

@capability("spin")
async def spin(name: str) -> None:
    mark(f"start {name}")
    while True:
        pass

@capability("late", retry=RetryPolicy(attempts=1))
async def late(seconds: float) -> None:
    import asyncio
    await asyncio.sleep(seconds)

@capability("open", retry=RetryPolicy(attempts=1))
def many(count: int) -> int:
    files = [open(os.devnull) for _ in range(count)]
    return len(files)

@capability("echo")
async def echo(value: object) -> object:
    return value
"""


def test_a_hog_is_held_to_the_limits_and_the_others_go_on(console: Console) -> None:
    (console.folder / "hogs.py").write_text(HOGS)
    limits = ("--max-memory", "400MiB", "--max-task", "1s", "--max-open-files", "128")
    worker = console.start("worker", "start", "hogs.py", "--json", *limits)
    soon(lambda: worker.events, worker.err)
    assert console.run("submit", "eat", "10", "--wait").out == "10\n"
    for name, body, code in (("eat", "2000", "MemoryError"), ("open", "500", "OSError"), ("late", "30", "timeout")):
        run = console.run("submit", name, body, "--wait", "--timeout", "20s", "--json")
        assert (run.status, code in run.out) == (1, True), run.out
    assert console.run("submit", "echo", "1", "--wait").out == "1\n"
    assert len(worker.events) == 1
    assert worker.stop() == 0


def test_a_process_that_eats_the_cpu_is_ended_and_its_task_counts_a_crash(console: Console) -> None:
    # importing takes more than the whole budget, and does not count
    (console.folder / "hogs.py").write_text(HOGS + "while time.process_time() < 2.5:\n    pass\n")
    # the kernel ends it five seconds of CPU time after it should have gone by itself
    worker = console.start("worker", "start", "hogs.py", "--json", "--max-cpu", "1s")
    soon(lambda: worker.events, worker.err)
    first = worker.events[0]["pid"]
    assert console.run("submit", "spin", '"h"', "--id", "spin/h", "--no-warn").status == 0
    soon(lambda: console.marks("start h"), worker.err)
    assert console.marks("start h") == [f"start h {first}"]
    soon(lambda: len(console.marks("start h")) == 2, worker.err)
    assert console.run("submit", "echo", "1", "--no-warn").status == 0
    assert not is_alive(first)
    assert console.run("tasks", "cancel", "spin/h").status in (0, 1)
    for event in worker.events[1:]:
        if is_alive(event["pid"]):
            os.kill(event["pid"], signal.SIGKILL)
    console.run("workers", "stop", worker.group)


def test_a_task_that_asks_for_labels_nobody_bears_is_told_of_and_runs_when_somebody_does(console: Console) -> None:
    worker = console.work("--labels", "zone=a")
    run = console.run("submit", "echo", "1", "--labels", "zone=b", "--id", "echo/b")
    assert (run.status, "no worker that offers 'echo on zone=b' is alive" in run.err) == (0, True), run.err
    report = console.run("doctor", "--json")
    (disk,) = [finding for finding in report.json["findings"] if finding["check"] == "disk"]
    assert disk["text"].endswith("free for .callboard/data")
    (found,) = [finding for finding in report.json["findings"] if finding["check"] == "unoffered"]
    assert (found["level"], "echo on zone=b (1 waiting)" in found["text"]) == ("problem", True)
    # from a folder that is not the server's
    (line,) = console.run("config", "show", "nats.url", "--json").json
    assert line["origin"] == "the server of this folder"
    away = console.run("doctor", "--json", "--nats", line["value"], CALLBOARD_SERVER__DATA_DIR="none").json["findings"]
    told = {finding["check"]: finding["text"] for finding in away}
    assert ("disk" in told, "profile fast" in told["sync"]) == (False, True)
    here = console.run("submit", "echo", "2", "--labels", "zone=a", "--wait", "--timeout", "20s")
    assert (here.out, "warning" in here.err) == ("2\n", False), here.err
    lacks = console.run("find", "echo", "--label", "zone=q")
    assert (lacks.status, "label zone=q left out 1 (there are: a)" in lacks.err) == (5, True), lacks.err
    assert "silent" not in lacks.err
    wrong = console.run("submit", "echo", "1", "--labels", "zone")
    assert (wrong.status, "gpu=yes" in wrong.err) == (2, True)
    # a group at nothing starts a process for it
    group = _scaling(console, "--max", "1", "--labels", "zone=b")
    soon(lambda: console.run("tasks", "show", "echo/b", "--json").json["state"] == "completed", group.err)
    # and is told of when it has let that go
    soon(lambda: "bears the labels and runs no process now" in console.run("find", "echo", "--label", "zone=b").err)
    assert (group.stop(), worker.stop()) == (0, 0)
