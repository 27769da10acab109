"""The demo as a process: it reads a folder, survives its own kill, and stops cleanly."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.console import Background, Console, eventually, is_alive

WORDS = (
    "lease",
    "worker",
    "claim",
    "record",
    "queue",
    "broker",
    "stream",
    "folder",
    "report",
    "digest",
    "merge",
    "ledger",
)
OPTIONS = ("--data", "data", "--out", "out")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    console = Console(tmp_path)
    yield console
    console.close()


def fill(folder: Path, *, texts: int = 27) -> int:
    """Write texts that take a while to read, a near-copy, a binary and a locked file; return how many can be read."""
    folder.mkdir()
    dice = random.Random(7)
    for n in range(texts):
        sentences = (" ".join(dice.choices(WORDS, k=12)).capitalize() + "." for _ in range(250))
        (folder / f"text {n}.md").write_text(f"# Text {n}\n\n" + "\n".join(sentences), "utf-8")
    (folder / "copy.md").write_text((folder / "text 0.md").read_text("utf-8") + "\nOne line more.\n", "utf-8")
    (folder / "data.bin").write_bytes(dice.randbytes(4000))
    (folder / "locked.txt").write_text("nobody reads this", "utf-8")
    (folder / "locked.txt").chmod(0)
    return texts + 2 + os.access(folder / "locked.txt", os.R_OK)


def family(pid: int, data: Path) -> list[int]:
    """Return the living processes that a demo started: its workers name their parent, its server the data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == pid:
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        is_ours = f"--parent-pid {pid} " in command or str(data / "nats.conf") in command
        if is_ours and is_alive(int(entry.name)):
            found.append(int(entry.name))
    return found


def begin(console: Console, *, until: str) -> tuple[Background, list[int]]:
    """Start a demo, wait until it says ``until``, and return it with the processes it has started."""
    fill(console.folder / "texts", texts=120)
    demo = console.start("demo", "texts", *OPTIONS)
    eventually(lambda: any(line.startswith(until) for line in demo.err) or demo.process.poll() is not None, demo.err)
    assert demo.process.poll() is None, "".join(demo.err)
    return demo, family(demo.process.pid, console.folder / "data")


def finished(out: str) -> dict[str, Any]:
    events = [json.loads(line) for line in out.splitlines()]
    last: dict[str, Any] = events[-1]
    assert [event["event"] for event in events if event["event"] in {"starting", "killed", "finished"}]
    return last


def test_a_folder_is_read_and_the_killed_worker_costs_nothing(console: Console) -> None:
    files = fill(console.folder / "texts")
    done = console.run("demo", "texts", *OPTIONS, "--json")
    assert done.status == 0, done.err
    last = finished(done.out)
    assert (last["submitted"], last["recorded"], last["failed"]) == (files + 1, files + 1, 0)
    assert (last["lost"], last["doubled"]) == (0, 0)
    assert last["taken_over"] >= 0
    report = json.loads((console.folder / "out" / "report.json").read_bytes())
    page = (console.folder / "out" / "report.html").read_text("utf-8")
    assert last["killed"] == report["ledger"]["kill"]["worker"]
    assert last["killed"] in page
    assert "Nothing was lost and nothing was counted twice." in page
    assert {"copy.md", "text 0.md"} in [{pair["one"], pair["other"]} for pair in report["corpus"]["pairs"]]
    assert "data.bin" in [digest["path"] for digest in report["corpus"]["digests"]]
    left_out = [item["path"] for item in report["run"]["left_out"]]
    assert left_out == ([] if os.geteuid() == 0 else ["locked.txt"])


def test_the_printed_lines_show_the_audit_trail(console: Console) -> None:
    fill(console.folder / "texts", texts=3)
    done = console.run("demo", "texts", *OPTIONS, "--no-kill")
    assert done.status == 0, done.err
    assert "nothing lost, nothing counted twice" in done.out
    up, tail = (line.strip() for line in done.out.splitlines()[-2:])
    server = Background(_shell(console, f"exec {up}"))
    try:
        eventually(lambda: any("is ready" in line for line in server.out) or server.process.poll() is not None)
        said = _shell(console, tail).communicate(timeout=20)[0]
        assert re.search(r"completed +merge/", said)
    finally:
        assert server.stop(signal.SIGINT) == 0


def test_ctrl_c_in_the_middle_ends_it_and_all_it_started(console: Console) -> None:
    demo, started = begin(console, until="digesting")
    assert started
    assert demo.stop(signal.SIGINT, timeout_s=10) == 130
    assert demo.err[-1] == "Stopped by Ctrl-C: workers and server are down, there is no new report.\n"
    assert "Traceback" not in "".join(demo.err)
    assert not [pid for pid in started if is_alive(pid)]
    assert not family(demo.process.pid, console.folder / "data")


def test_sigterm_while_the_workers_start_ends_it_and_all_it_started(console: Console) -> None:
    demo, _ = begin(console, until="starting")
    assert demo.stop(signal.SIGTERM, timeout_s=10) == 130
    assert demo.err[-1] == "Stopped by SIGTERM: workers and server are down, there is no new report.\n"
    assert not family(demo.process.pid, console.folder / "data")


def test_a_demo_that_is_killed_leaves_no_process_and_the_next_one_begins_anew(console: Console) -> None:
    demo, started = begin(console, until="digesting")
    assert started
    demo.stop(signal.SIGKILL)
    fill(console.folder / "few", texts=2)
    again = console.run("demo", "few", *OPTIONS, "--no-kill")
    assert again.status == 0, again.err
    eventually(lambda: not [pid for pid in started if is_alive(pid)])


def test_a_second_demo_on_the_same_data_is_refused_and_the_first_goes_on(console: Console) -> None:
    demo, started = begin(console, until="digesting")
    refused = console.run("demo", "texts", *OPTIONS)
    assert refused.status == 4
    assert "--data" in refused.err
    assert [pid for pid in started if is_alive(pid)]
    demo.stop(signal.SIGINT, timeout_s=10)


@pytest.mark.parametrize("arguments", [("empty",), ("few", "--data", "mine"), ("few", "--out", "few/a.txt/out")])
def test_what_cannot_be_done_is_refused_before_anything_starts(console: Console, arguments: tuple[str, ...]) -> None:
    (console.folder / "empty").mkdir()
    for name in ("few", "mine"):
        (console.folder / name).mkdir()
        (console.folder / name / "a.txt").write_text("words", "utf-8")
    refused = console.run("demo", *arguments)
    assert refused.status == 2
    assert "error[input]" in refused.err
    assert "name another folder" in refused.err
    assert (console.folder / "mine" / "a.txt").exists()


def _shell(console: Console, line: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["/bin/sh", "-c", line], cwd=console.folder, env=console.env, stdout=pipe, stderr=pipe, text=True
    )
