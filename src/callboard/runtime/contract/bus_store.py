"""Promises of the bus port: stored writes, conditions, batches, lifetimes and schedules."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, PubAck, StreamConfig, Write
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.contract.broker import LOG, ONCE, WORK, cas, fill, hands, work_queue
from callboard.runtime.contract.eventually import eventually
from callboard.runtime.errors import (
    BackpressureError,
    BusError,
    ConflictError,
    InputError,
    NoRespondersError,
    PayloadTooLargeError,
)

TIMED = StreamConfig(
    name="S",
    subjects=("s.>",),
    retention="workqueue",
    allow_schedules=True,
    allow_msg_ttl=True,
    allow_rollup=True,
    allow_direct=True,
)


async def _messages(bus: Bus, stream: str) -> int:
    info = await bus.stream_info(stream)
    assert info is not None
    return info.messages


def _in(seconds: float, target: str, **more: str) -> dict[str, str]:
    return header.at(SYSTEM_CLOCK.now() + timedelta(seconds=seconds), target) | more


class BusStore:
    """Tests; needs the fixtures ``broker`` and ``bus`` of ``BusContract``."""

    async def test_a_write_is_acknowledged_with_its_sequence(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        assert await bus.store(Write("l.a", b"1")) == PubAck("L", 1)
        assert await bus.store(Write("l.b", b"2", {"X": "y"})) == PubAck("L", 2)

    async def test_a_write_that_no_stream_takes_fails_at_once(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        with pytest.raises(NoRespondersError):
            await bus.store(Write("nowhere", b""), timeout_s=30)

    async def test_a_plain_publish_is_stored_as_well(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await bus.publish("l.a", b"1")

        async def is_stored() -> bool:
            # A flush would say that the server has it, not that the stream does.
            found = await bus.get_last("L", "l.a")
            return found is not None and found.data == b"1"

        await eventually(is_stored)

    async def test_a_repeated_message_id_is_stored_once(self, bus: Bus) -> None:
        await bus.create_stream(WORK)
        headers = header.build(msg_id="one")
        first = await bus.store(Write("t.a", b"1", headers))
        again = await bus.store(Write("t.b", b"2", headers))
        assert (first.seq, first.is_duplicate) == (1, False)
        assert (again.seq, again.is_duplicate) == (1, True)
        assert await _messages(bus, "W") == 1

    async def test_compare_and_set_lets_one_writer_win(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        first = await bus.store(cas("l.a", b"1", 0))
        with pytest.raises(ConflictError) as caught:
            await bus.store(cas("l.a", b"2", 0))
        assert caught.value.last_seq == first.seq
        second = await bus.store(cas("l.a", b"2", first.seq))
        with pytest.raises(ConflictError) as caught:
            await bus.store(cas("l.a", b"3", first.seq))
        assert caught.value.last_seq == second.seq
        await bus.store(cas("l.b", b"1", 0))

    async def test_a_write_once_subject_keeps_its_first_write(self, bus: Bus) -> None:
        await bus.create_stream(ONCE)
        await bus.store(Write("once.a", b"1"))
        with pytest.raises(ConflictError):
            await bus.store(Write("once.a", b"2"))
        with pytest.raises(ConflictError) as caught:
            await bus.store(cas("once.a", b"2", 0))
        assert caught.value.last_seq == 1
        found = await bus.get_last("ONCE", "once.a")
        assert found is not None
        assert found.data == b"1"

    @pytest.mark.parametrize("limit", [{"max_msgs": 3}, {"max_bytes": 500}])
    async def test_a_full_stream_refuses_and_takes_again_when_there_is_room(
        self, bus: Bus, limit: dict[str, int]
    ) -> None:
        config = StreamConfig(name="F", subjects=("f.*",), discard="new", allow_atomic=True)
        await bus.create_stream(replace(config, **limit))
        body = b"x" * 100
        found = await bus.store_many([Write("f.a", body) for _ in range(6)])
        assert isinstance(found[0], PubAck)
        assert isinstance(found[-1], BackpressureError)
        assert found[-1].retryable
        with pytest.raises(BackpressureError):
            await bus.store_batch([Write("f.a", body) for _ in range(6)])
        assert await bus.purge("F") > 0
        await bus.store(Write("f.a", body))

    async def test_a_message_over_the_streams_limit_is_refused(self, bus: Bus) -> None:
        await bus.create_stream(StreamConfig(name="F", subjects=("f.*",), max_msg_bytes=1000))
        with pytest.raises(PayloadTooLargeError):
            await bus.store(Write("f.a", bytes(2000)))
        found = await bus.store_many([Write("f.a", b"small"), Write("f.a", bytes(2000))])
        assert isinstance(found[0], PubAck)
        assert isinstance(found[1], PayloadTooLargeError)

    async def test_headers_over_64_kib_can_be_sent_but_not_stored(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        headers = {f"X-{number}": "y" * 9000 for number in range(8)}
        with pytest.raises(PayloadTooLargeError):
            await bus.store(Write("l.a", b"", headers))
        with pytest.raises(PayloadTooLargeError):
            await bus.store_batch([Write("l.a", b""), Write("l.b", b"", headers)])
        await bus.store(Write("l.a", b"", {"X": "y" * 65_000}))
        await bus.publish("plain", b"", headers=headers)
        # Nobody is there to be told.
        await bus.publish("l.a", b"", headers=headers)
        assert (await bus.store(Write("l.a", b""))).seq == 2

    async def test_many_writes_are_answered_each_in_its_place(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        assert await bus.store_many([]) == []
        found = await bus.store_many([cas("l.a", b"1", 0), cas("l.a", b"2", 0), Write("none", b""), Write("l.b", b"3")])
        assert found[0] == PubAck("L", 1)
        assert isinstance(found[1], ConflictError)
        assert isinstance(found[2], NoRespondersError)
        assert found[3] == PubAck("L", 2)
        more = await bus.store_many([Write("l.c", b"%d" % number) for number in range(300)])
        assert [ack.seq for ack in more if isinstance(ack, PubAck)] == list(range(3, 303))

    async def test_a_batch_is_stored_whole_and_in_order(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await bus.store(Write("l.z", b"0"))
        ack = await bus.store_batch([Write(f"l.{number}", b"%d" % number) for number in range(10)])
        assert ack == PubAck("L", 11, count=10)
        assert (await bus.store_batch([Write("l.one", b"")])).seq == 12
        found = [stored async for stored in bus.read("L", start_seq=2)]
        assert [(stored.subject, stored.seq) for stored in found[:10]] == [(f"l.{n}", n + 2) for n in range(10)]

    @pytest.mark.parametrize("place", [0, 1, 2])
    async def test_a_conflict_anywhere_in_a_batch_refuses_all_of_it(self, bus: Bus, place: int) -> None:
        await bus.create_stream(LOG)
        standing = await bus.store(Write("l.taken", b"old"))
        writes = [Write(f"l.{number}", b"") for number in range(2)]
        writes.insert(place, cas("l.taken", b"new", 0))
        with pytest.raises(ConflictError) as caught:
            await bus.store_batch(writes)
        assert caught.value.last_seq == standing.seq
        assert await _messages(bus, "L") == 1
        await bus.store_batch([cas("l.taken", b"new", standing.seq), Write("l.other", b"")])

    async def test_a_batch_with_a_known_message_id_is_refused(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await bus.store(Write("l.a", b"", header.build(msg_id="one")))
        with pytest.raises(ConflictError):
            await bus.store_batch([Write("l.b", b""), Write("l.c", b"", header.build(msg_id="one"))])
        with pytest.raises(ConflictError):
            await bus.store_batch([Write("l.b", b"", header.build(msg_id="two")) for _ in range(2)])
        assert await _messages(bus, "L") == 1

    async def test_a_batch_with_a_taken_write_once_subject_is_refused(self, bus: Bus) -> None:
        await bus.create_stream(ONCE)
        await bus.store(Write("once.a", b""))
        with pytest.raises(ConflictError):
            await bus.store_batch([Write("once.b", b""), Write("once.a", b"")])
        assert await _messages(bus, "ONCE") == 1

    async def test_a_batch_takes_one_to_a_thousand(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        writes = [Write(f"l.{number}", b"x") for number in range(1001)]
        with pytest.raises(InputError):
            await bus.store_batch(writes)
        with pytest.raises(InputError):
            await bus.store_batch([])
        assert (await bus.store_batch(writes[:1000])).count == 1000
        assert await _messages(bus, "L") == 1000

    async def test_a_batch_over_two_streams_is_refused(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await bus.create_stream(ONCE)
        with pytest.raises(BusError):
            await bus.store_batch([Write("l.a", b""), Write("once.a", b"")])
        assert await _messages(bus, "L") == await _messages(bus, "ONCE") == 0

    async def test_a_batch_into_a_stream_without_batches_is_refused(self, bus: Bus) -> None:
        await bus.create_stream(WORK)
        with pytest.raises(BusError):
            await bus.store_batch([Write("t.a", b""), Write("t.b", b"")])
        with pytest.raises(NoRespondersError):
            await bus.store_batch([Write("none.a", b""), Write("none.b", b"")])
        assert await _messages(bus, "W") == 0

    async def test_a_message_with_a_lifetime_goes_when_it_is_over(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await bus.store(Write("l.a", b"1", header.build(ttl_s=1)))
        await bus.store(Write("l.b", b"2"))
        assert await bus.get_last("L", "l.a") is not None

        async def is_gone() -> bool:
            return await bus.get_last("L", "l.a") is None

        await eventually(is_gone, within_s=3)
        assert await _messages(bus, "L") == 1

    async def test_a_rollup_removes_what_its_subject_held(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await fill(bus, b"1", b"2", subject="l.a")
        await fill(bus, b"other", subject="l.b")
        await bus.store(Write("l.a", b"3", header.build(rollup=True)))
        assert await bus.subject_counts("L") == {"l.a": 1, "l.b": 1}

    async def test_a_schedule_fires_once_on_its_target(self, bus: Bus) -> None:
        await bus.create_stream(TIMED)
        due = SYSTEM_CLOCK.now() + timedelta(seconds=1.2)
        headers = header.at(due, "s.due") | {"Cb-Task-Id": "t1", "Nats-Msg-Id": "m1"}
        await bus.store(Write("s.later.1", b"body", headers))
        assert await bus.get_last("S", "s.due") is None

        async def is_fired() -> bool:
            return await bus.get_last("S", "s.due") is not None

        await eventually(is_fired, within_s=4)
        # The real one waits in memory of the second; the promise is: never early.
        fired = await bus.get_last("S", "s.due")
        assert fired is not None
        assert fired.time >= due - timedelta(milliseconds=2)
        assert fired.data == b"body"
        assert fired.headers is not None
        assert fired.headers["Cb-Task-Id"] == "t1"
        assert fired.headers[header.SCHEDULER] == "s.later.1"
        assert header.MSG_ID not in fired.headers
        assert header.SCHEDULE not in fired.headers
        assert await bus.subject_counts("S") == {"s.due": 1}

    async def test_a_purged_schedule_does_not_fire_and_a_replaced_one_fires_as_replaced(self, bus: Bus) -> None:
        await bus.create_stream(TIMED)
        await bus.store(Write("s.later.gone", b"gone", _in(1.0, "s.due.gone")))
        await bus.store(Write("s.later.kept", b"old", _in(1.0, "s.due.old")))
        await bus.store(Write("s.later.kept", b"new", _in(1.5, "s.due.new")))
        assert await bus.purge("S", subject="s.later.gone") == 1

        async def is_fired() -> bool:
            return await bus.get_last("S", "s.due.new") is not None

        await eventually(is_fired, within_s=4)
        assert await bus.subject_counts("S") == {"s.due.new": 1}

    async def test_a_schedules_target_must_be_in_its_own_stream(self, bus: Bus) -> None:
        await bus.create_stream(TIMED)
        with pytest.raises(BusError):
            await bus.store(Write("s.later", b"", _in(5, "elsewhere")))
        assert await _messages(bus, "S") == 0

    async def test_a_schedule_is_work_when_it_is_due(self, bus: Bus) -> None:
        await work_queue(bus)
        await bus.update_stream(
            StreamConfig(name="W", subjects=("t.>",), retention="workqueue", allow_schedules=True, allow_rollup=True)
        )
        taken = await hands(bus, credit=5)
        await bus.store(Write("t.later.1", b"body", _in(1.0, "t.a")))
        await taken.have(1)
        assert taken.bodies == [b"body"]
