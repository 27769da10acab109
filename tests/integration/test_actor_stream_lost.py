"""The actors' stream is deleted, or replaced, under a worker: it ends loudly and runs nobody without a state."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.guard import problem_of
from callboard.runtime.actor.handler import on
from callboard.runtime.bus.base import StreamConfig, StreamInfo
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import TopologyError
from tests.support.world import World


class Add(Struct):
    number: int


class Sum(Actor):
    class State(Struct):
        total: int = 0

    state: State

    @on
    async def add(self, m: Add) -> int:
        self.state.total += m.number
        return self.state.total


@pytest.mark.parametrize("is_made_again", [False, True])
async def test_a_worker_ends_when_its_actors_stream_is_another(callboard_world: World, *, is_made_again: bool) -> None:
    world = callboard_world
    worker = await world.start(Sum)
    assert await world.client.actor("sum/a").ask(Add(2)) == 2
    await world.bus.delete_stream("CB_ACTORS")
    if is_made_again:
        await apply(world.bus, await plan(world.bus, declared(TopologySettings())))
    with pytest.raises(TopologyError, match="CB_ACTORS"):
        await asyncio.wait_for(asyncio.shield(worker.task), 20)
    world.workers.remove(worker)


def test_a_stream_that_ends_where_we_left_it_is_well() -> None:
    def info(last_seq: int, *, leader: str | None = "") -> StreamInfo:
        config = StreamConfig(name="CB_ACTORS")
        return StreamInfo(
            config=config, messages=1, size_bytes=1, first_seq=1, last_seq=last_seq, consumers=0, leader=leader
        )

    assert problem_of(info(9), 9) is None
    # without a leader nobody knows
    assert problem_of(info(3, leader=None), 9) is None
    assert "made anew" in (problem_of(info(8), 9) or "")
    assert "deleted" in (problem_of(None, 0) or "")
