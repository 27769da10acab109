"""``callboard top`` and ``doctor --deep`` against real processes: their numbers are the broker's."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import nats
import pytest

from callboard.runtime.registry.micro import WORKER_SERVICE
from tests.acceptance.console import Console, eventually


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("top"))
    server = found.up()
    found.env["NATS_URL"] = server.events[0]["url"]
    yield found
    found.close()


async def test_the_numbers_are_those_of_the_consumers_and_beats(console: Console) -> None:
    client = await nats.connect(console.env["NATS_URL"])
    worker = console.work("--concurrency", "2", "--shutdown", "immediate", processes=2)
    for number in range(6):
        await client.request("cb.task.nap", json.dumps({"name": f"n{number}", "seconds": 600}).encode())
    eventually(lambda: len(console.marks("start n")) == 4)
    found = console.run("top", "--once", "--json").json
    info = json.loads((await client.request("$JS.API.CONSUMER.INFO.CB_WORK.nap-normal", b"")).data)
    pool = next(row for row in found["pools"] if row["capability"] == "nap")
    assert (pool["waiting"], pool["claimed"]) == (info["num_pending"], info["num_ack_pending"]) == (2, 4)
    assert (pool["busy"], pool["slots"], pool["workers"]) == (4, 4, 2)
    assert pool["oldest_s"] > 0
    page = console.run("top").out
    assert [line.split()[:5] for line in page.splitlines() if line.startswith("nap ")] == [
        ["nap", "default", "2", "4/4", "2"]
    ]
    assert worker.stop() == 0
    await client.request("$JS.API.STREAM.PURGE.CB_WORK", b"")
    await client.close()


def test_each_look_is_one_object_and_ctrl_c_ends_it_well(console: Console) -> None:
    worker = console.work()
    top = console.start("top", "--json", "--every", "0.3")
    eventually(lambda: len(top.events) >= 3, top.err)
    assert [row["status"] for row in top.events[0]["workers"]] == ["ready"]
    assert top.stop(signal.SIGINT) == 0
    assert worker.stop() == 0


def test_a_process_that_was_started_anew_shows_it(console: Console) -> None:
    worker = console.work(processes=2)
    os.kill(worker.events[1]["pid"], signal.SIGKILL)
    eventually(lambda: len(worker.events) == 3, worker.err)
    rows = console.run("top", "--once", "--json").json["workers"]
    restarts = {row["worker"]: row["restarts"] for row in rows}
    assert restarts[worker.events[2]["worker"]] == 1
    assert restarts[worker.events[0]["worker"]] == 0
    assert worker.stop() == 0


def test_a_deep_look_finds_a_sound_deployment_sound(console: Console) -> None:
    worker = console.work()
    found = console.run("doctor", "--deep", "--json").json["findings"]
    checks = {finding["check"]: finding for finding in found}
    for name in ("probe_messages", "probe_work", "probe_actors", "declared", "consumers_gone", "damage", "actors_end"):
        assert checks[name]["level"] == "ok", checks[name]
    # and it leaves no task behind
    assert "~doctor" not in console.run("tasks", "ls").out
    assert worker.stop() == 0


async def test_a_worker_is_found_as_a_service(console: Console) -> None:
    worker = console.work()
    client = await nats.connect(console.env["NATS_URL"])
    found = json.loads((await client.request(f"$SRV.INFO.{WORKER_SERVICE}", b"", timeout=2)).data)
    await client.close()
    assert found["id"] == worker.events[0]["worker"]
    assert "task-echo" in [endpoint["name"] for endpoint in found["endpoints"]]
    assert worker.stop() == 0


def test_on_a_terminal_it_refreshes_in_place(console: Console) -> None:
    worker = console.work()
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    top = subprocess.Popen(
        [sys.executable, "-m", "callboard", "top", "--every", "0.3"],
        cwd=console.folder,
        env=console.env | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while shown.count(b"POOLS") < 3 and top.poll() is None:
            shown += os.read(ours, 65536)
        top.send_signal(signal.SIGINT)
        while True:
            shown += os.read(ours, 65536)
    except OSError:
        # it has let go of its end
        assert top.wait(10) == 0
    finally:
        top.kill()
        top.wait()
        os.close(ours)
    # on a screen of its own, drawn over, and given back at the end
    assert shown.index(b"\x1b[?1049h") < shown.index(b"POOLS") < shown.rindex(b"POOLS") < shown.rindex(b"\x1b[?1049l")
    assert worker.stop() == 0


def test_who_can_do_something_is_found_and_a_wrong_name_is_helped(console: Console) -> None:
    worker = console.work()
    # whoever answers hears of it by its first beat
    eventually(lambda: console.run("find", "nap", "--json").json["workers"])
    found = console.run("find", "nap", "--json").json
    assert [row["worker"] for row in found["workers"]] == [worker.events[0]["worker"]]
    wrong = console.run("find", "napp")
    assert (wrong.status, wrong.out) == (5, "")
    assert "near it: nap" in wrong.err
    # a plain pool has no agent to pick
    pool = console.run("find", "nap", "--pick")
    assert (pool.status, pool.out) == (5, "")
    assert "callboard submit nap" in pool.err
    assert console.run("find", "nap", "--label", "zone").status == 2
    assert worker.stop() == 0
