"""Promises of the bus port: tails, and reads from the leader."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from callboard.runtime.bus.base import Bus, Stored, Tail, Write
from callboard.runtime.bus.topology import partition_transform
from callboard.runtime.contract.broker import LOG, Broker, fill
from callboard.runtime.contract.eventually import eventually
from callboard.runtime.errors import NotFoundError


class Ears:
    """What a tail has brought."""

    def __init__(self) -> None:
        self.got: list[Stored] = []
        self.gaps: list[str] = []
        self.tail: Tail

    @property
    def seqs(self) -> list[int]:
        return [stored.seq for stored in self.got]

    async def have(self, *seqs: int) -> None:
        """Wait until these and no others have come."""
        await eventually(lambda: len(self.got) >= len(seqs), what=f"{seqs}, got {self.seqs}")
        assert self.seqs == list(seqs)


async def listen(bus: Bus, subject: str = "l.a", *, start_seq: int = 1) -> Ears:
    """Return a tail that gathers what it gets."""
    ears = Ears()
    ears.tail = await bus.tail("L", subject, ears.got.append, start_seq=start_seq, on_gap=ears.gaps.append)
    return ears


class BusTail:
    """Tests; needs the fixtures ``broker`` and ``bus`` of ``BusContract``."""

    async def test_a_tail_brings_what_stands_and_what_comes(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await fill(bus, b"1", b"2", subject="l.a")
        await fill(bus, b"x", subject="l.b")
        ears = await listen(bus, start_seq=2)
        await bus.store(Write("l.a", b"4", {"X": "y"}))
        await ears.have(2, 4)
        last = ears.got[-1]
        assert last == await bus.get_seq("L", 4)
        assert (last.subject, last.data, last.headers) == ("l.a", b"4", {"X": "y"})
        assert ears.tail.next_seq == 5
        assert ears.tail.problem is None
        assert not ears.gaps
        await ears.tail.close()
        await ears.tail.close()

    async def test_a_tail_brings_thousands_in_order(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        ears = await listen(bus, "l.*.x")
        for start in range(0, 3000, 1000):
            await bus.store_batch(
                [Write(f"l.{number % 7}.{'xy'[number % 2]}", b"") for number in range(start, start + 1000)]
            )
        await ears.have(*range(1, 3001, 2))

    async def test_a_tail_hears_the_stored_subject(self, bus: Bus) -> None:
        await bus.create_stream(
            replace(LOG, subjects=("cb.mail.*.*",), subject_transform=partition_transform(1), allow_rollup=False)
        )
        ears = await listen(bus, "cb.mbox.greeter.0.*")
        await bus.store_batch([Write("cb.mail.greeter.ann", b"1"), Write("cb.mail.other.ann", b"2")])
        await bus.publish("cb.mail.greeter.bob", b"3")
        await ears.have(1, 3)
        assert [stored.subject for stored in ears.got] == ["cb.mbox.greeter.0.ann", "cb.mbox.greeter.0.bob"]

    async def test_a_tail_moves_past_other_subjects_and_deleted_messages(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await fill(bus, b"1", b"2", b"3", subject="l.a")
        await bus.delete_message("L", 2)
        ears = await listen(bus)
        await ears.have(1, 3)
        await fill(bus, *[b""] * 5, subject="l.other")
        await eventually(lambda: ears.tail.next_seq == 9)
        await fill(bus, b"9", subject="l.a")
        await ears.have(1, 3, 9)

    async def test_a_held_tail_asks_for_no_more_and_goes_on_without_a_gap(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        ears = await listen(bus)
        ears.tail.hold()
        await bus.store_batch([Write("l.a", b"") for _ in range(1000)])
        other = await listen(bus)
        await other.have(*range(1, 1001))
        assert len(ears.got) <= 256
        assert ears.tail.next_seq <= 257
        ears.tail.hold()
        ears.tail.resume()
        await ears.have(*range(1, 1001))
        assert not ears.gaps
        ears.tail.resume()
        await fill(bus, b"", subject="l.a")
        await ears.have(*range(1, 1002))

    async def test_a_sink_can_hold_its_own_tail(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        got: list[int] = []
        tails: list[Tail] = []

        def sink(stored: Stored) -> None:
            got.append(stored.seq)
            if stored.seq % 100 == 0:
                tails[0].hold()
                asyncio.get_running_loop().call_soon(tails[0].resume)

        tails.append(await bus.tail("L", "l.a", sink, start_seq=1))
        await bus.store_batch([Write("l.a", b"") for _ in range(1000)])
        await eventually(lambda: len(got) >= 1000)
        assert got == list(range(1, 1001))

    async def test_large_messages_to_a_held_tail_are_not_piled_up(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        ears = await listen(bus)
        ears.tail.hold()
        for _ in range(24):
            await bus.store(Write("l.a", bytes(1_000_000)))
        other = await listen(bus, start_seq=24)
        await other.have(24)
        assert len(ears.got) < 16
        ears.tail.resume()
        await ears.have(*range(1, 25))

    async def test_nothing_comes_from_a_closed_tail(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        ears = await listen(bus)
        other = await listen(bus)
        await fill(bus, b"1", subject="l.a")
        await ears.have(1)
        await ears.tail.close()
        ears.tail.resume()
        await fill(bus, b"2", subject="l.a")
        await other.have(1, 2)
        await ears.have(1)

    async def test_a_tail_of_a_missing_stream_is_refused(self, bus: Bus) -> None:
        with pytest.raises(NotFoundError):
            await bus.tail("NONE", "l.a", lambda _: None, start_seq=1)

    async def test_a_start_beyond_the_end_is_a_problem_until_the_end_has_come_there(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await fill(bus, b"1", subject="l.a")
        exact = await listen(bus, start_seq=2)
        assert exact.tail.problem is None
        beyond = await listen(bus, start_seq=4)
        assert beyond.tail.problem == "the stream ends at 1 before the start at 4"
        await eventually(lambda: beyond.gaps == [beyond.tail.problem])
        await fill(bus, b"2", b"3", subject="l.b")
        await eventually(lambda: beyond.tail.problem is None)
        await fill(bus, b"4", subject="l.a")
        await beyond.have(4)
        await exact.have(4)
        assert len(beyond.gaps) == 1

    async def test_a_stream_that_was_made_anew_is_noticed(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await fill(bus, b"1", b"2", subject="l.a")
        ears = await listen(bus)
        await ears.have(1, 2)
        await bus.delete_stream("L")
        await eventually(lambda: ears.tail.problem is not None)
        await bus.create_stream(LOG)
        await fill(bus, b"new", subject="l.a")
        await eventually(lambda: ears.tail.problem == "the stream ends at 1 before the start at 3")
        assert ears.gaps
        await fill(bus, b"2", b"3", subject="l.a")
        await eventually(lambda: ears.tail.problem is None)
        await ears.have(1, 2, 3)

    async def test_several_tails_hear_the_same(self, broker: Broker) -> None:
        first, second = await broker.connect(), await broker.connect()
        await first.create_stream(LOG)
        ears = [await listen(bus, subject) for bus in (first, second) for subject in ("l.a", "l.>")]
        await fill(first, b"1", subject="l.a")
        await fill(second, b"2", subject="l.b")
        for index, heard in enumerate(ears):
            await heard.have(*((1, 2) if index % 2 else (1,)))

    async def test_reads_from_the_leader_find_what_direct_gets_find(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        for subject in ("l.a", "l.b", "l.a", "l.c.d"):
            await fill(bus, b"x", subject=subject)
        last = await bus.get_last("L", "l.a", from_leader=True)
        assert last is not None
        assert last.seq == 3
        assert await bus.get_seq("L", 3, from_leader=True) == last
        assert await bus.get_last("L", "l.none", from_leader=True) is None
        assert await bus.get_seq("L", 99, from_leader=True) is None
        assert await bus.get_seq("L", 0, from_leader=True) is None
        found = await bus.get_many("L", ["l.*", "l.none", "l.c.d"], from_leader=True)
        assert [stored.seq for stored in found] == [2, 3, 4]
        with pytest.raises(NotFoundError):
            await bus.get_last("NONE", "l.a", from_leader=True)
        with pytest.raises(NotFoundError):
            await bus.get_seq("NONE", 1, from_leader=True)
        with pytest.raises(NotFoundError):
            await bus.get_many("NONE", ["l.a"], from_leader=True)
