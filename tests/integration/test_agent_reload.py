"""New code for running agents: tasks go on with the agent they began with, the conversation stays, nothing is lost."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from callboard.agents.message import AgentResult, Task
from callboard.runtime.development import LiveWorker
from callboard.runtime.errors import CallboardError
from callboard.runtime.loader import Parts, load_parts
from callboard.runtime.reload import Reloader, Sources
from tests.support.actors import state_of
from tests.support.eventually import eventually
from tests.support.world import World

CODE = '''
from callboard import Agent
from callboard.agents.llm.scripted import Say, Scripted

class Teller(Agent, name="teller", memory=500, model=Scripted([Say(text="version {version}", always=True)])):
    """You tell version {version}."""
'''
EDITS = 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    there = tmp_path / "crew"
    there.mkdir()
    (there / "reload_teller.py").write_text(CODE.format(version=0))
    (there / "reload_ruin.py").write_text("def (\n")
    yield there
    for name in set(sys.modules) - before:
        if name.startswith("reload_"):
            del sys.modules[name]


class Edits:
    """Edits the agent under load, good and broken code in turn, each after the one before it was seen."""

    def __init__(self, world: World, folder: Path) -> None:
        self.taken = 0
        self.refused: list[str] = []
        self._world = world
        self._folder = folder
        self._whole: set[str] = set()
        self._reloader: Reloader[Parts] = Reloader(Sources(["crew"], cwd=folder.parent), self._load, poll_s=0.02)

    def _load(self) -> Parts:
        found = load_parts(["crew"], whole=self._whole)
        self._whole.update(found.sources.values())
        return found

    async def begin(self) -> asyncio.Task[None]:
        """Host the agent and watch its folder; return the watch."""
        parts = self._reloader.load()
        assert [skipped.name for skipped in parts.skipped] == ["crew/reload_ruin.py"]
        live = LiveWorker((await self._world.start(*parts.actors)).worker, parts)

        async def apply(fresh: Parts) -> None:
            live.swap(fresh)

        return asyncio.create_task(self._reloader.run(apply, reloaded=self._reloaded, failed=self._failed))

    async def make(self) -> None:
        """Make them all."""
        path = self._folder / "reload_teller.py"
        for number in range(1, EDITS + 1):
            # what could be used is not left out when it is broken: the code before it goes on
            path.write_text("def (\n")
            await eventually(lambda number=number: len(self.refused) >= number)
            path.write_text(CODE.format(version=number))
            await eventually(lambda number=number: self.taken >= number)

    def _reloaded(self, files: list[Path]) -> None:
        self.taken += 1

    def _failed(self, files: list[Path], error: CallboardError) -> None:
        self.refused.append(str(error))


async def test_an_agent_of_a_folder_is_edited_under_load_and_forgets_nothing(
    callboard_world: World, folder: Path
) -> None:
    edits = Edits(callboard_world, folder)
    watching = await edits.begin()
    editing = asyncio.create_task(edits.make())
    said: list[str] = []
    while not editing.done() or said[-1] != f"version {EDITS}":
        task = Task(f"question {len(said)}")
        found = await callboard_world.client.actor("teller/ann").ask(task, returns=AgentResult, timeout_s=20)
        said.append(found.text)
    await editing
    watching.cancel()
    await asyncio.wait([watching])
    assert (said[0], said[-1]) == ("version 0", f"version {EDITS}")
    assert said == sorted(said)
    assert len(edits.refused) == EDITS
    state = await state_of(callboard_world, "teller/ann")
    assert state["tasks"] == len(said)
    asked = [message["text"] for message in state["messages"] if message["role"] == "user"]
    assert asked == [f"question {number}" for number in range(len(said))][-len(asked) :]
    assert len(asked) == min(len(said), 250)
