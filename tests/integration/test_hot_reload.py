"""New code for running actors: nothing is lost, nothing runs twice, and a turn ends with the code it began with."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from callboard import Actor, capability, on
from callboard.runtime import subjects
from callboard.runtime.actor import inspection
from callboard.runtime.actor.address import Address
from callboard.runtime.development import LiveWorker
from callboard.runtime.errors import ActorDefinitionError, CallboardError, ConfigError
from callboard.runtime.loader import Parts, load_parts
from callboard.runtime.reload import Reloader, Sources
from tests.support.eventually import eventually
from tests.support.hand_host import GREETER
from tests.support.world import World

CODE = """
import asyncio
from msgspec import Struct
from callboard import Actor, on

VERSION = {version}

class Add(Struct):
    number: int

class Greeter(Actor, name="greeter"):
    class State(Struct):
        numbers: list[int] = []

    @on
    async def add(self, m: Add) -> int:
        await asyncio.sleep(0)
        self.state.numbers.append(m.number)
        return VERSION
"""
ACTORS = 4
PER_ACTOR = 60
EDITS = 4


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    path = tmp_path / "hot_reload_actor.py"
    path.write_text(CODE.format(version=0))
    yield path
    for name in set(sys.modules) - before:
        if name.startswith("hot_reload"):
            del sys.modules[name]


class Edits:
    """Edits the file under load, one edit after the other was taken, good and broken ones in turn."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.taken = 0
        self.refused: list[str] = []

    async def make(self) -> None:
        for number in range(1, EDITS + 1):
            self.source.write_text("def (\n")
            await eventually(lambda number=number: len(self.refused) >= number, what="the broken code to be refused")
            self.source.write_text(CODE.format(version=number))
            await eventually(lambda number=number: self.taken >= number, what=f"version {number} to be taken")

    def reloaded(self, files: list[Path]) -> None:
        self.taken += 1

    def failed(self, files: list[Path], error: CallboardError) -> None:
        self.refused.append(str(error))


async def test_edits_under_load_lose_and_double_nothing(callboard_world: World, source: Path) -> None:
    targets = [source.name]
    reloader: Reloader[Parts] = Reloader(Sources(targets, cwd=source.parent), lambda: load_parts(targets), poll_s=0.02)
    parts = reloader.load()
    running = await callboard_world.start(*parts.actors)
    live, edits = LiveWorker(running.worker, parts), Edits(source)

    async def apply(fresh: Parts) -> None:
        live.swap(fresh)

    watching = asyncio.create_task(reloader.run(apply, reloaded=edits.reloaded, failed=edits.failed))
    editing = asyncio.create_task(edits.make())

    async def load(key: int) -> list[int]:
        actor = callboard_world.client.actor(f"greeter/{key}")
        versions: list[int] = []
        number = 0
        while number < PER_ACTOR or versions[-1] < EDITS:
            versions.append(await actor.ask({"number": number}, type="Add", returns=int, idempotency_key=f"n{number}"))
            await actor.tell({"number": -number - 1}, type="Add")
            number += 1
        return versions

    answers = await asyncio.gather(*(load(key) for key in range(ACTORS)))
    await editing
    watching.cancel()
    await asyncio.wait([watching])
    assert len(edits.refused) == EDITS
    for key, versions in enumerate(answers):
        wanted = [n for number in range(len(versions)) for n in (number, -number - 1)]
        assert versions == sorted(versions), "an older class ran after a newer one"
        assert {versions[0], versions[-1]} == {0, EDITS}

        async def is_done(key: int = key, wanted: list[int] = wanted) -> bool:
            state = await inspection.state_json(callboard_world.bus, Address("greeter", str(key)))
            return state is not None and bytes(state) == _state(wanted)

        await eventually(is_done, what=f"every number once and in order in greeter/{key}")
    assert await callboard_world.bus.subject_counts(subjects.DEAD, "cb.dead.>") == {}


def _state(numbers: list[int]) -> bytes:
    return b'{"numbers":[' + b",".join(b"%d" % number for number in numbers) + b"]}"


# --- one swap at a time


class Ask(Struct):
    text: str


class Gate:
    """Holds a turn in its middle."""

    entered: asyncio.Event
    opened: asyncio.Event


class Old(Actor, name="greeter"):
    class State(Struct):
        turns: int = 0

    @on
    async def hello(self, m: Ask) -> str:
        self.state.turns += 1
        Gate.entered.set()
        await Gate.opened.wait()
        return "old"


class New(Actor, name="greeter"):
    class State(Struct):
        turns: int = 0
        seen: list[str] = []

    @on
    async def hello(self, m: Ask) -> str:
        self.state.turns += 1
        self.state.seen.append(m.text)
        return "new"


class Broken(Actor, name="greeter"):
    class State(Struct):
        needed: int

    @on
    async def hello(self, m: Ask) -> str:
        return m.text


@capability("say")
async def say_old(text: str) -> str:
    return f"old {text}"


@capability("say")
def say_new(text: str) -> str:
    return f"new {text}"


def parts_of(actor: type[Actor], function: Any = say_old) -> Parts:  # noqa: ANN401 - a capability
    return Parts(actors=(actor,), capabilities=(function,))


async def test_a_turn_ends_with_the_code_it_began_with_and_its_state_is_kept(callboard_world: World) -> None:
    Gate.entered, Gate.opened = asyncio.Event(), asyncio.Event()
    running = await callboard_world.start(Old, say_old)
    live = LiveWorker(running.worker, parts_of(Old))
    ann = callboard_world.client.actor(GREETER)
    first = asyncio.create_task(ann.ask(Ask("one")))
    await Gate.entered.wait()
    second = asyncio.create_task(ann.ask(Ask("two")))
    live.swap(parts_of(New, say_new))
    Gate.opened.set()
    assert (await first, await second) == ("old", "new")
    state = await inspection.state_json(callboard_world.bus, GREETER)
    assert state is not None
    assert bytes(state) == b'{"turns":2,"seen":["two"]}'
    assert await callboard_world.client.call("say", "it", timeout_s=10) == "new it"


async def test_an_idle_actor_takes_the_new_code_with_its_next_message(callboard_world: World) -> None:
    Gate.entered, Gate.opened = asyncio.Event(), asyncio.Event()
    Gate.opened.set()
    running = await callboard_world.start(Old, say_old)
    ann = callboard_world.client.actor(GREETER)
    assert await ann.ask(Ask("one")) == "old"
    LiveWorker(running.worker, parts_of(Old)).swap(parts_of(New))
    assert await ann.ask(Ask("two")) == "new"


async def test_a_class_that_cannot_be_used_changes_nothing(callboard_world: World) -> None:
    Gate.entered, Gate.opened = asyncio.Event(), asyncio.Event()
    Gate.opened.set()
    running = await callboard_world.start(Old, say_old)
    live = LiveWorker(running.worker, parts_of(Old))
    with pytest.raises(ActorDefinitionError, match="needed"):
        live.swap(parts_of(Broken, say_new))
    with pytest.raises(ConfigError, match="added or removed"):
        live.swap(Parts(actors=(Old,)))
    assert await callboard_world.client.actor(GREETER).ask(Ask("one")) == "old"
    assert await callboard_world.client.call("say", "it", timeout_s=10) == "old it"
