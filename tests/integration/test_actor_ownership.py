"""Who owns a partition when hosts see different things: nobody runs what another one runs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.hosting import ActorHost
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.beat import Beat
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, PubAck, Write
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import BusTimeoutError
from callboard.runtime.version import VERSION
from tests.support.eventually import eventually
from tests.support.world import World

KIND = "owned"
ELSEWHERE = "somebody-else"


class Hello(Struct, frozen=True):
    n: int = 0


class Owned(Actor, name=KIND):
    @on
    async def hear(self, message: Hello) -> int:
        return message.n


def own_beat(worker: str) -> Beat:
    now = SYSTEM_CLOCK.now()
    return Beat(
        v=1, worker=worker, host=socket.gethostname(), pid=os.getpid(), version=VERSION, status="ready",
        started_at=now, at=now, fetched_at=None, labels={}, capabilities=[], actors=[], server="",
    )  # fmt: skip


async def test_a_host_whose_own_beats_were_away_looks_whether_it_still_owns(callboard_world: World) -> None:
    """It may have been stopped for longer than a death takes; its first beat that comes back must not hide that."""
    running = await callboard_world.start(Owned)
    host = running.worker.host
    assert host is not None
    assert await ActorRef(callboard_world.bus, f"{KIND}/a").ask(Hello(1), timeout_s=5) == 1
    partition = host.find(KIND, "a")
    assert partition is not None
    # at rest: it writes nothing that would be refused
    await eventually(lambda: partition.cursor == partition.next_cursor(), what="the cursor being saved")
    taken = replace(partition.cursor, epoch=partition.epoch + 1, owner=ELSEWHERE)
    host.liveness.heard(ELSEWHERE, SYSTEM_CLOCK.monotonic())
    subject = subjects.cursor(KIND, partition.number)
    write = Write(subject, cursors.encode(taken), header.build(expected_seq=partition.cursor_seq))
    _ = await callboard_world.bus.store(write)
    host.liveness._echo_s -= 5.0
    host.heard(own_beat(running.worker.id))
    await eventually(lambda: partition.is_lost, what="the loss being noticed")


class Slow(Actor, name="slow"):
    """Ends its turns when it is told to."""

    begun: ClassVar[list[int]] = []
    go_on: ClassVar[asyncio.Event]

    @on
    async def hear(self, message: Hello) -> int:
        Slow.begun.append(message.n)
        await Slow.go_on.wait()
        return message.n


class Forgetful:
    """A bus that stores a cursor for somebody else, and does not hear the answer."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.lost = 0
        self.on_loss: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the bus has
        return getattr(self._bus, name)

    async def store(self, write: Write, **more: Any) -> PubAck:  # noqa: ANN401 - the bus's own
        ack = await self._bus.store(write, **more)
        if write.subject.startswith("cb.cursor.slow.") and cursors.decode(write.data).held:
            self.lost += 1
            self.on_loss()
            # whoever looks at the cursor now waits for this write's end
            await asyncio.sleep(0)
            message = "the answer was lost"
            raise BusTimeoutError(message)
        return ack


@pytest.mark.parametrize("is_cut_off", [False, True])
async def test_a_turn_under_way_ends_where_it_runs_when_the_answer_to_a_hand_over_is_lost(
    callboard_world: World, is_cut_off: bool
) -> None:
    Slow.begun.clear()
    Slow.go_on = asyncio.Event()
    buses: list[Forgetful] = []

    def wrap(bus: Bus) -> Bus:
        buses.append(Forgetful(bus))
        return cast("Bus", buses[-1])

    first = await callboard_world.start(Slow, wrap=wrap)
    if is_cut_off:
        for bus in buses:
            bus.on_loss = lambda: cast("ActorHost", first.worker.host).doubt()
    asked = [
        asyncio.create_task(ActorRef(callboard_world.bus, f"slow/k{n}").ask(Hello(n), timeout_s=30)) for n in range(16)
    ]
    await eventually(lambda: len(Slow.begun) == 16, what="every turn begun")
    second = await callboard_world.start(Slow)
    host = second.worker.host
    assert host is not None
    await eventually(lambda: host.partitions and sum(bus.lost for bus in buses), within_s=10, what="a hand-over")
    # what is handed over comes one after the other
    await eventually(lambda: len(host.partitions) == 8, within_s=20, what="all hand-overs")
    Slow.go_on.set()
    assert await asyncio.gather(*asked) == list(range(16))
    assert sorted(Slow.begun) == list(range(16))
