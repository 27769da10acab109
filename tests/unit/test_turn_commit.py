"""The group commit of turns: all or nothing, the stale fenced, nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import pytest
from msgspec.structs import replace

from callboard.runtime import crash
from callboard.runtime.actor.commit import Committed, Fenced, Refused, Result, TurnCommitter
from callboard.runtime.actor.entry import fate, judge, to_entry
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, PubAck, Write
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.bus.memory_broker import MAX_PAYLOAD_BYTES
from callboard.runtime.commit import TRIALS_KEPT
from callboard.runtime.errors import (
    ApiError,
    BackpressureError,
    BusClosedError,
    BusError,
    BusTimeoutError,
    CallboardError,
    ConflictError,
    InputError,
    InvalidHeaderError,
    PayloadTooLargeError,
)
from callboard.runtime.testing import FakeClock
from tests.support.eventually import eventually
from tests.support.turns import TURNS, Fault, FaultyBus, HastyClock, committing, everything, guarded

TOO_LARGE = bytes(MAX_PAYLOAD_BYTES + 1)


@pytest.fixture
def clock() -> HastyClock:
    return HastyClock()


@pytest.fixture
async def bus(clock: HastyClock) -> MemoryBus:
    bus = MemoryBroker(clock).connect()
    await bus.create_stream(TURNS)
    return bus


def kinds(results: Iterable[Result]) -> list[str]:
    return [type(result).__name__ for result in results]


async def all_of(committer: TurnCommitter, turns: Iterable[tuple[Write, ...]]) -> list[Result]:
    return await asyncio.gather(*(committer.commit(*turn) for turn in turns))


async def bodies(bus: Bus, *subjects: str) -> list[bytes]:
    return [stored.data for stored in await everything(bus, "T", *subjects)]


# --- single turns


async def test_a_turn_without_outputs_is_one_guarded_write(bus: MemoryBus, clock: HastyClock) -> None:
    watched = FaultyBus(bus)
    async with committing(watched.as_bus, clock=clock) as committer:
        assert await committer.commit(guarded("t.a", b"1", 0)) == Committed((1,))
        assert await committer.commit(guarded("t.a", b"2", 1)) == Committed((2,))
    assert (watched.singles, watched.batches, watched.reads) == ([1, 1], [], 0)


async def test_a_stale_turn_is_told_what_stands_and_stores_nothing(bus: MemoryBus, clock: HastyClock) -> None:
    async with committing(bus, clock=clock) as committer:
        await committer.commit(guarded("t.a", b"1", 0))
        for writes in ((guarded("t.a", b"2", 0),), (guarded("t.a", b"2", 0), Write("t.out", b"x"))):
            result = await committer.commit(*writes)
            assert isinstance(result, Fenced)
            assert result.current is not None
            assert (result.current.seq, result.current.data) == (1, b"1")
    assert await bodies(bus) == [b"1"]


async def test_a_turn_on_a_record_that_is_gone_is_fenced_by_nothing(bus: MemoryBus, clock: HastyClock) -> None:
    async with committing(bus, clock=clock) as committer:
        assert await committer.commit(guarded("t.a", b"2", 7)) == Fenced(None)


async def test_a_turn_with_outputs_is_one_batch(bus: MemoryBus, clock: HastyClock) -> None:
    watched = FaultyBus(bus)
    await bus.store(Write("t.other", b""))
    async with committing(watched.as_bus, clock=clock) as committer:
        turn = (guarded("t.a", b"1", 0), Write("t.out", b"x"), Write("t.out", b"y"))
        assert await committer.commit(*turn) == Committed((2, 3, 4))
    assert watched.batches == [3]
    assert await bodies(bus, "t.a", "t.out") == [b"1", b"x", b"y"]


async def test_the_same_bytes_on_the_record_it_builds_on_are_not_taken_for_its_own(
    bus: MemoryBus, clock: HastyClock
) -> None:
    async with committing(bus, clock=clock) as committer:
        assert await committer.commit(guarded("t.a", b"same", 0)) == Committed((1,))
        assert await committer.commit(guarded("t.a", b"same", 1)) == Committed((2,))


async def test_a_callback_hears_the_outcome_and_may_send_the_next_turn(bus: MemoryBus, clock: HastyClock) -> None:
    heard: list[Result] = []
    async with committing(bus, clock=clock) as committer:

        def done(result: Result) -> None:
            heard.append(result)
            if len(heard) < 3:
                committer.add((guarded("t.a", b"%d" % len(heard), len(heard)),), done)

        committer.add((guarded("t.a", b"0", 0),), done)
        assert committer.backlog == 1
        await committer.drain()
        assert (heard, committer.backlog) == ([Committed((1,)), Committed((2,)), Committed((3,))], 0)


@pytest.mark.parametrize(
    "writes",
    [
        (),
        tuple(Write("t.a", b"") for _ in range(1001)),
        (Write("t.a", b"", {header.MSG_ID: "1"}),),
        (guarded("t.a", b"", 0), Write("t.b", b"", {header.MSG_ID: "1"})),
        (Write("t.b", b""), guarded("t.a", b"", 0)),
        (Write("t.a", b"", {header.EXPECTED_SUBJECT_SEQ: "-1"}),),
    ],
)
async def test_what_is_no_turn_is_refused_at_once(bus: MemoryBus, clock: HastyClock, writes: tuple[Write, ...]) -> None:
    committer = TurnCommitter(bus, stream="T", clock=clock)
    with pytest.raises(InputError):
        await committer.commit(*writes)
    assert committer.backlog == 0


# --- groups


def crowd(count: int, *, outputs: int, stale: Callable[[int], bool] = lambda n: n % 10 == 3) -> list[tuple[Write, ...]]:
    """Return turns of ``count`` actors, some of which build on a record that is not there."""
    return [
        (guarded(f"t.a.{n}", b"s%d" % n, 999 if stale(n) else 0), *(Write("t.out", b"%d" % n) for _ in range(outputs)))
        for n in range(count)
    ]


@pytest.mark.parametrize("outputs", [0, 1, 3])
async def test_of_many_actors_only_the_stale_are_fenced(bus: MemoryBus, clock: HastyClock, outputs: int) -> None:
    async with committing(bus, clock=clock) as committer:
        results = await all_of(committer, crowd(64, outputs=outputs))
        assert (committer.backlog, committer.last_problem) == (0, None)
    assert kinds(results) == ["Fenced" if n % 10 == 3 else "Committed" for n in range(64)]
    fresh = [n for n in range(64) if n % 10 != 3]
    assert sorted(await bodies(bus, "t.a.*")) == sorted(b"s%d" % n for n in fresh)
    assert sorted(await bodies(bus, "t.out")) == sorted(b"%d" % n for n in fresh for _ in range(outputs))
    stored = {each.seq: each for each in await everything(bus)}
    for n, result in enumerate(results):
        if isinstance(result, Committed):
            assert [stored[seq].data for seq in result.seqs] == [b"s%d" % n] + [b"%d" % n] * outputs


async def test_turns_that_wait_together_share_a_batch_and_a_refusal_costs_one_read_more(
    bus: MemoryBus, clock: HastyClock
) -> None:
    watched = FaultyBus(bus)
    async with committing(watched.as_bus, clock=clock) as committer:
        await all_of(committer, crowd(64, outputs=1))
    # all; without the seven that one read named and one from the leader confirmed
    assert watched.batches == [128, 114]
    assert watched.reads == 2


async def test_a_batch_holds_no_more_than_it_may(bus: MemoryBus, clock: HastyClock) -> None:
    watched = FaultyBus(bus)
    async with committing(watched.as_bus, clock=clock, max_group=10) as committer:
        turns = [*crowd(9, outputs=2), (Write("t.big", b""),) * 25, *crowd(0, outputs=2)]
        results = await all_of(committer, turns)
    assert kinds(results).count("Committed") == 9
    assert 25 in watched.batches
    assert max(size for size in watched.batches if size != 25) <= 10


async def test_several_batches_are_under_way_only_while_many_wait(bus: MemoryBus, clock: HastyClock) -> None:
    watched = FaultyBus(bus)
    async with committing(watched.as_bus, clock=clock, in_flight_batches=4) as committer:
        await all_of(committer, crowd(90, outputs=1, stale=lambda _: False))
        assert watched.batches == [180]
        watched.batches.clear()
        turns = [(guarded(f"t.b.{n}", b"", 0), Write("t.out", b"")) for n in range(300)]
        assert set(kinds(await all_of(committer, turns))) == {"Committed"}
    # three hundred wait, then 250, 200, 150; the last hundred go as one
    assert watched.batches == [100, 100, 100, 100, 200]


@pytest.mark.parametrize(("took_s", "batches"), [(1.0, 1), (0.0, 2)])
async def test_after_a_batch_the_next_one_waits_while_more_comes_but_not_for_long(
    bus: MemoryBus, clock: HastyClock, took_s: float, batches: int
) -> None:
    class SlowBus(FaultyBus):
        async def store_batch(self, writes: Sequence[Write], **options: object) -> PubAck:
            await clock.sleep(took_s)
            return await super().store_batch(writes, **options)

    watched = SlowBus(bus)
    async with committing(watched.as_bus, clock=clock) as committer:
        for _ in range(TRIALS_KEPT):
            committer.chooser.learn(count=64, singles_s=0.064, batch_s=0.002)
        committer.chooser.began_trial(clock.monotonic() + 1e6)
        await all_of(committer, crowd(10, outputs=0, stale=lambda _: False))
        del watched.batches[:]
        for number in range(8):
            committer.add((Write("t.more", b""),), lambda _: None)
            if number > 1:
                await asyncio.sleep(0)
        await committer.drain()
    assert (len(watched.batches), sum(watched.batches)) == (batches, 8)


async def test_the_second_turn_of_an_actor_waits_for_the_first(bus: MemoryBus, clock: HastyClock) -> None:
    async with committing(bus, clock=clock) as committer:
        turns = [(guarded("t.a", b"%d" % n, n),) for n in range(3)]
        assert await all_of(committer, turns) == [Committed((1,)), Committed((2,)), Committed((3,))]
        first, second = await all_of(
            committer,
            [(guarded("t.b", b"x", 0), Write("t.out", b"x")), (guarded("t.b", b"y", 0), Write("t.out", b"y"))],
        )
    assert (kinds([first]), kinds([second])) == (["Committed"], ["Fenced"])
    assert await bodies(bus, "t.out") == [b"x"]


@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize(
    ("bad", "refusal"),
    [
        (Write("t.bad", TOO_LARGE), PayloadTooLargeError),
        (Write("t.bad", b"", {"X": "a\nb"}), InvalidHeaderError),
        (Write("t.bad", b"", {header.TTL: "1s"}), BusError),  # the stream allows none; only the broker knows
    ],
)
async def test_a_write_that_cannot_be_stored_harms_no_neighbour(
    bus: MemoryBus, clock: HastyClock, bad: Write, refusal: type[CallboardError], outputs: int
) -> None:
    headers = header.build(expected_seq=0, extra=bad.headers)
    turns = crowd(20, outputs=outputs)
    turns.insert(7, (replace(bad, headers=headers), *[Write("t.out", b"never")] * outputs))
    async with committing(bus, clock=clock) as committer:
        results = await all_of(committer, turns)
    odd = results.pop(7)
    assert isinstance(odd, Refused)
    assert isinstance(odd.error, refusal)
    assert kinds(results) == ["Fenced" if n % 10 == 3 else "Committed" for n in range(20)]
    assert b"never" not in await bodies(bus, "t.out")


# --- answers that stay away, streams that are full


@pytest.mark.parametrize("outputs", [0, 2])
@pytest.mark.parametrize("fault", ["unanswered", "lost", "late"])
async def test_a_turn_whose_answer_is_lost_is_stored_once(
    bus: MemoryBus, clock: HastyClock, fault: Fault, outputs: int
) -> None:
    watched = FaultyBus(bus, [fault])
    async with committing(watched.as_bus, clock=clock) as committer:
        turn = (guarded("t.a", b"1", 0), *[Write("t.out", b"x")] * outputs)
        assert await committer.commit(*turn) == Committed(tuple(range(1, 2 + outputs)))
        assert (committer.backlog, committer.last_problem) == (0, None)
        await watched.settled()
    assert await bodies(bus) == [b"1"] + [b"x"] * outputs
    # where it stood already, nothing was sent again
    assert len(watched.batches or watched.singles) == (1 if fault == "unanswered" else 2)


async def test_of_a_lost_batch_each_turn_learns_its_own_sequences(bus: MemoryBus, clock: HastyClock) -> None:
    async with committing(FaultyBus(bus, ["unanswered"]).as_bus, clock=clock) as committer:
        turns = [(guarded(f"t.a.{n}", b"%d" % n, 0), Write("t.out", b"%d" % n)) for n in range(5)]
        assert await all_of(committer, turns) == [Committed((2 * n + 1, 2 * n + 2)) for n in range(5)]


async def test_a_lost_answer_waits_for_a_read_that_works(bus: MemoryBus, clock: HastyClock) -> None:
    watched = FaultyBus(bus, ["unanswered"])
    watched.unread = 5
    async with committing(watched.as_bus, clock=clock) as committer:
        assert await committer.commit(guarded("t.a", b"1", 0)) == Committed((1,))
    assert (watched.reads, await bodies(bus)) == (6, [b"1"])


async def test_a_refusal_that_cannot_be_looked_into_is_tried_again(bus: MemoryBus, clock: HastyClock) -> None:
    watched = FaultyBus(bus)
    watched.unread = 3
    async with committing(watched.as_bus, clock=clock) as committer:
        results = await all_of(committer, crowd(20, outputs=1))
    assert kinds(results) == ["Fenced" if n % 10 == 3 else "Committed" for n in range(20)]


@pytest.mark.parametrize("outputs", [0, 1])
async def test_a_follower_that_is_behind_fences_nobody(bus: MemoryBus, clock: HastyClock, outputs: int) -> None:
    watched = FaultyBus(bus)
    watched.behind = 3
    async with committing(watched.as_bus, clock=clock) as committer:
        await all_of(committer, crowd(20, outputs=outputs, stale=lambda _: False))
        turns = [
            (guarded(f"t.a.{n}", b"next", (1 + n * (1 + outputs)) * (n != 3)), *[Write("t.out", b"next")] * outputs)
            for n in range(20)
        ]
        assert kinds(await all_of(committer, turns)) == ["Fenced" if n == 3 else "Committed" for n in range(20)]
    assert (await bodies(bus, "t.a.*")).count(b"next") == 19


async def test_where_a_follower_names_nobody_the_stale_one_is_found_by_halves(
    bus: MemoryBus, clock: HastyClock
) -> None:
    watched = FaultyBus(bus)
    watched.behind = 1000
    await bus.store(Write("t.a.5", b"theirs"))
    async with committing(watched.as_bus, clock=clock) as committer:
        results = await all_of(committer, crowd(20, outputs=1, stale=lambda _: False))
    assert kinds(results) == ["Fenced" if n == 5 else "Committed" for n in range(20)]


async def test_who_lost_its_answer_and_then_the_actor_is_fenced(bus: MemoryBus, clock: HastyClock) -> None:
    watched = FaultyBus(bus, ["lost"])
    watched.unread = 1
    async with committing(watched.as_bus, clock=clock) as committer:
        turn = asyncio.create_task(committer.commit(guarded("t.a", b"mine", 0), Write("t.out", b"mine")))
        await eventually(lambda: watched.batches, every_s=0)
        await bus.store(guarded("t.a", b"theirs", 0))
        result = await turn
    assert isinstance(result, Fenced)
    assert await bodies(bus) == [b"theirs"]


@pytest.mark.parametrize("outputs", [0, 2])
async def test_a_full_stream_is_tried_until_there_is_room(bus: MemoryBus, outputs: int) -> None:
    clock = FakeClock()
    watched = FaultyBus(bus, ["full"] * 8)
    async with committing(watched.as_bus, clock=clock) as committer:
        turn = asyncio.create_task(committer.commit(guarded("t.a", b"1", 0), *[Write("t.out", b"x")] * outputs))
        await clock.settle()
        assert committer.last_problem == "backpressure: the stream is full"
        sent = watched.batches if outputs else watched.singles
        for attempts, wait_s in enumerate((0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0), 1):
            assert (len(sent), turn.done()) == (attempts, False)
            await clock.advance(wait_s)
        assert await turn == Committed(tuple(range(1, 2 + outputs)))
        assert committer.last_problem is None


async def test_a_write_without_a_guard_is_never_sent_twice(bus: MemoryBus, clock: HastyClock) -> None:
    watched = FaultyBus(bus, ["full", "unanswered", "lost"])
    async with committing(watched.as_bus, clock=clock) as committer:
        full, *unknown = [await committer.commit(Write("t.mail", b"%d" % n)) for n in range(3)]
        assert await committer.commit(Write("t.mail", b"3")) == Committed((2,))
    assert isinstance(full, Refused)
    assert isinstance(full.error, BackpressureError)
    assert [isinstance(each, Refused) and isinstance(each.error, BusTimeoutError) for each in unknown] == [True, True]
    assert await bodies(bus) == [b"1", b"3"]


async def test_a_write_without_a_guard_outlives_the_stale_turn_it_rides_with(bus: MemoryBus, clock: HastyClock) -> None:
    async with committing(bus, clock=clock) as committer:
        stale, mail = await all_of(
            committer, [(guarded("t.a", b"", 5), Write("t.out", b"")), (Write("t.mail", b"1"), Write("t.mail", b"2"))]
        )
    assert (stale, mail) == (Fenced(None), Committed((1, 2)))


# --- coming and going


async def test_a_cancelled_commit_that_was_not_sent_is_dropped(bus: MemoryBus, clock: HastyClock) -> None:
    committer = TurnCommitter(bus, stream="T", clock=clock)
    first = asyncio.create_task(committer.commit(guarded("t.a", b"1", 0)))
    second = asyncio.create_task(committer.commit(guarded("t.a", b"2", 0)))
    third = asyncio.create_task(committer.commit(guarded("t.a", b"3", 0), Write("t.out", b"")))
    await asyncio.sleep(0)
    assert committer.backlog == 3
    for task in (second, first):
        task.cancel()
        await asyncio.wait({task})
    assert committer.backlog == 1
    running = asyncio.create_task(committer.run())
    assert await third == Committed((1, 2))
    await committer.drain()
    running.cancel()


async def test_a_cancelled_commit_that_waits_for_room_is_dropped(bus: MemoryBus) -> None:
    clock = FakeClock()
    watched = FaultyBus(bus, ["full"])
    async with committing(watched.as_bus, clock=clock) as committer:
        first = asyncio.create_task(committer.commit(guarded("t.a", b"1", 0)))
        await clock.settle()
        first.cancel()
        await clock.settle()
        assert (committer.backlog, committer.last_problem) == (0, None)
        assert await committer.commit(guarded("t.a", b"2", 0)) == Committed((1,))
        await clock.advance(5.0)
    assert await bodies(bus) == [b"2"]


async def test_everybody_is_answered_when_it_stops(bus: MemoryBus) -> None:
    clock = FakeClock()
    async with committing(FaultyBus(bus, ["full"] * 9).as_bus, clock=clock) as committer:
        turns = [asyncio.create_task(committer.commit(guarded("t.a", b"", n), Write("t.out", b""))) for n in range(3)]
        await clock.settle()
    results = [*await asyncio.gather(*turns), await committer.commit(guarded("t.a", b"", 0))]
    assert [isinstance(each, Refused) and isinstance(each.error, BusClosedError) for each in results] == [True] * 4
    assert committer.backlog == 0


async def test_a_closed_bus_refuses_every_turn(bus: MemoryBus, clock: HastyClock) -> None:
    async with committing(bus, clock=clock) as committer:
        await bus.close()
        results = await all_of(committer, [*crowd(3, outputs=0), *crowd(3, outputs=1)])
    assert [isinstance(each, Refused) and isinstance(each.error, BusClosedError) for each in results] == [True] * 6


async def test_a_bus_that_closes_while_an_outcome_is_looked_up_refuses_the_turn(bus: MemoryBus) -> None:
    clock = FakeClock()
    watched = FaultyBus(bus, ["lost"])
    watched.unread = 1
    async with committing(watched.as_bus, clock=clock) as committer:
        turn = asyncio.create_task(committer.commit(guarded("t.a", b"1", 0), Write("t.out", b"")))
        await clock.settle()
        await bus.close()
        await clock.advance(1.0)
        result = await turn
    assert isinstance(result, Refused)
    assert isinstance(result.error, BusClosedError)


@pytest.mark.parametrize(("stale", "batches"), [(-1, [10]), (3, [10]), (13, [10, 9])])
async def test_a_trial_teaches_it_what_a_batch_costs_even_with_a_stale_turn(
    bus: MemoryBus, clock: HastyClock, stale: int, batches: list[int]
) -> None:
    watched = FaultyBus(bus)
    async with committing(watched.as_bus, clock=clock) as committer:
        await all_of(committer, crowd(20, outputs=0, stale=lambda n: n == stale))
        assert committer.chooser.batch_s is not None
    assert (watched.singles, watched.batches) == ([10], batches)


@pytest.mark.parametrize("faults", [["full"], ["unanswered"], ["", "full"], ["", "lost"]])
async def test_a_disturbed_trial_teaches_nothing(bus: MemoryBus, clock: HastyClock, faults: list[Fault]) -> None:
    async with committing(FaultyBus(bus, faults).as_bus, clock=clock) as committer:
        results = await all_of(committer, crowd(20, outputs=0, stale=lambda _: False))
        assert committer.chooser.batch_s is None
    assert set(kinds(results)) == {"Committed"}


@pytest.mark.parametrize("outputs", [0, 1])
async def test_a_crash_can_be_had_before_and_after_the_write_and_between_two_who_are_told(
    bus: MemoryBus, clock: HastyClock, outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[tuple[str, int, int]] = []
    told: list[Result] = []
    stream = bus.broker.stream("T")
    monkeypatch.setattr(crash, "point", "mid-batch")
    monkeypatch.setattr(crash, "at", lambda point: met.append((point, stream.messages, len(told))))
    async with committing(bus, clock=clock) as committer:
        for turn in crowd(3, outputs=outputs):
            committer.add(turn, told.append)
        await committer.drain()
    all_stored = 3 * (1 + outputs)
    assert met == [
        ("before-commit", 0, 0),
        ("after-commit", all_stored, 0),
        ("mid-batch", all_stored, 1),
        ("mid-batch", all_stored, 2),
    ]


# --- decisions


def test_what_becomes_of_a_turn_depends_on_its_guard_and_on_the_error() -> None:
    turn = to_entry((guarded("t.a", b"", 0),), lambda _: None)
    mail = to_entry((Write("t.mail", b""),), lambda _: None)
    errors: list[tuple[CallboardError, str]] = [
        (BusTimeoutError(), "look"),
        (BackpressureError(), "again"),
        (ConflictError(""), "again"),
        (ApiError("no leader", code=503), "again"),
        (ApiError("bad request", code=400), "refuse"),
        (BusClosedError(), "refuse"),
        (PayloadTooLargeError(""), "refuse"),
    ]
    assert [fate(turn, error) for error, _ in errors] == [expected for _, expected in errors]
    assert {fate(mail, error) for error, _ in errors} == {"refuse"}


def test_an_empty_subject_is_what_the_first_turn_expects() -> None:
    assert judge(to_entry((guarded("t.a", b"", 0),), lambda _: None), None) is None
    assert judge(to_entry((guarded("t.a", b"", 3),), lambda _: None), None) == Fenced(None)
