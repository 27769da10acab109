"""Flows from the command line, as docs/flows.md shows them: start, list, show, tree, watch, cancel, retry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.console import Background, Console, eventually

GUIDE = Path(__file__).parents[2] / "docs" / "flows.md"
MORE = '''
import asyncio
from pathlib import Path


class Slow(Struct):
    text: str


class Sleeper(Actor, name="sleeper"):
    @on
    async def work(self, m: Task) -> AgentResult:
        if m.text == "break" and not Path("mended.txt").exists():
            return AgentResult(status="failed", reason="it broke")
        if m.text == "hold":
            await asyncio.Event().wait()
        return AgentResult(status="done", text=f"slept over {m.text}")


@flow
async def night(run: Run, job: Slow) -> str:
    """A run below it, and a sleeper."""
    await run.agent("run-day/x", job.text if job.text != "break" else "fine", name="day")
    return (await run.agent("sleeper/1", job.text)).text


@flow
async def day(run: Run, job: Task) -> str:
    return (await run.agent("sleeper/2", job.text)).text
'''


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    found = Console(tmp_path_factory.mktemp("runs"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def dev(console: Console) -> Background:
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    (console.folder / "flows.py").write_text("\n\n".join(blocks) + MORE)
    return console.dev("flows.py")


def test_a_run_is_started_and_waited_for(console: Console, dev: Background) -> None:
    done = console.run("runs", "start", "digest", '{"texts": ["one", "two"]}', "--wait", "--id", "7f")
    assert done.status == 0, done.err
    assert '"text": "ONE TWO"' in done.out
    assert "started digest/7f" in done.err
    shown = console.run("runs", "show", "digest/7f", "--json").json
    assert (shown["run"], shown["status"], shown["output"]["text"]) == ("digest/7f", "done", "ONE TWO")
    assert [part["name"] for part in shown["agents"]] == ["scribe", "scribe-2", "scribe-3", "scribe-4"]
    assert shown["agents"][0]["result"]["text"] == "ONE"
    assert "scribe-2" in console.run("runs", "show", "digest/7f").out
    listed = console.run("runs", "ls", "digest", "--json").json
    assert [(line["run"], line["status"], line["agents"]) for line in listed] == [("digest/7f", "done", 4)]
    # the list of who is there shows what the user wrote, and says what it leaves out
    said = console.run("agents", "ls", "--quick")
    assert "run-digest/7f" not in said.out
    assert "ended runs not shown: `callboard agents ls --all`" in said.err
    for args in (["--all"], ["run-digest"]):
        assert "run-digest/7f" in console.run("agents", "ls", "--quick", *args).out


def test_a_run_is_watched_from_beginning_to_end(console: Console, dev: Background) -> None:
    name = console.run("runs", "start", "digest", '{"texts": ["one"]}', "--json").json["run"]
    lines = console.run("watch", name, "--json").lines
    assert lines[-1]["event"] == "run"
    assert lines[-1]["value"]["status"] == "done"
    assert "digest" in console.run("watch", name).out


def test_a_run_is_cancelled_with_the_run_below_it(console: Console, dev: Background) -> None:
    name = console.run("runs", "start", "night", '{"text": "hold"}', "--id", "long", "--json").json["run"]
    eventually(lambda: '"sleeper/2"' in console.run("runs", "tree", name, "--json").out, dev.err)
    tree = console.run("runs", "tree", name, "--json").json
    assert tree["agents"][0]["run"]["run"]["run"] == "day/x"
    assert tree["agents"][0]["messages"][0]["value"] == "hold"
    ended = console.run("runs", "cancel", name, "--reason", "wrong bed", "--json")
    assert (ended.status, ended.json["status"]) == (0, "cancelled"), ended.err
    eventually(lambda: console.run("runs", "show", "day/x", "--json").json["status"] == "cancelled", dev.err)
    assert "wrong bed" in console.run("runs", "show", name).out
    assert console.run("watch", name).status == 1


def test_a_failed_run_is_tried_again(console: Console, dev: Background) -> None:
    failed = console.run("runs", "start", "night", '{"text": "break"}', "--id", "bad", "--wait")
    assert failed.status == 1
    assert "it broke" in failed.err
    assert [line["run"] for line in console.run("runs", "ls", "--status", "failed", "--json").json] == ["night/bad"]
    (console.folder / "mended.txt").write_text("")
    assert console.run("runs", "retry", "night/bad", "--json").json["attempt"] == 2
    eventually(lambda: console.run("runs", "show", "night/bad", "--json").json["status"] == "done", dev.err)
    shown = console.run("runs", "show", "night/bad", "--json").json
    assert (shown["attempt"], shown["output"]) == (2, "slept over break")


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["runs", "start", "nothing"], 5, "no worker has ever hosted a flow 'nothing': there are day, digest, night"),
        (["runs", "start", "digest", "{"], 2, "error[decode]"),
        (["runs", "start", "Big Flow"], 2, "error[invalid_name]"),
        (["runs", "show", "digest"], 2, "names no run"),
        (["runs", "start", "digset"], 5, "; did you mean digest?"),
        (["watch", "digset/none"], 5, "Flows: day, digest, night; did you mean digest/none?"),
        (["runs", "show", "digest/none"], 5, "there is no run digest/none"),
        (["runs", "cancel", "digest/none"], 5, "there is no run digest/none"),
        (["runs", "retry", "digest/none"], 5, "there is no run digest/none"),
        (["watch", "digest/none"], 5, "there is no run digest/none"),
    ],
)
def test_what_goes_wrong_is_said_with_a_status_of_its_own(
    console: Console, dev: Background, args: list[str], status: int, said: str
) -> None:
    run = console.run(*args)
    assert said in run.err
    assert run.status == status, run.err
    assert "Traceback" not in run.err
    assert run.out == ""


def test_a_job_that_does_not_fit_is_refused_with_the_field(console: Console, dev: Background) -> None:
    run = console.run("runs", "start", "digest", '{"texts": 7}', "--wait", "--id", "never")
    assert run.status == 2
    assert "nothing was started" in run.err
    assert "$.texts" in run.err
    assert "there is no run" in console.run("runs", "show", "digest/never").err
