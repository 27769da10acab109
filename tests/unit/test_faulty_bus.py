"""The bus with faults: each fault does what it says, and none breaks what a broker keeps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from random import Random
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from callboard.runtime.bus.base import Bus, Delivery, Message, PubAck, Write
from callboard.runtime.bus.faulty import FaultRates, FaultyBus
from callboard.runtime.bus.memory import MemoryBroker
from callboard.runtime.errors import (
    BackpressureError,
    BusClosedError,
    BusError,
    BusTimeoutError,
    ConflictError,
    NoRespondersError,
)
from callboard.runtime.testing import FakeClock
from tests.support.broker import LOG, cas, fill, work_queue

T = TypeVar("T")
MIXED = FaultRates(
    drop=0.05, lose_ack=0.05, delay=0.2, duplicate=0.1, reorder=0.1, refuse=0.05, reopen=0.05, cut=0.02, late=0.5
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def broker(clock: FakeClock) -> MemoryBroker:
    return MemoryBroker(clock)


@pytest_asyncio.fixture
async def truth(broker: MemoryBroker) -> AsyncIterator[Bus]:
    """Return a connection without faults."""
    bus = broker.connect()
    await bus.create_stream(LOG)
    await work_queue(bus)
    yield bus
    await bus.close()


@pytest_asyncio.fixture
async def bus(broker: MemoryBroker, clock: FakeClock, truth: Bus) -> AsyncIterator[FaultyBus]:
    bus = FaultyBus(broker.connect(), Random(7), FaultRates(), clock)
    yield bus
    await bus.close()


async def done(clock: FakeClock, work: Coroutine[Any, Any, Any], *, within_s: float = 600.0) -> Any:  # noqa: ANN401 - anything
    """Run ``work`` to its end, moving the clock as it needs."""
    task = asyncio.ensure_future(work)
    deadline = clock.monotonic() + within_s
    while not task.done():
        assert clock.monotonic() < deadline, "it hangs"
        await clock.advance(0.05)
    return await task


async def stored(truth: Bus) -> list[bytes]:
    return [message.data for message in await truth.get_many("L", ["l.>"])]


def test_it_has_every_method_of_the_port_itself() -> None:
    """It inherits from the protocol, whose own methods would quietly do nothing."""
    port = {name for name, member in vars(Bus).items() if callable(member) or isinstance(member, property)}
    assert {name for name in port if not name.startswith("_")} <= set(vars(FaultyBus))


# --- writes


@pytest.mark.parametrize(
    "fate",
    [
        (FaultRates(drop=1), BusTimeoutError, False),
        (FaultRates(lose_ack=1), BusTimeoutError, True),
        (FaultRates(refuse=1), BackpressureError, False),
        (FaultRates(delay=1), None, True),
        (FaultRates(duplicate=1, reorder=1), None, True),
    ],
)
async def test_a_write_meets_its_fault(
    clock: FakeClock, truth: Bus, bus: FaultyBus, fate: tuple[FaultRates, type[BusError] | None, bool]
) -> None:
    rates, error, is_stored = fate
    writes: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: bus.store(Write("l.a", b"1")),
        lambda: bus.store_batch([Write("l.b", b"1"), Write("l.c", b"1")]),
    ]
    bus.faults.rates = rates
    for write in writes:
        if error is None:
            await done(clock, write())
        else:
            with pytest.raises(error):
                await done(clock, write())
    answers = await done(clock, bus.store_many([Write("l.d", b"1"), Write("l.e", b"1")]))
    assert [type(answer) for answer in answers] == [error or PubAck] * 2
    assert len(await stored(truth)) == (5 if is_stored else 0)


async def test_a_pipeline_loses_all_from_one_on(clock: FakeClock, truth: Bus, broker: MemoryBroker) -> None:
    seen: set[tuple[str, ...]] = set()
    for seed in range(30):
        bus = FaultyBus(broker.connect(), Random(seed), FaultRates(drop=0.2, refuse=0.2), clock)
        await truth.purge("L")
        answers = await done(clock, bus.store_many([Write("l.a", b"%d" % number) for number in range(6)]))
        kinds = [type(answer).__name__ for answer in answers]
        assert kinds == sorted(kinds, key=lambda kind: kind == "BusTimeoutError")
        kept = [b"%d" % number for number, answer in enumerate(answers) if isinstance(answer, PubAck)]
        assert [message.data async for message in truth.read("L")] == kept
        seen.add(tuple(kinds))
        await bus.close()
    assert len(seen) > 10


async def test_late_writes_of_one_connection_keep_their_order(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    bus.faults.rates = FaultRates(delay=0.5)
    await done(clock, _together(bus.store(Write("l.a", b"%d" % number)) for number in range(50)))
    assert bus.faults.injected["delay"] > 10
    assert [message.data async for message in truth.read("L")] == [b"%d" % number for number in range(50)]


async def _together(work: Any) -> None:  # noqa: ANN401 - an iterable of coroutines
    await asyncio.gather(*work)


async def test_a_lost_answer_may_be_a_refusal(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    await fill(truth, b"1", subject="l.a")
    bus.faults.rates = FaultRates(lose_ack=1)
    with pytest.raises(BusTimeoutError):
        await done(clock, bus.store(cas("l.a", b"2", 0)))
    bus.faults.rates = FaultRates()
    with pytest.raises(ConflictError):
        await bus.store(cas("l.a", b"2", 0))


# --- reads


async def test_only_a_read_from_the_leader_is_never_stale(truth: Bus, bus: FaultyBus) -> None:
    await fill(truth, b"1", b"2", subject="l.a")
    bus.faults.rates = FaultRates(stale=1)
    old = await bus.get_last("L", "l.a")
    assert old is not None
    assert old.data == b"1"
    assert await bus.get_seq("L", 2) is None
    assert await bus.get_many("L", ["l.a"]) == []
    new = await bus.get_last("L", "l.a", from_leader=True)
    assert new is not None
    assert new.data == b"2"
    assert await bus.get_seq("L", 2, from_leader=True) == new
    assert await bus.get_many("L", ["l.a"], from_leader=True) == [new]


# --- plain messages


async def hear(truth: Bus, bus: FaultyBus, clock: FakeClock, count: int = 40) -> list[bytes]:
    got: list[Message] = []
    subscription = await bus.subscribe("plain", got.append)
    for number in range(count):
        await truth.publish("plain", b"%d" % number)
        await clock.settle()
    await clock.advance(1.0)
    await subscription.close()
    return [message.data for message in got]


async def test_plain_messages_come_twice(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    bus.faults.rates = FaultRates(duplicate=0.3)
    got = await hear(truth, bus, clock)
    assert set(got) == {b"%d" % number for number in range(40)}
    assert len(got) == 40 + bus.faults.injected["duplicate"] > 45


async def test_plain_messages_are_overtaken_by_a_few(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    bus.faults.rates = FaultRates(reorder=0.3, reorder_window=3)
    got = [int(data) for data in await hear(truth, bus, clock)]
    assert sorted(got) == list(range(40))
    assert got != sorted(got)
    late = {number: sum(1 for other in got[: got.index(number)] if other > number) for number in got}
    # Those that are themselves held back do not count as overtaking.
    assert 0 < max(late.values()) <= 6


async def test_a_lost_request_times_out_and_a_heard_one_may_lose_its_answer(
    clock: FakeClock, truth: Bus, bus: FaultyBus
) -> None:
    asked: list[Message] = []
    tasks: list[asyncio.Future[None]] = []

    def answer(message: Message) -> None:
        asked.append(message)
        tasks.append(asyncio.ensure_future(truth.publish(message.reply, b"yes")))

    await truth.subscribe("ask", answer)
    assert (await done(clock, bus.request("ask"))).data == b"yes"
    with pytest.raises(NoRespondersError):
        await bus.request("nobody")
    bus.faults.rates = FaultRates(drop=1)
    with pytest.raises(BusTimeoutError):
        await done(clock, bus.request("ask"))
    await bus.publish("ask")
    assert len(asked) == 1
    bus.faults.rates = FaultRates(lose_ack=1)
    with pytest.raises(BusTimeoutError):
        await done(clock, bus.request("ask"))
    assert len(asked) == 2
    bus.faults.rates = FaultRates(refuse=1)
    with pytest.raises(BackpressureError):
        await bus.publish("ask")


# --- deliveries


async def test_deliveries_come_again_with_a_higher_count_and_within_the_credit(
    clock: FakeClock, truth: Bus, bus: FaultyBus
) -> None:
    bus.faults.rates = FaultRates(duplicate=0.5, delay=0.3, max_delay_s=0.5)
    await fill(truth, *(b"%d" % number for number in range(20)))
    got: list[Delivery] = []
    pull = await done(clock, bus.pull("W", "c", got.append))
    pull.grant(20)
    await clock.advance(1.0)
    assert len(got) == 20
    assert pull.credit == 0
    pull.grant(100)
    await clock.advance(1.0)
    again = [delivery for delivery in got if delivery.delivered > 1]
    assert len(again) > 3
    assert pull.credit == 120 - len(got)
    counts: dict[int, list[int]] = {}
    for delivery in got:
        counts.setdefault(delivery.seq, []).append(delivery.delivered)
    assert all(sorted(found) == list(range(1, len(found) + 1)) for found in counts.values())
    await pull.close()


async def test_deliveries_into_a_cut_link_come_again(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    pull.grant(5)
    bus.cut()
    assert pull.problem == "not connected"
    await fill(truth, b"1", b"2")
    await clock.advance(1.0)
    heard = pull.last_heard
    assert not got
    assert pull.credit == 5
    bus.mend()
    await clock.advance(5.0)
    assert [(delivery.data, delivery.delivered) for delivery in got] == [(b"1", 2), (b"2", 2)]
    assert pull.credit == 3
    assert pull.problem is None
    assert pull.last_heard > heard
    await pull.close()


async def test_acks_can_be_lost(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    await fill(truth, b"1")
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    pull.grant(2)
    await clock.settle()
    bus.faults.rates = FaultRates(drop=1)
    await bus.ack([got[0].token])
    with pytest.raises(BusTimeoutError):
        await done(clock, bus.ack([got[0].token], confirm=True))
    await bus.extend([got[0].token])
    await bus.nak(got[0].token, delay_s=0)
    await bus.term(got[0].token, "reason")
    bus.faults.rates = FaultRates()
    await clock.advance(4.5)
    assert [delivery.delivered for delivery in got] == [1, 2]
    await bus.ack([got[1].token], confirm=True)


# --- the link


async def test_a_cut_link_answers_nobody_until_it_is_mended(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    calls: list[float] = []
    heard: list[Message] = []
    bus.on_reconnect(lambda: calls.append(clock.monotonic()))
    await bus.subscribe("plain", heard.append)
    bus.cut()
    assert not bus.is_connected
    begun = clock.monotonic()
    with pytest.raises(BusTimeoutError):
        await done(clock, bus.store(Write("l.a", b"1"), timeout_s=0.5))
    assert clock.monotonic() - begun < 1.0
    await truth.publish("plain")
    await bus.publish("l.b", b"lost")
    waiting = asyncio.ensure_future(bus.store(Write("l.c", b"2")))
    await clock.advance(0.3)
    bus.mend()
    await done(clock, _settled(waiting))
    assert bus.is_connected
    assert bus.connected_at == calls[0]
    assert not heard
    assert await stored(truth) == [b"2"]
    bus.mend()
    await clock.settle()
    assert len(calls) == 1


async def _settled(task: asyncio.Future[Any]) -> Any:  # noqa: ANN401 - whatever it gives
    return await task


async def test_a_cut_during_a_call_leaves_its_outcome_unknown(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    waiting = asyncio.ensure_future(bus.store(Write("l.a", b"1")))
    await asyncio.sleep(0)
    bus.cut()
    with pytest.raises(BusTimeoutError):
        await done(clock, _settled(waiting))
    assert await stored(truth) == [b"1"]


async def test_a_write_into_a_cut_link_may_be_carried_out_long_after_it_was_given_up(
    clock: FakeClock, truth: Bus, bus: FaultyBus
) -> None:
    bus.faults.rates = FaultRates(late=1)
    bus.cut()
    with pytest.raises(BusTimeoutError):
        await done(clock, bus.store(cas("l.a", b"late", 0)))
    with pytest.raises(BusTimeoutError):
        await done(clock, bus.store(cas("l.b", b"refused", 0)))
    await bus.publish("l.c", b"kept")
    await clock.advance(30)
    await fill(truth, b"first", subject="l.b")
    bus.mend()
    await clock.settle()
    assert sorted(await stored(truth)) == [b"first", b"kept", b"late"]


async def test_a_cut_by_the_dice_mends_itself(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    bus.faults.rates = FaultRates(cut=1, silence_s=0.001, max_cut_s=1.0)
    with pytest.raises(BusTimeoutError):
        await done(clock, bus.stream_names())
    bus.faults.rates = FaultRates()
    await clock.advance(1.0)
    assert bus.is_connected
    assert await bus.stream_names() == ["L", "W"]


async def test_closing_frees_whoever_waits_for_the_link(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    bus.cut()
    waiting = asyncio.ensure_future(bus.store(Write("l.a", b"1"), timeout_s=3600))
    await clock.settle()
    await bus.close()
    await bus.close()
    with pytest.raises(BusError):
        await done(clock, _settled(waiting))
    with pytest.raises(BusClosedError):
        await bus.store(Write("l.a", b"1"))


# --- tails, and everything at once


def complaints(got: list[int], wanted: list[int]) -> list[str]:
    """Return what a tail did wrong."""
    found = []
    if len(set(got)) != len(got):
        found.append("doubled")
    if got != sorted(got):
        found.append("out of order")
    if set(wanted) - set(got):
        found.append("left out")
    return found


def test_the_check_of_tails_sees_each_mistake() -> None:
    assert complaints([1, 2, 3], [1, 2, 3]) == []
    assert complaints([1, 2, 2, 3], [1, 2, 3]) == ["doubled"]
    assert complaints([1, 3, 2], [1, 2, 3]) == ["out of order"]
    assert complaints([1, 3], [1, 2, 3]) == ["left out"]


class Race:
    """Three writers count one subject up by compare-and-set under faults, and a tail listens."""

    def __init__(self, seed: int, rates: FaultRates) -> None:
        self.clock = FakeClock()
        self.broker = MemoryBroker(self.clock)
        self.buses = [
            FaultyBus(self.broker.connect(), Random(seed * 10 + number), rates, self.clock) for number in range(3)
        ]
        self.got: list[int] = []
        self.marks: list[bytes] = []
        self.wrong: list[str] = []

    async def run(self) -> Race:
        truth = self.broker.connect()
        await truth.create_stream(LOG)
        await done(self.clock, self._all())
        await self.clock.advance(10)
        final = await truth.get_last("L", "l.count")
        assert final is not None
        self.marks = final.data.split()
        self.wrong = complaints(self.got, [stored.seq async for stored in truth.read("L")])
        for bus in self.buses:
            await bus.close()
        await truth.close()
        return self

    async def _all(self) -> None:
        bus = self.buses[0]
        await self._insist(lambda: bus.tail("L", "l.count", lambda stored: self.got.append(stored.seq), start_seq=1))
        await asyncio.gather(*(self._count_up(number) for number in range(3)))
        for each in self.buses:
            each.faults.rates = FaultRates()

    async def _count_up(self, writer: int) -> None:
        bus = self.buses[writer]
        for number in range(12):
            mark = f"w{writer}-{number}".encode()
            while True:
                last = await self._insist(lambda: bus.get_last("L", "l.count", from_leader=True))
                history = last.data.split() if last else []
                if mark in history:
                    break
                with contextlib.suppress(BusError):
                    await bus.store(cas("l.count", b" ".join([*history, mark]), last.seq if last else 0))

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await ask()
            except BusError:
                await self.clock.sleep(0.01)


@pytest.mark.parametrize("seed", range(25))
async def test_under_all_faults_writes_count_once_and_a_tail_leaves_out_nothing(seed: int) -> None:
    race = await Race(seed, MIXED).run()
    assert race.wrong == []
    assert sorted(race.marks) == sorted(f"w{writer}-{number}".encode() for writer in range(3) for number in range(12))
    assert sum(bus.faults.injected.total() for bus in race.buses) > 10, "nothing was tested"
    assert len(race.got) >= 36


async def test_the_same_seed_gives_the_same_faults() -> None:
    first, second, other = [await Race(seed, MIXED).run() for seed in (3, 3, 4)]
    assert (first.marks, first.got) == (second.marks, second.got)
    assert [bus.faults.injected for bus in first.buses] == [bus.faults.injected for bus in second.buses]
    assert first.marks != other.marks


async def until(clock: FakeClock, condition: Callable[[], bool]) -> None:
    while not condition():
        await clock.sleep(0.05)


async def test_a_tail_that_breaks_at_every_message_still_gets_on(clock: FakeClock, truth: Bus, bus: FaultyBus) -> None:
    got: list[int] = []
    gaps: list[str] = []
    bus.faults.rates = FaultRates(reopen=0.5)
    tail = await done(clock, bus.tail("L", "l.a", lambda m: got.append(m.seq), start_seq=1, on_gap=gaps.append))
    await fill(truth, *[b""] * 50, subject="l.a")
    await done(clock, until(clock, lambda: len(got) >= 50))
    assert got == list(range(1, 51))
    assert len(gaps) == bus.faults.injected["reopen"] > 10
    bus.faults.rates = FaultRates(reopen=0.1, delay=0.3)
    tail.hold()
    await fill(truth, *[b""] * 50, subject="l.a")
    await clock.advance(1)
    tail.resume()
    await done(clock, until(clock, lambda: len(got) >= 100))
    assert got == list(range(1, 101))
    assert tail.next_seq == 101
    bus.cut()
    assert tail.problem == "not connected"
    heard = tail.last_heard
    await fill(truth, b"", subject="l.a")
    await clock.advance(1)
    assert (got[-1], tail.next_seq, tail.last_heard) == (100, 101, heard)
    bus.mend()
    await clock.advance(1)
    assert got[-1] == 101
    assert tail.problem is None
    await tail.close()
    await tail.close()
