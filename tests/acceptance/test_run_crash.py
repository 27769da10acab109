"""Kill -9 of whoever runs a flow, again and again: another process finishes the run, and no agent is asked twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.acceptance.console import Background, Console, eventually

AGENTS = """
import asyncio, os
from msgspec import Struct
from callboard import Actor, on
from callboard.agents.message import AgentResult, Task

class Marker(Actor, name="marker"):
    @on
    async def work(self, m: Task) -> AgentResult:
        fd = os.open("marks.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{m.agent_run}\\n".encode())
        os.close(fd)
        await asyncio.sleep(1.0)
        return AgentResult(status="done", text=m.agent_run)
"""
FLOWS = """
from msgspec import Struct
from callboard.agents.branch import Branch
from callboard.agents.flow import flow
from callboard.agents.run import Run

class Job(Struct):
    text: str

@flow
async def long(run: Run, job: Job) -> list[str]:
    found = []
    for number in range(4):
        pair = await run.parallel([Branch("marker/", name=f"{side}{number}") for side in "ab"], job.text)
        found += list(pair.results)
    return found
"""
PAIRS = 4


@pytest.fixture
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("crash"))
    found.up()
    yield found
    found.close()


def work(console: Console, module: str) -> Background:
    worker = console.start("worker", "start", module, "--json", "--processes", "1")
    eventually(lambda: worker.events or worker.process.poll() is not None, worker.err)
    assert worker.events, "".join(worker.err)
    return worker


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_run_survives_whoever_runs_it(console: Console) -> None:
    (console.folder / "agents.py").write_text(AGENTS)
    (console.folder / "flows.py").write_text(FLOWS)
    _ = work(console, "agents.py")
    hosts = {found.events[0]["worker"]: found for found in (work(console, "flows.py") for _ in range(2))}
    name = console.run("runs", "start", "long", '{"text": "go"}', "--id", "1", "--json").json["run"]
    marks = console.folder / "marks.txt"
    kills = 0
    for number in range(PAIRS - 1):
        eventually(lambda number=number: marks.exists() and f"a{number}" in marks.read_text())  # type: ignore[misc]
        owner = console.run("agents", "show", "run-long/1", "--json").json["owner"]
        if owner in hosts:
            os.kill(hosts.pop(owner).events[0]["pid"], signal.SIGKILL)
            kills += 1
            fresh = work(console, "flows.py")
            hosts[fresh.events[0]["worker"]] = fresh
    assert kills >= 2, "its owner was hardly ever found: the test shows nothing"
    eventually(lambda: console.run("runs", "show", name, "--json").json["status"] in ("done", "failed"))
    view = console.run("runs", "show", name, "--json").json
    wanted = [f"{side}{number}" for number in range(PAIRS) for side in "ab"]
    assert (view["status"], view["output"]) == ("done", wanted), view["error"]
    assert Counter(marks.read_text().split()) == Counter(wanted)
