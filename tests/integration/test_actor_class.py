"""The actor class on a running worker: messages sent on, handlers in threads, states of older classes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.migration import migrate
from callboard.runtime.actor.record import decode
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.actor.turn_api import current_turn
from callboard.runtime.errors import AskFailedError
from tests.support.eventually import eventually
from tests.support.world import World


class Parcel(Struct):
    weight: int


class Receipt(Struct):
    weight: int


class Sealed(Struct):
    weight: int


class Desk(Actor):
    """Sends parcels on to the shelf."""

    @on
    async def parcel(self, m: Parcel) -> Any:  # noqa: ANN401 - what the shelf says
        m.weight += 1
        self.tell("shelf/told", m)
        self.tell("shelf/other", Receipt(m.weight))
        return await self.ask("shelf/asked", m)

    @on
    def sealed(self, m: Sealed) -> dict[str, Any]:
        size = self.wait(self.step("measure", len, "abc"))
        self.tell("shelf/thread", m)
        return {"size": size, "turn": current_turn().key}


class Shelf(Actor):
    """Keeps what came in."""

    class State(Struct):
        got: list[msgspec.Raw] = []

    @on
    async def take(self, m: Parcel | Receipt | Sealed) -> Any:  # noqa: ANN401 - what came in
        self.state.got.append(msgspec.Raw(self.mail.data))
        return msgspec.json.decode(self.mail.data)


async def _state(world: World, kind: str, key: str) -> dict[str, Any] | None:
    stored = await world.bus.get_last(subjects.ACTORS, subjects.state(kind, key))
    record = decode(stored.data) if stored is not None else None
    return msgspec.json.decode(record.state) if record is not None and isinstance(record.state, msgspec.Raw) else None


async def _shelf(world: World, key: str) -> object:
    async def found() -> bool:
        return await _state(world, "shelf", key) is not None

    await eventually(found)
    return await _state(world, "shelf", key)


@pytest.mark.parametrize("typed", [True, False])
async def test_unknown_fields_go_along_with_the_message_and_with_no_other(callboard_world: World, typed: bool) -> None:
    world = callboard_world
    await world.start(Desk, Shelf)
    desk = ActorRef(world.bus, "desk/one")
    body = {"weight": 1, "colour": "red"}
    message = body if typed else {"type": "Parcel", "data": body}
    answer = await desk.ask(message, type="Parcel" if typed else None)
    assert answer == {"weight": 2, "colour": "red"}
    assert await _shelf(world, "told") == {"got": [{"weight": 2, "colour": "red"}]}
    assert await _shelf(world, "other") == {"got": [{"weight": 2}]}


async def test_a_synchronous_handler_tells_and_steps_from_its_thread(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Desk, Shelf)
    answer = await ActorRef(world.bus, "desk/one").ask({"weight": 1, "colour": "red"}, type="Sealed")
    assert answer == {"size": 3, "turn": "one"}
    assert await _shelf(world, "thread") == {"got": [{"weight": 1, "colour": "red"}]}


class Old(Actor, name="tally"):
    """The first version of a class."""

    class State(Struct):
        count: int = 0

    @on
    async def add(self, m: int) -> int:
        self.state.count += m
        return int(self.state.count)


class New(Actor, name="tally", version=2):
    """The second, whose migration fails as long as it is told to."""

    is_broken = True

    class State(Struct):
        total: int = 0

    @on
    async def add(self, m: int) -> int:
        self.state.total += m
        return int(self.state.total)

    @migrate(1)
    @staticmethod
    def rename(old: dict[str, Any]) -> dict[str, Any]:
        if New.is_broken:
            raise OSError(len(old))
        return {"total": old.pop("count") * 10}


async def test_a_state_moves_to_the_next_version_by_the_turn_that_loads_it(
    callboard_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = callboard_world
    old = await world.start(Old)
    tally = ActorRef(world.bus, "tally/one")
    assert await tally.ask(4, type="int") == 4
    await old.stop()
    new = await world.start(New)
    with pytest.raises(AskFailedError):
        await tally.ask(1, type="int", timeout_s=30)
    assert await _state(world, "tally", "one") == {"count": 4}
    await new.stop()
    monkeypatch.setattr(New, "is_broken", False)
    await world.start(New)
    assert await tally.ask(1, type="int") == 41
    assert await _state(world, "tally", "one") == {"total": 41}
