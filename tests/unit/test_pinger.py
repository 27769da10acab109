"""The pinger on the in-memory bus: whom it asks, what it makes of the answer, whom it tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from callboard.runtime import subjects
from callboard.runtime.actor.liveness import Liveness
from callboard.runtime.actor.pinger import PING_EVERY_S, Pinger
from callboard.runtime.bus.base import Message
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.control import Accusation, ProcessEnd, decode_death
from callboard.runtime.errors import DecodeError, PermissionDeniedError
from callboard.runtime.testing import FakeClock


class Stage:
    """A worker ``me`` that pings, and others that answer, on one broker and one clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.broker = MemoryBroker(self.clock)
        self.bus = self.broker.connect(name="me")
        self.seen = Liveness("me", now_s=self.clock.monotonic())
        self.asked: list[str] = []
        self.told: list[Accusation | ProcessEnd] = []

    async def answerer(self, worker: str, *, is_deaf: bool = False) -> MemoryBus:
        bus = self.broker.connect(name=worker)

        def answer(message: Message) -> None:
            self.asked.append(worker)
            if not is_deaf:
                tasks.append(asyncio.ensure_future(bus.publish(message.reply)))

        tasks: list[asyncio.Future[None]] = []
        await bus.subscribe(subjects.ping(worker), answer)
        return bus

    def hear(self, *workers: str) -> None:
        for worker in ("me", *workers):
            self.seen.heard(worker, self.clock.monotonic(), server="memory")

    def is_dead(self, worker: str) -> bool:
        return self.seen.is_dead(worker, self.clock.monotonic())

    @asynccontextmanager
    async def pinging(self) -> AsyncIterator[asyncio.Task[None]]:
        await self.bus.subscribe(subjects.CTL_DEAD, lambda message: self.told.append(decode_death(message.data)))
        task = asyncio.create_task(Pinger(self.bus, self.seen, clock=self.clock, me="me").run())
        await self.clock.settle()
        yield task
        task.cancel()
        await asyncio.wait([task])


async def test_the_neighbour_is_asked_twice_a_second_and_lives() -> None:
    stage = Stage()
    await stage.answerer("w")
    stage.hear("w")
    async with stage.pinging():
        for _ in range(2):
            await stage.clock.advance(1.0)
            stage.hear("w")
    assert 4 <= len(stage.asked) <= 5
    assert not stage.is_dead("w")
    assert not stage.told


async def test_one_that_nobody_hears_is_dead_in_less_than_a_second_and_the_others_are_told_once() -> None:
    stage = Stage()
    answerer = await stage.answerer("w")
    stage.hear("w")
    async with stage.pinging():
        await stage.clock.advance(0.3)
        await answerer.close()
        await stage.clock.advance(0.3)
        assert not stage.is_dead("w")
        await stage.clock.advance(0.6)
        assert stage.is_dead("w")
        await stage.clock.advance(1.0)
    assert stage.told == [Accusation(worker="w", by="me")]


async def test_one_that_hears_and_does_not_answer_is_not_dead_by_pings() -> None:
    stage = Stage()
    await stage.answerer("w", is_deaf=True)
    stage.hear("w")
    async with stage.pinging():
        await stage.clock.advance(1.5)
    assert len(stage.asked) >= 4
    assert not stage.is_dead("w")
    assert not stage.told


async def test_without_a_link_nobody_is_asked_and_nothing_is_noted() -> None:
    stage = Stage()
    stage.hear("w")
    stage.bus.cut()
    async with stage.pinging():
        await stage.clock.advance(1.5)
        assert not stage.is_dead("w")
        assert "w" in stage.seen.suspects(stage.clock.monotonic())


async def test_a_name_that_is_none_harms_nobody() -> None:
    stage = Stage()
    stage.hear("no name. at all*")
    async with stage.pinging() as task:
        await stage.clock.advance(1.0)
        assert not task.done()


async def test_a_user_without_leave_to_ping_stops_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    stage.hear("w")

    async def refuse(subject: str, *_: object, **__: object) -> Message:
        raise PermissionDeniedError(subject)

    monkeypatch.setattr(stage.bus, "request", refuse)
    async with stage.pinging() as task:
        await stage.clock.advance(PING_EVERY_S)
        assert task.done()
        assert not task.cancelled()
        assert task.exception() is None


def test_both_forms_of_a_report_are_read_and_others_are_refused() -> None:
    for report in (Accusation(worker="w", by="me"), ProcessEnd(host="h", pid=7, by="parent")):
        assert decode_death(msgspec.json.encode(report)) == report
    for data in (b"", b"{}", b'{"pid":7}', b'{"worker":7}', b"\xff"):
        with pytest.raises(DecodeError):
            decode_death(data)
