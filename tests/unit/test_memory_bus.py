"""What is special to the in-memory broker: time is the clock's, and it imitates the real broker's odd corners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, ConsumerConfig, Delivery, Message, Source, StreamConfig, Write
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.bus.pattern import partition_of
from callboard.runtime.errors import (
    BackpressureError,
    BusClosedError,
    BusError,
    BusTimeoutError,
    ConflictError,
    NoRespondersError,
    NotFoundError,
    TopologyError,
)
from callboard.runtime.testing import FakeClock

WORK = StreamConfig(name="W", subjects=("t.*",), retention="workqueue", discard="new", max_msgs=100)
LOG = StreamConfig(
    name="L",
    subjects=("s.>", "mail.*.*"),
    allow_atomic=True,
    allow_rollup=True,
    allow_msg_ttl=True,
    subject_transform=("mail.*.*", "mbox.{{wildcard(1)}}.{{partition(64,1,2)}}.{{wildcard(2)}}"),
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def broker(clock: FakeClock) -> MemoryBroker:
    return MemoryBroker(clock)


@pytest_asyncio.fixture
async def bus(broker: MemoryBroker) -> AsyncIterator[MemoryBus]:
    bus = broker.connect(name="test")
    await bus.create_stream(WORK)
    await bus.create_consumer("W", ConsumerConfig(name="c", filter_subject="t.a", ack_wait_s=4.0))
    await bus.create_stream(LOG)
    yield bus
    await bus.close()


def test_it_implements_the_port(bus: MemoryBus) -> None:
    port: Bus = bus
    assert port.is_connected
    assert port.server.jetstream


async def fill(bus: Bus, *bodies: bytes, subject: str = "t.a") -> None:
    for body in bodies:
        await bus.store(Write(subject, body))


# --- deliveries


async def test_a_sink_is_never_called_inside_the_publishing_call(bus: MemoryBus) -> None:
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    await bus.publish("t.a", b"1")
    pull.grant(1)
    assert got == []
    assert pull.credit == 1
    await bus.flush()
    assert [delivery.data for delivery in got] == [b"1"]
    assert pull.credit == 0


async def test_an_unsettled_message_comes_back_after_newer_ones(bus: MemoryBus, clock: FakeClock) -> None:
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    await fill(bus, b"1", b"2", b"3")
    pull.grant(2)
    await clock.advance(3.9)
    pull.grant(2)
    await clock.advance(0.2)
    assert [(delivery.data, delivery.delivered) for delivery in got] == [(b"1", 1), (b"2", 1), (b"3", 1), (b"1", 2)]


async def test_extending_holds_a_message_and_stopping_to_extend_frees_it(bus: MemoryBus, clock: FakeClock) -> None:
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    await fill(bus, b"1")
    pull.grant(5)
    for _ in range(20):
        await clock.advance(1)
        await bus.extend([got[0].token])
    assert len(got) == 1
    await clock.advance(3.9)
    assert len(got) == 1
    await clock.advance(0.1)
    assert [delivery.delivered for delivery in got] == [1, 2]


async def test_a_stale_ack_removes_the_message_from_under_its_second_holder(bus: MemoryBus, clock: FakeClock) -> None:
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    await fill(bus, b"1")
    pull.grant(2)
    await clock.advance(4)
    assert len(got) == 2
    await bus.ack([got[0].token], confirm=True)
    info = await bus.stream_info("W")
    assert info is not None
    assert info.messages == 0
    await clock.advance(60)
    assert len(got) == 2


async def test_a_nak_comes_back_after_its_delay_and_counts_as_pending_meanwhile(
    bus: MemoryBus, clock: FakeClock
) -> None:
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    await fill(bus, b"1")
    pull.grant(2)
    await bus.flush()
    await bus.nak(got[0].token, delay_s=10)
    await clock.advance(9.9)
    info = await bus.consumer_info("W", "c")
    assert info is not None
    assert (len(got), info.ack_pending, info.pending) == (1, 1, 0)
    await clock.advance(0.1)
    assert got[1].delivered == 2


async def test_max_ack_pending_stops_new_messages_until_one_is_settled(bus: MemoryBus) -> None:
    await bus.create_consumer("W", ConsumerConfig(name="c", filter_subject="t.a", max_ack_pending=2))
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    await fill(bus, b"1", b"2", b"3")
    pull.grant(10)
    await bus.flush()
    assert len(got) == 2
    await bus.term(got[0].token, "bad")
    await bus.flush()
    assert [delivery.data for delivery in got] == [b"1", b"2", b"3"]


async def test_beyond_max_deliver_a_message_stays_undeliverable(bus: MemoryBus, clock: FakeClock) -> None:
    await bus.create_consumer("W", ConsumerConfig(name="c", filter_subject="t.a", max_deliver=2))
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    await fill(bus, b"1")
    pull.grant(10)
    await clock.advance(60)
    info = await bus.stream_info("W")
    assert info is not None
    assert (len(got), info.messages) == (2, 1)


async def test_two_pulls_share_in_turn(broker: MemoryBroker, bus: MemoryBus) -> None:
    other = broker.connect()
    mine: list[Delivery] = []
    theirs: list[Delivery] = []
    (await bus.pull("W", "c", mine.append)).grant(10)
    (await other.pull("W", "c", theirs.append)).grant(10)
    await fill(bus, b"1", b"2", b"3", b"4")
    await bus.flush()
    assert [len(mine), len(theirs)] == [2, 2]
    await other.close()


async def test_a_closed_connection_leaves_its_messages_to_others(
    broker: MemoryBroker, bus: MemoryBus, clock: FakeClock
) -> None:
    other = broker.connect()
    lost: list[Delivery] = []
    (await other.pull("W", "c", lost.append)).grant(1)
    await fill(bus, b"1")
    await other.close()
    got: list[Delivery] = []
    (await bus.pull("W", "c", got.append)).grant(1)
    await clock.advance(4)
    assert [delivery.delivered for delivery in got] == [2]


async def test_a_pull_names_its_missing_consumer_and_goes_on_when_it_is_back(bus: MemoryBus) -> None:
    got: list[Delivery] = []
    pull = await bus.pull("W", "c", got.append)
    pull.grant(1)
    await bus.delete_consumer("W", "c")
    problem = pull.problem
    assert problem == "consumer c of stream W does not exist"
    await fill(bus, b"1")
    await bus.create_consumer("W", ConsumerConfig(name="c", filter_subject="t.a"))
    await bus.flush()
    assert pull.problem is None
    assert len(got) == 1


async def test_work_queue_filters_may_not_overlap(bus: MemoryBus) -> None:
    with pytest.raises(TopologyError):
        await bus.create_consumer("W", ConsumerConfig(name="d", filter_subject="t.*"))


async def test_a_full_queue_refuses_and_a_duplicate_still_gets_its_answer(bus: MemoryBus) -> None:
    await bus.store(Write("t.b", b"", header.build(msg_id="first")))
    for _ in range(99):
        await bus.store(Write("t.b", b""))
    with pytest.raises(BackpressureError):
        await bus.store(Write("t.b", b""))
    ack = await bus.store(Write("t.b", b"", header.build(msg_id="first")))
    assert (ack.seq, ack.is_duplicate) == (1, True)


# --- time


async def test_a_message_id_is_stored_again_after_the_window(bus: MemoryBus, clock: FakeClock) -> None:
    write = Write("s.x", b"", header.build(msg_id="m"))
    first = await bus.store(write)
    await clock.advance(119)
    assert (await bus.store(write)).is_duplicate
    await clock.advance(1)
    again = await bus.store(write)
    assert not again.is_duplicate
    assert again.seq == first.seq + 1


async def test_a_ttl_and_a_max_age_take_messages_away(bus: MemoryBus, clock: FakeClock) -> None:
    await bus.create_stream(StreamConfig(name="A", subjects=("aged",), max_age_s=10))
    await bus.store(Write("s.x", b"", header.build(ttl_s=2)))
    await bus.store(Write("aged", b"1"))
    await clock.advance(5)
    await bus.store(Write("aged", b"2"))
    assert await bus.get_last("L", "s.x") is None
    await clock.advance(5)
    assert await bus.subject_counts("A") == {"aged": 1}
    await clock.advance(5)
    assert await bus.subject_counts("A") == {}


async def test_time_that_passed_unwatched_is_seen_at_the_next_call() -> None:
    class Jump(FakeClock):
        """Moves without waking anybody, as a stopped process sees it."""

        def jump(self, delay_s: float) -> None:
            self._time += delay_s

    clock = Jump()
    bus = MemoryBroker(clock).connect()
    await bus.create_stream(LOG)
    await bus.store(Write("s.x", b"", header.build(ttl_s=2)))
    clock.jump(3)
    assert await bus.get_last("L", "s.x") is None
    await bus.close()


async def test_closing_the_last_connection_ends_the_timer_task(clock: FakeClock) -> None:
    bus = MemoryBroker(clock).connect()
    await bus.create_stream(LOG)
    await bus.store(Write("s.x", b"", header.build(ttl_s=2)))
    assert "memory-broker-timer" in {task.get_name() for task in asyncio.all_tasks()}
    await bus.close()
    await bus.close()
    assert "memory-broker-timer" not in {task.get_name() for task in asyncio.all_tasks()}
    with pytest.raises(BusClosedError):
        await bus.flush()


# --- schedules

LATER = StreamConfig(
    name="S", subjects=("later.>", "due.*"), retention="workqueue", allow_schedules=True, allow_rollup=True
)


async def test_a_schedule_fires_once_when_due_with_its_own_headers(bus: MemoryBus, clock: FakeClock) -> None:
    await bus.create_stream(LATER)
    when = clock.now() + timedelta(seconds=30)
    headers = header.at(when, "due.x") | {header.TASK_ID: "t1", header.MSG_ID: "m1"}
    await bus.store(Write("later.t1", b"body", headers))
    await clock.advance(29.9)
    assert await bus.get_last("S", "due.x") is None
    await clock.advance(0.1)
    fired = await bus.get_last("S", "due.x")
    assert fired is not None
    assert fired.data == b"body"
    assert fired.headers == {header.TASK_ID: "t1", header.SCHEDULER: "later.t1", header.SCHEDULE_NEXT: "purge"}
    assert await bus.subject_counts("S") == {"due.x": 1}


async def test_a_recurring_schedule_fires_until_it_is_purged(bus: MemoryBus, clock: FakeClock) -> None:
    await bus.create_stream(LATER)
    await bus.store(Write("later.r", b"", header.recurring("@every 10s", "due.x")))
    await clock.advance(35)
    assert (await bus.subject_counts("S"))["due.x"] == 3
    await bus.purge("S", subject="later.r")
    await clock.advance(35)
    assert (await bus.subject_counts("S"))["due.x"] == 3


async def test_publishing_a_schedule_again_replaces_it(bus: MemoryBus, clock: FakeClock) -> None:
    await bus.create_stream(LATER)
    for delay_s in (10, 20):
        when = clock.now() + timedelta(seconds=delay_s)
        await bus.store(Write("later.t", str(delay_s).encode(), header.at(when, "due.x")))
    await clock.advance(60)
    assert [stored.data async for stored in bus.read("S")] == [b"20"]


@pytest.mark.parametrize("rule", ["@every 500ms", "0 * * * *", "@at tomorrow", "61 * * * * *", "@often"])
async def test_a_schedule_the_server_would_refuse_is_refused(bus: MemoryBus, rule: str) -> None:
    await bus.create_stream(LATER)
    with pytest.raises(BusError):
        await bus.store(Write("later.t", b"", header.recurring(rule, "due.x")))


async def test_a_schedule_must_aim_at_its_own_stream(bus: MemoryBus) -> None:
    await bus.create_stream(LATER)
    with pytest.raises(BusError):
        await bus.store(Write("later.t", b"", header.recurring("@hourly", "t.a")))


# --- conditions


async def test_a_batch_is_all_or_none(bus: MemoryBus) -> None:
    await bus.store(Write("s.a", b"old"))
    good = Write("s.b", b"", header.build(expected_seq=0))
    with pytest.raises(ConflictError) as caught:
        await bus.store_batch([good, Write("s.a", b"new", header.build(expected_seq=0))])
    assert caught.value.last_seq == 1
    assert await bus.subject_counts("L") == {"s.a": 1}
    ack = await bus.store_batch([good, Write("s.a", b"new", header.build(expected_seq=1, rollup=True))])
    assert (ack.seq, ack.count) == (3, 2)
    assert await bus.subject_counts("L") == {"s.a": 1, "s.b": 1}


async def test_a_batch_cannot_expect_its_own_write(bus: MemoryBus) -> None:
    with pytest.raises(ConflictError, match="10164"):
        await bus.store_batch([Write("s.a", b"1"), Write("s.a", b"2", header.build(expected_seq=1))])


async def test_a_write_once_stream_names_nobody_unless_asked(bus: MemoryBus) -> None:
    await bus.create_stream(
        StreamConfig(name="R", subjects=("r.*",), discard="new", max_msgs_per_subject=1, discard_new_per_subject=True)
    )
    await bus.store(Write("r.1", b"first"))
    with pytest.raises(ConflictError) as caught:
        await bus.store(Write("r.1", b"second"))
    assert caught.value.last_seq == 0
    with pytest.raises(ConflictError) as caught:
        await bus.store(Write("r.1", b"second", header.build(expected_seq=0)))
    assert caught.value.last_seq == 1


async def test_mail_is_stored_under_its_partition_and_only_reached_by_its_public_name(bus: MemoryBus) -> None:
    await bus.store(Write("mail.greeter.ann", b"hi"))
    (subject,) = await bus.subject_counts("L")
    assert subject == f"mbox.greeter.{partition_of(64, 'greeter', 'ann')}.ann"
    with pytest.raises(NoRespondersError):
        await bus.store(Write(subject, b"hi"))


async def test_a_source_copies_what_is_there_and_what_comes(bus: MemoryBus) -> None:
    await bus.store(Write("s.a", b"1", {"X": "y"}))
    await bus.create_stream(StreamConfig(name="C", sources=(Source("L", ("s.a", "mbox.>")),)))
    await bus.store(Write("s.b", b"not copied"))
    await bus.store(Write("s.a", b"2", header.build(ttl_s=1)))
    copies = [stored async for stored in bus.read("C")]
    assert [(stored.subject, stored.data) for stored in copies] == [("s.a", b"1"), ("s.a", b"2")]
    assert copies[0].headers is not None
    assert copies[0].headers["X"] == "y"
    assert copies[0].headers["Nats-Stream-Source"].split(" ")[:2] == ["L", "1"]


async def test_schedules_switch_deny_purge_off_and_whoever_asked_for_both_is_told(bus: MemoryBus) -> None:
    config = StreamConfig(name="P", subjects=("p",), deny_purge=True, allow_schedules=True)
    with pytest.raises(TopologyError, match=r"allow_rollup.*deny_purge"):
        await bus.create_stream(config)
    info = await bus.stream_info("P")
    assert info is not None
    assert not info.config.deny_purge
    assert info.config.allow_rollup


# --- plain subjects


async def test_a_request_to_a_stored_subject_is_answered_by_the_stream(bus: MemoryBus) -> None:
    answer = await bus.request("t.a", b"1")
    assert answer.data == b'{"stream":"W","seq":1}'


async def test_a_request_without_answer_times_out_on_the_clock(bus: MemoryBus, clock: FakeClock) -> None:
    await bus.subscribe("q", lambda _: None)
    asking = asyncio.create_task(bus.request("q", timeout_s=3))
    await clock.advance(2.9)
    assert not asking.done()
    await clock.advance(0.1)
    with pytest.raises(BusTimeoutError):
        await asking


async def test_what_a_reader_gets_cannot_be_changed_by_the_writer(bus: MemoryBus) -> None:
    body, headers = bytearray(b"first"), {"X": "1"}
    await bus.store(Write("s.a", body, headers))  # type: ignore[arg-type]  # a careless caller
    body[:] = b"other"
    headers["X"] = "2"
    stored = await bus.get_last("L", "s.a")
    assert stored is not None
    assert (stored.data, dict(stored.headers or {})) == (b"first", {"X": "1"})


async def test_a_following_reader_ends_with_the_bus_and_with_its_stream(
    broker: MemoryBroker, bus: MemoryBus, clock: FakeClock
) -> None:
    async def drain(reader: Bus) -> None:
        async for _ in reader.read("L", follow=True):
            pass

    other = broker.connect()
    closed, deleted = asyncio.create_task(drain(other)), asyncio.create_task(drain(bus))
    await clock.settle()
    await other.close()
    await bus.delete_stream("L")
    with pytest.raises(BusClosedError):
        await closed
    with pytest.raises(NotFoundError):
        await deleted


# --- a broken link


async def test_a_cut_link_times_calls_out_and_a_mended_one_catches_up(
    broker: MemoryBroker, bus: MemoryBus, clock: FakeClock
) -> None:
    other = broker.connect()
    got: list[Delivery] = []
    heard: list[Message] = []
    back: list[float] = []
    pull = await bus.pull("W", "c", got.append)
    pull.grant(2)
    await bus.subscribe("news", heard.append)
    bus.on_reconnect(lambda: back.append(clock.monotonic()))
    bus.cut()
    assert not bus.is_connected
    assert pull.problem == "not connected"
    await other.publish("news", b"missed")
    await fill(other, b"1")
    await bus.publish("t.b", b"buffered")
    call = asyncio.create_task(bus.stream_names())
    await clock.advance(5)
    with pytest.raises(BusTimeoutError):
        await call
    bus.mend()
    await clock.settle()
    assert [delivery.data for delivery in got] == [b"1"]
    assert (heard, back, pull.credit) == ([], [bus.connected_at], 1)
    assert await bus.subject_counts("W", "t.b") == {"t.b": 1}
    await other.close()
