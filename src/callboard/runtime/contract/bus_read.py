"""Promises of the bus port: reading what streams hold."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from callboard.runtime.bus.base import Bus, Stored, StreamConfig, Write
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.contract.broker import LOG, WORK, fill, work_queue
from callboard.runtime.contract.eventually import eventually
from callboard.runtime.errors import NotFoundError


async def _read(bus: Bus, **how: object) -> list[int]:
    return [stored.seq async for stored in bus.read("L", **how)]  # type: ignore[arg-type] # settings of a test


class BusRead:
    """Tests; needs the fixtures ``broker`` and ``bus`` of ``BusContract``."""

    async def test_a_direct_get_returns_the_message_as_it_was_stored(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        before = SYSTEM_CLOCK.now() - timedelta(seconds=1)
        await fill(bus, b"old", subject="l.a")
        await bus.store(Write("l.a", b"new", {"X": "é", "Nats-Msg-Id": "1"}))
        await fill(bus, b"other", subject="l.b")
        found = await bus.get_last("L", "l.a")
        assert found is not None
        assert (found.subject, found.data, found.seq) == ("l.a", b"new", 2)
        assert found.headers == {"X": "é", "Nats-Msg-Id": "1"}
        assert before < found.time < SYSTEM_CLOCK.now() + timedelta(seconds=1)
        assert await bus.get_seq("L", 2) == found
        plain = await bus.get_seq("L", 1)
        assert plain is not None
        assert plain.headers is None
        assert await bus.get_last("L", "l.none") is None
        assert await bus.get_seq("L", 99) is None

    @pytest.mark.parametrize("stream", [LOG, WORK], ids=["direct", "from-the-leader"])
    async def test_the_next_on_a_subject_is_found_from_any_sequence(self, bus: Bus, stream: StreamConfig) -> None:
        await bus.create_stream(stream)
        root = stream.subjects[0].removesuffix(".>")
        for number in range(1, 7):
            await bus.store(Write(f"{root}.{'odd' if number % 2 else 'even'}", b"%d" % number))

        async def next_seq(seq: int, pattern: str) -> int | None:
            found = await bus.get_next(stream.name, seq, f"{root}.{pattern}")
            return found.seq if found else None

        assert [await next_seq(seq, "odd") for seq in (0, 1, 2, 5, 6)] == [1, 1, 3, 5, None]
        assert [await next_seq(seq, "*") for seq in (1, 2, 7)] == [1, 2, None]
        from_leader = await bus.get_next(stream.name, 2, f"{root}.odd", from_leader=True)
        assert from_leader is not None
        assert from_leader.seq == 3
        assert await bus.get_next(stream.name, 6, f"{root}.odd", from_leader=True) is None
        assert await bus.get_seq(stream.name, 3) is not None
        last = await bus.get_last(stream.name, f"{root}.even")
        assert last is not None
        assert last.seq == 6

    async def test_gets_from_a_missing_stream_say_so(self, bus: Bus) -> None:
        with pytest.raises(NotFoundError):
            await bus.get_last("NONE", "a")
        with pytest.raises(NotFoundError):
            await bus.get_seq("NONE", 1)
        with pytest.raises(NotFoundError):
            await bus.get_many("NONE", ["a"])
        with pytest.raises(NotFoundError):
            _ = [stored async for stored in bus.read("NONE")]

    async def test_the_last_of_many_subjects_comes_by_sequence(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        for subject in ("l.a.1", "l.b.1", "l.a.2", "l.a.1", "l.c"):
            await fill(bus, b"x", subject=subject)
        assert [stored.seq for stored in await bus.get_many("L", ["l.a.*"])] == [3, 4]
        assert [stored.seq for stored in await bus.get_many("L", ["l.c", "l.b.1", "l.none", "l.c"])] == [2, 5]
        assert [stored.seq for stored in await bus.get_many("L", [">"])] == [2, 3, 4, 5]
        assert await bus.get_many("L", ["l.none"]) == []
        assert await bus.get_many("L", []) == []

    async def test_the_last_of_thousands_of_subjects_are_all_there(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        for start in range(0, 3000, 1000):
            await bus.store_batch([Write(f"l.k.{number}", b"x" * 300) for number in range(start, start + 1000)])
        by_wildcard = await bus.get_many("L", ["l.k.*"])
        assert [stored.seq for stored in by_wildcard] == list(range(1, 3001))
        by_name = await bus.get_many("L", [f"l.k.{number}" for number in range(0, 3000, 2)])
        assert len(by_name) == 1500

    async def test_a_stream_is_read_in_order_to_the_end_it_had(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        assert await _read(bus) == []
        await bus.store_batch([Write(f"l.{number % 3}", b"%d" % number) for number in range(1000)])
        assert await _read(bus) == list(range(1, 1001))
        assert await _read(bus, start_seq=990) == list(range(990, 1001))
        assert await _read(bus, start_seq=2000) == []
        assert await _read(bus, subjects=["l.1"]) == list(range(2, 1001, 3))
        assert await _read(bus, subjects=["l.1", "l.2"], start_seq=994) == [995, 996, 998, 999]
        assert await _read(bus, subjects=["l.none"]) == []
        seen: list[Stored] = []
        async for stored in bus.read("L"):
            seen.append(stored)
            if stored.seq == 5:
                await fill(bus, b"late", subject="l.0")
        assert seen[-1].seq == 1000
        assert (seen[4].subject, seen[4].data, seen[4].headers is not None) == ("l.1", b"4", True)

    async def test_reading_goes_on_where_messages_were_deleted(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await bus.store_batch([Write("l.a", b"%d" % number) for number in range(10)])
        for seq in (1, 5, 10):
            assert await bus.delete_message("L", seq)
        assert await _read(bus) == [2, 3, 4, 6, 7, 8, 9]

    async def test_reading_ends_where_the_rest_is_purged_meanwhile(self, bus: Bus) -> None:
        """What waited when it began never comes, and nothing tells."""
        await bus.create_stream(LOG)
        await fill(bus, *(b"%d" % number for number in range(600)), subject="l.a")
        seqs: list[int] = []
        async with asyncio.timeout(20):
            async for stored in bus.read("L"):
                if not seqs:
                    await bus.purge("L")
                seqs.append(stored.seq)
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) < 600

    async def test_reading_starts_at_a_time(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await fill(bus, b"1", b"2", subject="l.a")
        found = await bus.get_seq("L", 2)
        assert found is not None
        assert await _read(bus, start_time=found.time) == [2]
        assert await _read(bus, start_time=found.time - timedelta(hours=1)) == [1, 2]
        assert await _read(bus, start_time=found.time + timedelta(hours=1)) == []

    async def test_following_brings_what_comes_later(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await fill(bus, b"1", b"2", subject="l.a")
        seen: list[int] = []

        async def follow() -> None:
            async for stored in bus.read("L", subjects=["l.a"], start_seq=2, follow=True):
                seen.append(stored.seq)  # noqa: PERF401 - looked at while it grows

        task = asyncio.create_task(follow())
        await eventually(lambda: seen == [2])
        await fill(bus, b"3", subject="l.b")
        await fill(bus, b"4", subject="l.a")
        await eventually(lambda: seen == [2, 4])
        await bus.store_batch([Write("l.a", b"") for _ in range(1000)])
        await eventually(lambda: seen == [2, *range(4, 1005)])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def test_a_work_queue_can_be_read_beside_its_consumer(self, bus: Bus) -> None:
        await work_queue(bus)
        await fill(bus, b"1", b"2", b"3")
        await fill(bus, b"4", subject="t.b")
        found = [(stored.seq, stored.data) async for stored in bus.read("W", start_seq=2)]
        assert found == [(2, b"2"), (3, b"3"), (4, b"4")]
        filtered = [stored.seq async for stored in bus.read("W", subjects=["t.b", "t.c"])]
        assert filtered == [4]
        info = await bus.consumer_info("W", "c")
        assert info is not None
        assert info.pending == 3

    async def test_a_reader_can_stop_early(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await bus.store_batch([Write("l.a", b"") for _ in range(500)])
        async for stored in bus.read("L"):
            if stored.seq == 3:
                break
        assert await _read(bus, start_seq=499) == [499, 500]
