"""The group commit of turns on a real server: what a refusal says, what a restart leaves, what a batch saves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from callboard.runtime.actor.commit import Committed, Fenced, Refused, TurnCommitter
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.commit import TRIALS_KEPT
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import PayloadTooLargeError
from tests.support.eventually import eventually
from tests.support.server import NatsServer
from tests.support.turns import TURNS, FaultyBus, committing, everything, guarded, host, problems

ACTORS = [f"a{n}" for n in range(8)]


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    bus: Bus = await connect(nats_server.url, name="turns")
    await bus.create_stream(TURNS)
    yield bus
    await bus.close()


async def all_of(committer: TurnCommitter, turns: list[tuple[Write, ...]]) -> list[str]:
    results = await asyncio.gather(*(committer.commit(*turn) for turn in turns))
    return [type(result).__name__ for result in results]


async def test_a_turn_stands_or_is_told_what_stands(bus: Bus) -> None:
    async with committing(bus, clock=SYSTEM_CLOCK) as committer:
        assert await committer.commit(guarded("t.a", b"1", 0)) == Committed((1,))
        turn = (guarded("t.a", b"2", 1), Write("t.out", b"x"), Write("t.out", b"y"))
        assert await committer.commit(*turn) == Committed((2, 3, 4))
        for stale in ((guarded("t.a", b"3", 1),), (guarded("t.a", b"3", 1), Write("t.out", b"z"))):
            result = await committer.commit(*stale)
            assert isinstance(result, Fenced)
            assert result.current is not None
            assert (result.current.seq, result.current.data) == (2, b"2")
        assert await committer.commit(guarded("t.b", b"", 7)) == Fenced(None)
    assert [stored.data for stored in await everything(bus)] == [b"1", b"2", b"x", b"y"]


@pytest.mark.parametrize("outputs", [0, 2])
async def test_of_many_actors_only_the_stale_are_fenced(bus: Bus, outputs: int) -> None:
    turns = [
        (guarded(f"t.a.{n}", b"s%d" % n, 999 if n % 10 == 3 else 0), *[Write("t.out", b"%d" % n)] * outputs)
        for n in range(64)
    ]
    async with committing(bus, clock=SYSTEM_CLOCK) as committer:
        names = await all_of(committer, turns)
    assert names == ["Fenced" if n % 10 == 3 else "Committed" for n in range(64)]
    fresh = [n for n in range(64) if n % 10 != 3]
    assert sorted(each.data for each in await everything(bus, "T", "t.a.*")) == sorted(b"s%d" % n for n in fresh)
    said = [each.data for each in await everything(bus, "T", "t.out")] if outputs else []
    assert sorted(said) == sorted(b"%d" % n for n in fresh for _ in range(outputs))


async def test_what_the_server_refuses_harms_no_neighbour(bus: Bus) -> None:
    async with committing(bus, clock=SYSTEM_CLOCK) as committer:
        turns = [(guarded(f"t.a.{n}", b"", 0), Write("t.out", b"")) for n in range(20)]
        ttl = header.build(expected_seq=0, ttl_s=5)
        turns[5] = (Write("t.bad", b"", ttl), Write("t.out", b"never"))
        turns[11] = (Write("t.bad.too", bytes(2 << 20), header.build(expected_seq=0)), Write("t.out", b"never"))
        results = await asyncio.gather(*(committer.commit(*turn) for turn in turns))
    refused = {n: result.error for n, result in enumerate(results) if isinstance(result, Refused)}
    assert set(refused) == {5, 11}
    assert "10166" in str(refused[5])
    assert isinstance(refused[11], PayloadTooLargeError)
    assert [each.data for each in await everything(bus, "T", "t.out")] == [b""] * 18


@pytest.mark.parametrize("fault", ["unanswered", "lost", "late"])
async def test_a_lost_answer_is_made_good(bus: Bus, fault: str) -> None:
    watched = FaultyBus(bus, ["unanswered", fault])  # type: ignore[list-item]
    async with committing(watched.as_bus, clock=SYSTEM_CLOCK) as committer:
        for seq in (0, 2):
            turn = (guarded("t.a", b"%d" % seq, 0 if not seq else 1), Write("t.out", b"%d" % seq))
            assert await committer.commit(*turn) == Committed((seq + 1, seq + 2))
        await watched.settled()
    assert [stored.data for stored in await everything(bus)] == [b"0", b"0", b"2", b"2"]


async def test_the_stream_of_the_actors_takes_its_turns(nats_server: NatsServer) -> None:
    bus: Bus = await connect(nats_server.url, name="turns")
    await apply(bus, await plan(bus, declared(TopologySettings())))
    async with committing(bus, clock=SYSTEM_CLOCK, stream="CB_ACTORS") as committer:
        turn = (
            guarded("cb.state.greeter.ann", b"{}", 0),
            Write("cb.mail.greeter.bob", b"hi", {header.TTL: "60s"}),
            Write("cb.event.greeter.ann", b"{}"),
        )
        assert await committer.commit(*turn) == Committed((1, 2, 3))
        assert await committer.commit(guarded("cb.step.greeter.ann.2.pay.0.1", b"{}", 0)) == Committed((4,))
        again = await committer.commit(guarded("cb.step.greeter.ann.2.pay.0.1", b"[]", 0))
        assert isinstance(again, Fenced)
        assert again.current is not None
        assert again.current.data == b"{}"
    await bus.close()


async def test_where_every_write_is_synced_turns_share_batches(make_server: Callable[..., NatsServer]) -> None:
    server = await make_server(sync_always=True).start()
    bus: Bus = await connect(server.url, name="turns")
    await bus.create_stream(TURNS)
    watched = FaultyBus(bus)
    async with committing(watched.as_bus, clock=SYSTEM_CLOCK) as committer:
        # what a trial finds depends on the disk below; here it shall have found that syncs cost
        committer.chooser.began_trial(SYSTEM_CLOCK.monotonic())
        for _ in range(TRIALS_KEPT):
            committer.chooser.learn(count=64, singles_s=0.064, batch_s=0.002)
        assert set(await all_of(committer, [(guarded(f"t.a.{n}", b"", 0),) for n in range(200)])) == {"Committed"}
        assert (sum(watched.batches), watched.singles) == (200, [])
        # two that go alone ride along when a batch goes anyway
        watched.batches.clear()
        turns: list[tuple[Write, ...]] = [(guarded("t.b", b"", 0), Write("t.out", b""))]
        turns += [(guarded(f"t.c.{n}", b"", 0),) for n in range(2)]
        assert set(await all_of(committer, turns)) == {"Committed"}
        assert (watched.batches, watched.singles) == ([4], [])
    await bus.close()


@pytest.mark.parametrize("in_flight", [1, 4])
async def test_two_hosts_and_a_server_that_dies_lose_and_double_nothing(
    nats_server: NatsServer, in_flight: int
) -> None:
    watch: Bus = await connect(nats_server.url, name="watch")
    await watch.create_stream(TURNS)
    mails = 60
    async with AsyncExitStack() as stack, asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        for name in ("one", "two"):
            bus: Bus = await connect(nats_server.url, name=name)
            stack.push_async_callback(bus.close)
            committer = await stack.enter_async_context(
                committing(bus, clock=SYSTEM_CLOCK, in_flight_batches=in_flight)
            )
            for actor in ACTORS:
                tasks.create_task(host(name, committer, bus, actor, mails=mails, outputs=1))
        for share in (1, 2):
            await eventually(
                lambda at=share: _count(watch, at * mails * len(ACTORS) // 3), within_s=20, what="turns go on"
            )
            await nats_server.restart()
    assert problems(await everything(watch), ACTORS, mails=mails) == []
    await watch.close()


async def _count(bus: Bus, wanted: int) -> bool:
    info = await bus.stream_info("T")
    return info is not None and info.messages >= 2 * wanted
