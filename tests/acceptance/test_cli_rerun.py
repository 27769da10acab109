"""``callboard replay RUN --diff``, against a real server and a provider that writes down each call."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.console import Console

ROOT = Path(__file__).parents[2]
CODE = '''
from msgspec import Struct

from callboard import Agent, Run, flow


class Reviewer(Agent, name="reviewer", model="near/small"):
    """You review texts. Be strict."""


class Job(Struct):
    texts: list[str]


@flow
async def review(run: Run, job: Job) -> list[str]:
    """Have each text reviewed."""
    found = [await run.agent(f"reviewer/{n}", text) for n, text in enumerate(job.texts)]
    return [each.text for each in found]
'''
SETTINGS = """
agents:
  providers:
    near: {kind: openai, base_url: "URL", api_key: none}
"""


class Scene:
    """A run that has ended, and the folder with its code."""

    def __init__(self, console: Console, calls: Path) -> None:
        self.console = console
        self._calls = calls

    def calls(self) -> int:
        return len(self._calls.read_text().splitlines()) if self._calls.exists() else 0

    def write(self, name: str, old: str, new: str) -> str:
        assert old in CODE
        (self.console.folder / name).write_text(CODE.replace(old, new))
        return name


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    console = Console(tmp_path_factory.mktemp("rerun"))
    calls = console.folder / "calls.txt"
    argv = [sys.executable, "-m", "tests.support.provider", "--port", "0", "--calls", str(calls)]
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    provider = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
    assert provider.stdout is not None
    try:
        url = provider.stdout.readline().strip()
        (console.folder / "callboard.yaml").write_text(SETTINGS.replace("URL", url))
        (console.folder / "flows.py").write_text(CODE)
        console.dev("flows.py")
        done = console.run("runs", "start", "review", '{"texts": ["one", "two"]}', "--wait", "--id", "7f")
        assert done.status == 0, done.err
        yield Scene(console, calls)
    finally:
        provider.terminate()
        provider.wait()
        provider.stdout.close()
        console.close()


def test_on_unchanged_code_nothing_differs_and_nobody_is_called(scene: Scene) -> None:
    before = scene.calls()
    assert before == 2
    done = scene.console.run("replay", "review/7f", "--diff", "--deep", "--module", "flows.py")
    assert done.status == 0, done.out + done.err
    lines = done.out.splitlines()
    assert [line.partition(":")[0].rpartition("/")[0] for line in lines] == [
        "run-review/7f",
        "reviewer/0",
        "reviewer/1",
    ]
    assert all("no difference" in line and "0 outside calls" in line for line in lines), done.out
    found = scene.console.run("replay", "run", "run-review/7f", "--diff", "--module", "flows.py", "--json")
    assert (found.status, found.json["equal"], len(found.json["turns"])) == (0, True, 1)
    assert scene.calls() == before


def test_on_a_changed_prompt_the_first_step_is_named(scene: Scene) -> None:
    before = scene.calls()
    changed = scene.write("kind.py", "Be strict.", "Be kind.")
    done = scene.console.run("replay", "reviewer/0", "--diff", "--module", changed)
    assert done.status == 1, done.out + done.err
    assert "first: step 'model' asks for something else" in done.out
    assert "-You review texts. Be strict." in done.out
    assert "+You review texts. Be kind." in done.out
    run = scene.console.run("replay", "review/7f", "--diff", "--deep", "--module", changed, "--json")
    assert (run.status, run.json["equal"]) == (1, False)
    turns = [(turn["turn"].rpartition("/")[0], turn["equal"]) for turn in run.json["turns"]]
    assert turns == [("run-review/7f", True), ("reviewer/0", False), ("reviewer/1", False)]
    assert run.json["turns"][1]["differences"][0]["name"] == "model"
    assert scene.calls() == before


def test_a_changed_flow_is_found(scene: Scene) -> None:
    changed = scene.write("backwards.py", "enumerate(job.texts)", "enumerate(job.texts[::-1])")
    done = scene.console.run("replay", "review/7f", "--diff", "--module", changed)
    assert done.status == 1, done.out + done.err
    assert "first: step 'agent begun' asks for something else" in done.out


def test_what_cannot_run_again_is_told(scene: Scene) -> None:
    assert scene.console.run("replay", "review/none", "--diff", "--module", "flows.py").status == 5
    missing = scene.console.run("replay", "other/7f", "--diff", "--module", "flows.py")
    assert missing.status == 2
    assert "the code of 'other' is not here: name its file with --module" in missing.err
    idle = scene.console.run("replay", "review/7f", "--module", "flows.py")
    assert idle.status == 2
    assert "--diff compares" in idle.err
