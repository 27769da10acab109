"""A first agent from the command line: written, tested, listed, served from a folder, asked, stopped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.acceptance.console import Console, eventually

SLOW = '''
from callboard import Agent
from callboard.agents.llm.scripted import Say, Scripted

class Slow(Agent, name="slow", model=Scripted([Say(text="never", delay_s=600, always=True)])):
    """You are slow."""
'''


@pytest.fixture
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("agents"))
    yield found
    found.close()


def test_a_new_agent_is_written_tested_listed_and_asked(console: Console) -> None:
    made = console.run("new", "agent", "paint-estimator", "--dir", "crew", "--json")
    assert made.status == 0, made.err
    assert json.loads(made.out) == {"written": ["crew/paint_estimator.py", "crew/test_paint_estimator.py"], "kept": []}
    again = console.run("new", "agent", "paint-estimator", "--dir", "crew")
    assert "left crew/paint_estimator.py as it is" in again.out
    assert "callboard ask paint-estimator/ann Task" in again.out
    steps = re.findall(r"^  .*  (?:it needs no key|in one terminal|in another)$", again.out, flags=re.MULTILINE)
    assert len({line.rindex("  ") for line in steps}) == 1
    wrong = console.run("new", "agent", "Paint Estimator")
    assert wrong.status == 2
    assert "error[" in wrong.err

    (console.folder / "crew" / "ruin.py").write_text("def (\n")
    (console.folder / "crew" / "slow.py").write_text(SLOW)
    shown = console.run("agents", "types", "crew", "--json")
    assert shown.status == 0, shown.err
    found = json.loads(shown.out)
    assert [entry["name"] for entry in found["entries"]] == ["paint-estimator", "slow"]
    assert found["entries"][0]["tools"] == ["area"]
    assert [skipped["name"] for skipped in found["skipped"]] == ["crew/ruin.py"]

    console.up()
    worker = console.start("worker", "start", "crew", "--json")
    eventually(lambda: any('"ready"' in line for line in worker.out), worker.err)
    skipped = json.loads(worker.out[0])
    assert (skipped["event"], skipped["name"]) == ("skipped", "crew/ruin.py")
    asked = console.run("ask", "paint-estimator/ann", "Task", '{"text": "A wall of 3 by 4 metres"}', "--json")
    assert asked.status == 0, asked.err
    answer = json.loads(asked.out)["value"]
    assert (answer["status"], answer["model"], answer["turns"]) == ("done", "extractive", 2)
    assert "no model is configured" in answer["note"]
    assert isinstance(answer["output"]["litres"], float)


def test_a_task_that_is_cancelled_answers_with_what_there_is(console: Console) -> None:
    (console.folder / "slow.py").write_text(SLOW)
    console.up()
    worker = console.start("worker", "start", "slow.py", "--json")
    eventually(lambda: any('"ready"' in line for line in worker.out), worker.err)
    said: list[str] = []

    def ask() -> None:
        said.append(console.run("ask", "slow/ann", "Task", '{"text": "go"}', "--json").out)

    asking = threading.Thread(target=ask)
    asking.start()

    def is_running() -> bool:
        shown = console.run("agents", "show", "slow/ann", "--json")
        return shown.status == 0 and bool(json.loads(shown.out).get("running", {}).get("running"))

    eventually(is_running, worker.err)
    cancelled = console.run("agents", "cancel", "slow/ann", "--reason", "enough")
    assert cancelled.status == 0, cancelled.err
    asking.join()
    answer = json.loads(said[0])["value"]
    assert (answer["status"], answer["reason"]) == ("stopped", "enough")


def test_a_command_that_needs_no_agent_loads_none() -> None:
    code = "import sys, callboard.cli.main, callboard.runtime.worker; print([m for m in sys.modules if '.agents' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
