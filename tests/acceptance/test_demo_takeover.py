"""The demonstration of a takeover as a process: a real worker is killed in a real turn, and the account is right."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.console import Background, Console, eventually, is_alive
from tests.acceptance.test_demo import family, fill

OPTIONS = ("--data", "data", "--out", "out", "--steps", "12")
# 12 steps of 0.2 s
QUICK = ("--minutes", "0.04")
SLOW = ("--minutes", "2")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked for in /proc")


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    console = Console(tmp_path)
    yield console
    console.close()


def begin(console: Console, *, until: str) -> tuple[Background, list[int]]:
    """Start a slow one, wait until it says ``until``, and return it with the processes it has started."""
    fill(console.folder / "texts", texts=12)
    demo = console.start("demo", "takeover", "texts", *OPTIONS, *SLOW)
    eventually(lambda: any(until in line for line in demo.err) or demo.process.poll() is not None, demo.err)
    assert demo.process.poll() is None, "".join(demo.err)
    return demo, family(demo.process.pid, console.folder / "data")


def test_the_table_says_that_no_recorded_step_was_repeated(console: Console) -> None:
    files = fill(console.folder / "texts", texts=20)
    demo = console.start("demo", "takeover", "texts", *OPTIONS, *QUICK)
    assert demo.wait(timeout_s=120) == 0, "".join(demo.out + demo.err)
    cells = (line.partition("  ") for line in demo.out)
    rows = {name: value.strip() for name, gap, value in cells if gap}
    assert rows["killed with SIGKILL"].endswith("in the middle of step 6")
    assert rows["taken over"].startswith("by ")
    assert rows["taken from the journal"] == "5 steps, not run again"
    assert rows["cut off and run again"] == "1: step 6"
    assert rows["recorded steps repeated"] == "0"
    assert rows["effects had twice"] == "0 of 12"
    assert rows["mail handled"] == "the turn, question 1, question 2, question 3: in order"
    assert any(line.startswith("Every promise was kept") for line in demo.out)
    assert f"question 1, about its size: {files} files" in "".join(demo.err)
    page = (console.folder / "out" / "report.html").read_text("utf-8")
    assert "The turn was taken over by another worker" in page
    assert "copy.md" in page


def test_two_kills_and_json(console: Console) -> None:
    fill(console.folder / "texts", texts=20)
    # the second victim's heir must have been started by then
    demo = console.start("demo", "takeover", "texts", *OPTIONS, "--minutes", "0.2", "--kills", "2", "--json")
    status = demo.wait(timeout_s=120)
    assert status == 0, "".join(demo.out + demo.err)
    events = demo.events
    last = events[-1]
    assert last["event"] == "finished"
    assert (last["kills"], last["repeated"], last["doubled"], last["missing"]) == (2, [], [], [])
    assert last["problems"] == []
    assert last["mail_order"] == ["turn", "1", "2", "3"]
    assert sum(last["steps_by_worker"].values()) == 12
    assert len(last["run_again"]) == 2
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, 13))
    killed = [event["pid"] for event in events if event["event"] == "killed"]
    taken = [event["epoch"] for event in events if event["event"] == "taken_over"]
    assert len(set(killed)) == 2
    assert taken == sorted(set(taken))
    assert not [pid for pid in killed if is_alive(pid)]


@pytest.mark.parametrize(
    ("number", "until", "by"),
    [(signal.SIGINT, "questions wait", "Ctrl-C"), (signal.SIGTERM, "one turn of", "SIGTERM")],
    ids=["ctrl-c in the turn", "sigterm while it starts"],
)
def test_stopping_it_ends_all_it_started(console: Console, number: signal.Signals, until: str, by: str) -> None:
    demo, started = begin(console, until=until)
    assert demo.stop(number, timeout_s=15) == 130
    assert demo.err[-1] == f"Stopped by {by}: workers and server are down, the account was not made.\n"
    assert "Traceback" not in "".join(demo.err)
    assert not [pid for pid in started if is_alive(pid)]
    assert not family(demo.process.pid, console.folder / "data")


def test_a_second_one_on_the_same_data_is_refused_and_spoils_nothing_of_the_first(console: Console) -> None:
    demo, started = begin(console, until="questions wait")
    refused = console.run("demo", "takeover", "texts", *OPTIONS, *QUICK)
    assert refused.status == 4
    assert "--data" in refused.err
    assert (console.folder / "out" / "takeover-notes.jsonl").read_bytes()
    assert [pid for pid in started if is_alive(pid)]
    demo.stop(signal.SIGINT, timeout_s=15)


def test_a_folder_of_one_file_makes_a_turn_of_three_steps(console: Console) -> None:
    (console.folder / "few").mkdir()
    (console.folder / "few" / "a.txt").write_text("Some words about a lease.", "utf-8")
    done = console.run("demo", "takeover", "few", "--data", "data", "--out", "out", "--minutes", "0.03")
    assert done.status == 0, done.out + done.err
    assert "one turn of 3 steps (for 1 file)" in done.err


def test_a_folder_called_takeover_can_still_be_digested(console: Console) -> None:
    fill(console.folder / "takeover", texts=2)
    done = console.run("demo", "./takeover", "--data", "data", "--out", "out", "--no-kill", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["submitted"] > 2
