"""Promises of the bus port: standing pulls and settling."""

from __future__ import annotations

import asyncio

import pytest

from callboard.runtime.bus.base import Bus, ConsumerConfig, Delivery
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.contract.broker import WORK, Broker, fill, hands, work_queue
from callboard.runtime.contract.eventually import eventually
from callboard.runtime.errors import NotFoundError


async def _left(bus: Bus) -> int:
    info = await bus.stream_info("W")
    assert info is not None
    return info.messages


async def _unsettled(bus: Bus) -> int:
    info = await bus.consumer_info("W", "c")
    assert info is not None
    return info.ack_pending


async def _is_empty(bus: Bus) -> bool:
    return await _left(bus) == 0


class BusWork:
    """Tests; needs the fixtures ``broker`` and ``bus`` of ``BusContract``."""

    async def test_a_delivery_says_what_it_is(self, bus: Bus) -> None:
        await work_queue(bus)
        await bus.publish("t.a", b"1", headers={"X": "y"})
        await fill(bus, b"2")
        taken = await hands(bus, credit=1)
        await taken.have(1)
        (got,) = taken.got
        stored = await bus.get_seq("W", 1)
        assert stored is not None
        assert (got.subject, got.data, got.headers) == ("t.a", b"1", {"X": "y"})
        assert (got.seq, got.delivered, got.pending) == (1, 1, 1)
        assert abs(got.time_ns / 1e9 - stored.time.timestamp()) < 0.001

    async def test_no_more_is_handed_out_than_was_granted(self, bus: Bus) -> None:
        await work_queue(bus)
        await fill(bus, *(b"%d" % number for number in range(40)))
        taken = await hands(bus)
        await bus.flush()
        assert taken.got == []
        assert taken.pull.credit == 0
        granted = 0
        for count in (1, 1, 3, 1, 10, 2):
            taken.pull.grant(count)
            granted += count
            await taken.have(granted)
            await bus.flush()
            assert len(taken.got) == granted
            assert taken.pull.credit == 0
        assert taken.bodies == [b"%d" % number for number in range(granted)]
        assert taken.pull.problem is None
        assert taken.pull.last_heard > 0

    async def test_credit_waits_for_work(self, bus: Bus) -> None:
        await work_queue(bus)
        taken = await hands(bus)
        for _ in range(20):
            taken.pull.grant(1)
        await bus.flush()
        assert taken.pull.credit == 20
        await fill(bus, *(b"%d" % number for number in range(25)))
        await taken.have(20)
        await bus.flush()
        assert len(taken.got) == 20
        assert taken.pull.credit == 0
        taken.pull.grant(5)
        await taken.have(25)

    async def test_credit_given_back_from_inside_the_sink_keeps_the_work_flowing(self, bus: Bus) -> None:
        await work_queue(bus)
        got: list[Delivery] = []
        highest = 0

        def sink(delivery: Delivery) -> None:
            nonlocal highest
            got.append(delivery)
            pull.grant(1)
            highest = max(highest, pull.credit)

        pull = await bus.pull("W", "c", sink)
        pull.grant(8)
        await asyncio.gather(*(bus.publish("t.a", b"%d" % number) for number in range(300)))
        await eventually(lambda: len(got) == 300)
        assert highest == pull.credit == 8

    async def test_two_pulls_share_the_work_and_nothing_comes_twice(self, broker: Broker) -> None:
        first, second = await broker.connect(), await broker.connect()
        await work_queue(first)
        left, right = await hands(first, credit=50), await hands(second, credit=50)
        await fill(first, *(b"%d" % number for number in range(100)))
        await eventually(lambda: len(left.got) + len(right.got) == 100)
        assert sorted(left.bodies + right.bodies) == sorted(b"%d" % number for number in range(100))

    async def test_an_ack_removes_the_message_from_the_queue(self, bus: Bus) -> None:
        await work_queue(bus)
        await fill(bus, b"1", b"2", b"3")
        taken = await hands(bus, credit=3)
        await taken.have(3)
        assert await _left(bus) == 3
        await bus.ack(taken.tokens[:2], confirm=True)
        assert await _left(bus) == 1
        await bus.ack(taken.tokens[2:])
        await eventually(lambda: _is_empty(bus))
        await bus.ack([], confirm=True)

    async def test_an_unsettled_message_comes_again_after_newer_ones(self, bus: Bus) -> None:
        await work_queue(bus, ack_wait_s=0.4)
        await fill(bus, b"1", b"2")
        taken = await hands(bus, credit=2)
        await taken.have(2)
        await fill(bus, b"3", b"4")
        taken.pull.grant(2)
        await taken.have(4)
        await bus.ack(taken.tokens[1:], confirm=True)
        taken.pull.grant(1)
        await taken.have(5)
        assert [(got.data, got.delivered) for got in taken.got[2:]] == [(b"3", 1), (b"4", 1), (b"1", 2)]

    async def test_extending_keeps_a_message_ours(self, bus: Bus) -> None:
        await work_queue(bus, ack_wait_s=0.4)
        await fill(bus, b"1")
        taken = await hands(bus, credit=3)
        await taken.have(1)
        for _ in range(8):
            await bus.extend(taken.tokens[:1])
            await SYSTEM_CLOCK.sleep(0.15)
        assert len(taken.got) == 1
        await taken.have(2, within_s=2)
        assert taken.got[1].delivered == 2

    async def test_a_nak_brings_the_message_back_after_its_delay(self, bus: Bus) -> None:
        await work_queue(bus)
        await fill(bus, b"1", b"2")
        taken = await hands(bus, credit=5)
        await taken.have(2)
        started = asyncio.get_running_loop().time()
        await bus.nak(taken.tokens[0], delay_s=0.3)
        await bus.nak(taken.tokens[1], delay_s=0)
        await taken.have(4)
        assert asyncio.get_running_loop().time() - started >= 0.29
        assert [(got.data, got.delivered) for got in taken.got[2:]] == [(b"2", 2), (b"1", 2)]
        assert await _left(bus) == 2

    async def test_a_term_removes_the_message_for_good(self, bus: Bus) -> None:
        await work_queue(bus, ack_wait_s=0.3)
        await fill(bus, b"1")
        taken = await hands(bus, credit=5)
        await taken.have(1)
        await bus.term(taken.tokens[0], "cannot be read\r\nor worse")
        await eventually(lambda: _is_empty(bus))
        await fill(bus, b"2")
        await taken.have(2)
        assert taken.bodies == [b"1", b"2"]

    async def test_a_stale_ack_takes_the_message_from_under_its_second_holder(self, bus: Bus) -> None:
        await work_queue(bus, ack_wait_s=0.3)
        await fill(bus, b"1")
        taken = await hands(bus, credit=2)
        await taken.have(2)
        assert taken.got[1].delivered == 2
        await bus.ack(taken.tokens[:1], confirm=True)
        assert await _left(bus) == 0
        # And the second holder's is taken as well, though nothing is left to remove.
        await bus.ack(taken.tokens[1:], confirm=True)

    async def test_a_stale_extension_holds_the_message_too(self, bus: Bus) -> None:
        await work_queue(bus, ack_wait_s=0.4)
        await fill(bus, b"1")
        taken = await hands(bus, credit=3)
        await taken.have(2)
        for _ in range(6):
            await bus.extend(taken.tokens[:1])
            await SYSTEM_CLOCK.sleep(0.15)
        assert len(taken.got) == 2

    async def test_unsettled_messages_count_against_the_consumers_limit(self, bus: Bus) -> None:
        await work_queue(bus, max_ack_pending=2)
        await fill(bus, b"1", b"2", b"3")
        taken = await hands(bus, credit=3)
        await taken.have(2)
        await bus.flush()
        assert await _unsettled(bus) == 2
        assert taken.pull.credit == 1
        await bus.ack(taken.tokens[:1])
        await taken.have(3)

    async def test_a_closed_pull_takes_nothing_more(self, broker: Broker) -> None:
        first, second = await broker.connect(), await broker.connect()
        await work_queue(first)
        closed = await hands(first, credit=10)
        await fill(first, b"1")
        await closed.have(1)
        await closed.pull.close()
        await closed.pull.close()
        closed.pull.grant(10)
        assert closed.pull.credit == 0
        await fill(first, b"2", b"3")
        other = await hands(second, credit=10)
        await other.have(2)
        assert closed.bodies == [b"1"]
        assert other.bodies == [b"2", b"3"]

    async def test_messages_on_their_way_reach_the_sink_of_a_pull_that_is_being_closed(self, broker: Broker) -> None:
        bus, filler = await broker.connect(), await broker.connect()
        await work_queue(bus)
        taken = await hands(bus, credit=500)
        await asyncio.gather(*(filler.publish("t.a", b"%d" % number) for number in range(1000)))
        await taken.have(1)
        await taken.pull.close()
        await bus.flush()
        assert await _unsettled(bus) == len(taken.got)

    async def test_a_pull_needs_its_consumer(self, bus: Bus) -> None:
        with pytest.raises(NotFoundError):
            await bus.pull("NONE", "c", lambda _: None)
        await bus.create_stream(WORK)
        with pytest.raises(NotFoundError):
            await bus.pull("W", "c", lambda _: None)

    async def test_a_pull_whose_consumer_goes_has_a_problem_until_it_is_back(self, bus: Bus) -> None:
        await work_queue(bus)
        taken = await hands(bus, credit=3)
        await fill(bus, b"1")
        await taken.have(1)
        await bus.ack(taken.tokens, confirm=True)
        await bus.delete_consumer("W", "c")
        await eventually(lambda: taken.pull.problem is not None)
        assert "c" in (taken.pull.problem or "")
        assert taken.pull.credit == 2
        await bus.create_consumer("W", ConsumerConfig(name="c", filter_subject="t.a"))
        await fill(bus, b"2", b"3", b"4")
        await taken.have(3)
        await bus.flush()
        assert taken.bodies == [b"1", b"2", b"3"]
        await eventually(lambda: taken.pull.problem is None)
