"""A turn's journal on a real server: races, lost answers, a server that dies, lifetimes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from callboard.runtime import subjects
from callboard.runtime.actor.commit import TurnCommitter
from callboard.runtime.actor.journal import Journal
from callboard.runtime.actor.unknown import settle_unknown, unknown_steps
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import StepUnknownError
from tests.support.eventually import eventually
from tests.support.server import NatsServer
from tests.support.stage import ANN, SEQ, provision

STEPS = subjects.steps(ANN.type, ANN.key, SEQ)


class Hosts:
    """Connections to one server, and journals of one turn on them."""

    def __init__(self, buses: list[Bus]) -> None:
        self.buses = buses

    def journal(self, host: int, *, seq: int = SEQ, is_fresh: bool = True, ttl_s: float | None = 3600.0) -> Journal:
        """Begin a run of the turn on one of the hosts."""
        bus = self.buses[host]
        return Journal(
            bus,
            ANN,
            seq,
            clock=SYSTEM_CLOCK,
            worker=f"w{host}",
            blobs=BlobStore(bus),
            is_fresh=is_fresh,
            ttl_s=ttl_s,
            claim_check_bytes=1000,
        )


@pytest.fixture
async def hosts(nats_server: NatsServer) -> AsyncIterator[Hosts]:
    async with AsyncExitStack() as stack:
        buses: list[Bus] = []
        for number in range(2):
            bus = await connect(nats_server.url, name=f"host-{number}")
            stack.push_async_callback(bus.close)
            buses.append(bus)
        await provision(buses[0])
        yield Hosts(buses)


async def test_of_two_hosts_that_race_one_wins_and_both_go_on_with_its_value(hosts: Hosts) -> None:
    for turn in range(1, 31):
        meet = asyncio.Barrier(2)

        async def work(host: int, meet: asyncio.Barrier = meet) -> str:
            await meet.wait()
            return f"by {host}"

        journals = [hosts.journal(host, seq=turn) for host in (0, 1)]
        values = await asyncio.gather(
            *(journal.run("work", work, (host,), key="k") for host, journal in enumerate(journals))
        )
        assert values[0] == values[1]
        assert sorted((journal.executed, journal.adopted) for journal in journals) == [(0, 1), (1, 0)]
    counts = await hosts.buses[0].subject_counts("CB_ACTORS", "cb.step.>")
    assert len(counts) == 30
    assert set(counts.values()) == {1}


async def test_of_two_that_race_for_what_must_not_run_twice_one_runs_it(hosts: Hosts) -> None:
    ran = []

    async def charge(host: int) -> str:
        ran.append(host)
        return f"by {host}"

    for turn in range(1, 31):
        ran.clear()
        results = await asyncio.gather(
            *(hosts.journal(host, seq=turn).run("charge", charge, (host,), key="k", once=True) for host in (0, 1)),
            return_exceptions=True,
        )
        assert len(ran) == 1
        values = [result for result in results if result == f"by {ran[0]}"]
        assert len(values) + sum(isinstance(result, StepUnknownError) for result in results) == 2
        assert values


async def test_everything_a_turn_recorded_is_read_at_once_on_another_host(hosts: Hosts) -> None:
    """More than the 1,024 subjects that the server answers for at a time; large values and odd names among them."""
    journal = hosts.journal(0)
    names = [f"step {number}. é/*>" for number in range(1100)]
    texts = {name: "x" * (2000 if number % 100 == 0 else 5) + name for number, name in enumerate(names)}

    async def work(name: str) -> str:
        return texts[name]

    for start in range(0, len(names), 100):
        await asyncio.gather(*(journal.run(name, work, (name,)) for name in names[start : start + 100]))
    journal = hosts.journal(1, is_fresh=False)
    for name in reversed(names):
        assert await journal.run(name, work, (name,)) == texts[name]
    assert (journal.executed, journal.replayed) == (0, len(names))


async def test_a_step_finished_while_the_server_is_away_is_recorded_when_it_is_back(
    hosts: Hosts, nats_server: NatsServer
) -> None:
    calls = []

    async def work() -> str:
        nats_server.kill()
        await eventually(lambda: not hosts.buses[0].is_connected)
        calls.append(1)
        return "done"

    journal = hosts.journal(0)
    running = asyncio.create_task(journal.run("work", work))
    await eventually(lambda: calls)
    await nats_server.start()
    assert await asyncio.wait_for(running, 30) == "done"
    assert len(calls) == 1
    assert journal.executed == 1
    assert await hosts.journal(1, is_fresh=False).run("work", work) == "done"


async def test_a_record_has_its_lifetime_and_an_intent_none(hosts: Hosts) -> None:
    bus = hosts.buses[0]
    journal = hosts.journal(0, ttl_s=1.0)
    await journal.run("plain", lambda: 1)
    await journal.run("charge", lambda: 2, once=True)

    async def plain_is_gone() -> bool:
        return len(await bus.subject_counts("CB_ACTORS", STEPS)) == 1

    await eventually(plain_is_gone, within_s=10)
    assert list(await bus.subject_counts("CB_ACTORS", STEPS)) == journal.untimed
    later = hosts.journal(1, is_fresh=False)
    assert await later.run("charge", lambda: 3, once=True) == 2
    assert later.untimed == journal.untimed


async def test_what_may_have_begun_is_settled_on_the_server(hosts: Hosts) -> None:
    began = asyncio.Event()

    async def charge() -> None:
        began.set()
        await asyncio.Event().wait()

    dying = asyncio.create_task(hosts.journal(0).run("charge", charge, once=True))
    await began.wait()
    dying.cancel()
    await asyncio.wait([dying])
    with pytest.raises(StepUnknownError):
        await hosts.journal(1, is_fresh=False).run("charge", charge, once=True)
    (found,) = await unknown_steps(hosts.buses[1], ANN, SEQ)
    await settle_unknown(hosts.buses[1], found.id, {"receipt": 7}, by="ops")
    assert await hosts.journal(1, is_fresh=False).run("charge", charge, once=True, returns=dict) == {"receipt": 7}


async def test_records_go_with_a_group_commit(hosts: Hosts) -> None:
    """Of both hosts at once: the fenced one adopts what the committer was shown."""
    committers = [TurnCommitter(bus, clock=SYSTEM_CLOCK) for bus in hosts.buses]
    running = [asyncio.create_task(committer.run()) for committer in committers]

    def open_one(host: int, seq: int) -> Journal:
        bus, store = hosts.buses[host], committers[host].commit
        blobs = BlobStore(bus)
        return Journal(
            bus, ANN, seq, clock=SYSTEM_CLOCK, worker=f"w{host}", blobs=blobs, is_fresh=True, store=store, ttl_s=60.0
        )

    async def work(host: int) -> str:
        return f"by {host}"

    pairs = [[open_one(host, turn) for host in (0, 1)] for turn in range(1, 101)]
    values = await asyncio.gather(
        *(journal.run("work", work, (host,), key="k") for pair in pairs for host, journal in enumerate(pair))
    )
    assert values[::2] == values[1::2]
    assert all(sorted(journal.executed for journal in pair) == [0, 1] for pair in pairs)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
