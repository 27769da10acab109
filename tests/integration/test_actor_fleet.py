"""Hosts with different code for one type: the newer version owns, and other code under one version is told."""

from __future__ import annotations

import logging

import pytest
from msgspec import Struct

from callboard.runtime import events
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.fleet import differing
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.migration import migrate
from callboard.runtime.beat import decode_beat
from tests.support.actors import state_of
from tests.support.eventually import eventually
from tests.support.world import World


class Add(Struct):
    by: int = 1


class Sub(Struct):
    by: int = 1


class Old(Actor, name="sum"):
    class State(Struct):
        total: int = 0

    @on
    async def add(self, m: Add) -> str:
        self.state.total += m.by
        return "old"


class Same(Actor, name="sum"):
    class State(Struct):
        total: int = 0

    @on
    async def add(self, m: Add) -> str:
        self.state.total += m.by
        return "same"

    @on
    async def sub(self, m: Sub) -> str:
        self.state.total -= m.by
        return "same"


class New(Actor, name="sum", version=2):
    class State(Struct):
        grand: int = 0

    @migrate(1)
    @staticmethod
    def one(state: dict[str, object]) -> dict[str, object]:
        return {"grand": state["total"]}

    @on
    async def add(self, m: Add) -> str:
        self.state.grand += m.by
        return "new"


async def test_the_host_with_the_newer_state_owns_all(callboard_world: World) -> None:
    world = callboard_world
    old = await world.start(Old)
    keys = [f"sum/k{number}" for number in range(12)]
    for key in keys:
        assert await world.client.actor(key).ask(Add()) == "old"
    new = await world.start(New)

    def is_moved() -> bool:
        assert old.worker.host is not None
        assert new.worker.host is not None
        return not old.worker.host.partitions and len(new.worker.host.partitions) == 16

    await eventually(is_moved, within_s=15)
    for key in keys:
        assert await world.client.actor(key).ask(Add(2), idempotency_key="two") == "new"
        assert await state_of(world, key) == {"grand": 3}


async def test_other_code_under_one_version_is_warned_of_once(
    callboard_world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = callboard_world
    caplog.set_level(logging.WARNING)
    first = await world.start(Old)
    second = await world.start(Same)

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.getMessage() == events.CODE_DIFFERED]

    await eventually(lambda: len(warnings()) == 2)
    third = await world.start(Old)
    assert await world.client.actor("sum/a").ask(Add()) in ("old", "same")
    beats = [decode_beat(running.worker.beat()) for running in (first, second, third)]
    codes = differing(beats)
    ours, theirs = ActorType.of(Old).fingerprint, ActorType.of(Same).fingerprint
    assert codes == {"sum": {ours: sorted([first.worker.id, third.worker.id]), theirs: [second.worker.id]}}
    assert differing([beats[0], beats[2]]) == {}
