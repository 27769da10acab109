"""Real processes that lead the registry or host agents are killed and stopped; a real server stands between them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from callboard.runtime.bus.base import Bus
from callboard.runtime.capability import capability
from callboard.runtime.errors import BusError
from callboard.runtime.registry.actor import Lead, Led
from callboard.runtime.registry.message import FIND, Found, Query
from tests.support.eventually import eventually
from tests.support.registry_host import Note
from tests.support.world import QUICK, World, open_world

ROOT = Path(__file__).parents[2]
TAKEN_OVER_S = 15.0


@capability("nothing")
async def nothing() -> None:
    """Give a worker something to serve."""


class Scene:
    """A world on a real server and worker processes of its own."""

    def __init__(self, world: World, notes: Path) -> None:
        self.world = world
        self.notes = notes
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def host(self) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.registry_host",
            self.world.bus.server.url,
            str(self.notes),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        self.processes[f"host-{process.pid}"] = process
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return f"host-{process.pid}"

    async def leader(self) -> str:
        found = await self.world.client.actor("registry/main").ask(Lead(), returns=Led)
        return found.worker

    async def close(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_world("jetstream", tmp_path / "server") as world:
        scene = Scene(world, tmp_path / "notes")
        try:
            yield scene
        finally:
            await scene.close()


async def found(bus: Bus, query: Query) -> Found | None:
    try:
        answer = await bus.request(FIND, msgspec.json.encode(query), timeout_s=0.5)
    except BusError:
        return None
    return msgspec.json.decode(answer.data, type=Found)


async def is_status(scene: Scene, *wanted: str) -> bool:
    query = Query(capability="note", status=["idle", "busy", "suspect", "offline", "paused", "failed"])
    seen = await found(scene.world.bus, query)
    return seen is not None and [agent.status for agent in seen.agents] == list(wanted)


async def test_the_registry_survives_the_kill_of_its_leader_and_knows_what_it_knew(scene: Scene) -> None:
    for _ in range(3):
        await scene.host()
    assert await scene.world.client.actor("clerk/ann").ask(Note("a")) == 1
    await eventually(lambda: is_status(scene, "idle"))
    for _ in range(2):
        leader = await scene.leader()
        process = scene.processes.pop(leader)
        process.kill()
        await process.wait()
        await eventually(lambda: is_status(scene, "idle"), within_s=TAKEN_OVER_S, what="the registry answers")
        assert await scene.leader() != leader
    assert await scene.world.client.actor("clerk/ann").ask(Note("b")) == 2


async def test_a_stopped_worker_makes_its_agents_offline_and_a_continued_one_idle_with_nothing_done_twice(
    scene: Scene,
) -> None:
    world = scene.world
    await world.start(nothing, options=msgspec.structs.replace(QUICK, hosts_registry=True), worker_id="leads")
    name = await scene.host()
    names = [f"n{number}" for number in range(20)]
    for each in names[:10]:
        await world.client.actor("clerk/ann").tell(Note(each), id=each)
    await eventually(lambda: is_status(scene, "idle"), what="the agent is known and has done its mail")
    process = scene.processes[name]
    process.send_signal(signal.SIGSTOP)
    try:
        for each in names[10:]:
            await world.client.actor("clerk/ann").tell(Note(each), id=each)
        await eventually(lambda: is_status(scene, "offline"), within_s=TAKEN_OVER_S, what="offline")
    finally:
        process.send_signal(signal.SIGCONT)
    await eventually(lambda: is_status(scene, "idle"), within_s=TAKEN_OVER_S, what="idle again")

    def all_noted() -> bool:
        return scene.notes.read_text().split() == names

    await eventually(all_noted, within_s=TAKEN_OVER_S, what="every mail was handled once, in order")
