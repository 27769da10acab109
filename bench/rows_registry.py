"""Row r: the registry with 10,000 agents: look-ups, a burst of picks, and what the least busy one is worth."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from bench.broker import Broker
from bench.options import Options
from bench.table import Row, Side
from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus, Message, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.capability import Capability
from callboard.runtime.client import Client
from callboard.runtime.errors import BusError
from callboard.runtime.registry import record as records
from callboard.runtime.registry.cache import RegistryCache
from callboard.runtime.registry.handle import AgentHandle
from callboard.runtime.registry.message import BEAT, FIND, PICK, AgentBeat, Query
from callboard.runtime.registry.record import AgentRecord, CapabilitySpec
from callboard.runtime.worker import Worker

AGENTS = 10_000
KINDS = 100
LOOKS = 2_000
BURST = 1_000
BURST_AGENTS = 50
KILLS = 5
# Eight agents that do one thing at a time, asked by twelve callers; one task in ten takes ten times as long.
TEAM = 8
REQUESTS = 600
ARRIVE_EVERY_S = 0.016
SHORT_S, LONG_S, LONG_SHARE = 0.05, 0.5, 0.1
_AT_ONCE = 500
_ANSWER_S = 30.0


async def rows(options: Options, mode: str) -> list[Row]:
    """Measure on a server of its own, with a leader in a process of its own."""
    number = 500 if options.is_quick else AGENTS
    looks = 200 if options.is_quick else LOOKS
    async with (
        Broker("always" if mode == "always" else "default", options.folder) as broker,
        _hosts(broker.url, 3) as hosts,
    ):
        bus = await connect(broker.url, name="bench-registry")
        client = Client(bus)
        try:
            await _enter(bus, number)
            await _known(bus, number)
            cache = await _warm(client)
            found = await _look_ups(client, cache, bus, looks, number)
            found += await _burst(bus)
            found += await _team(broker.url, bus, quick=options.is_quick)
            found += await _takeovers(bus, hosts, 1 if options.is_quick else KILLS)
        finally:
            await client.close()
            await bus.close()
    shared: dict[str, Any] = {"key": "r", "mode": mode}
    return [Row(**shared, **each) for each in found]


# --- look-ups


async def _look_ups(client: Client, cache: RegistryCache, bus: Bus, looks: int, number: int) -> list[dict[str, Any]]:
    names = [f"skill-{n}" for n in range(KINDS)]
    dice = random.Random(1)

    def one() -> Query:
        return Query(capability=dice.choice(names), labels={"zone": dice.choice(("eu", "us"))}, limit=10)

    async def remote(subject: str) -> None:
        _ = await bus.request(subject, msgspec.json.encode(one()), timeout_s=_ANSWER_S)

    async def cached() -> None:
        _ = await client.lookups.find(one())

    async def picked() -> None:
        _ = cache.pick(one())

    found = []
    for what, look, goal in (
        ("find, cached", cached, "1 ms at p99"),
        ("find, by the leader", lambda: remote(FIND), "5 ms at p99"),
        ("pick, cached", picked, "1 ms at p99"),
        ("pick, by the leader", lambda: remote(PICK), "5 ms at p99"),
    ):
        times = sorted([await _timed(look) for _ in range(looks)])
        found.append(
            {
                "what": f"{what}, p99",
                "concurrency": f"{number:,} agents",
                "unit": "µs",
                "ours": _one(_share(times, 0.99) * 1e6),
                "note": f"p50 {_share(times, 0.5) * 1e6:.0f} µs, of {looks}",
                "goal": goal,
                "is_less_better": True,
            }
        )
    return found


async def _burst(bus: Bus) -> list[dict[str, Any]]:
    """Pick for many at once among a few: nobody may get the herd."""
    await _put(bus, [_agent("burst", n, "burst") for n in range(BURST_AGENTS)])
    await _until(lambda: _has(bus, "burst", BURST_AGENTS))
    query = msgspec.json.encode(Query(capability="burst"))
    answers = await asyncio.gather(*(bus.request(PICK, query, timeout_s=_ANSWER_S) for _ in range(BURST)))
    counts = Counter(msgspec.json.decode(each.data)["agent"]["record"]["key"] for each in answers)
    fair = BURST / BURST_AGENTS
    return [
        {
            "what": "a burst of picks: most to one agent",
            "concurrency": f"{BURST:,} at once",
            "unit": "",
            "ours": _one(max(counts.values())),
            "note": f"least {min(counts.values())}; fair is {fair:g} each of {BURST_AGENTS}",
            "goal": f"{2 * fair:g} at most",
            "is_less_better": True,
        }
    ]


# --- what the least busy one is worth


class _Member:
    """An agent of no worker that does one thing at a time and beats each second."""

    def __init__(self, bus: Bus, number: int) -> None:
        self.key = f"{number}"
        self._bus = bus
        self._turn = asyncio.Lock()
        self._inside = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        _ = await self._bus.subscribe(subjects.ask("team", self.key), self._hear)
        self._keep(self._beat())

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _hear(self, message: Message) -> None:
        self._keep(self._serve(message))

    def _keep(self, work: Any) -> None:  # noqa: ANN401 - a coroutine
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, message: Message) -> None:
        self._inside += 1
        async with self._turn:
            await asyncio.sleep(msgspec.json.decode(message.data))
        self._inside -= 1
        await self._bus.publish(message.reply, b"1")

    async def _beat(self) -> None:
        while True:
            busy = min(self._inside, 1)
            beat = AgentBeat(type="team", key=self.key, busy=busy, waiting=self._inside - busy)
            await self._bus.publish(BEAT, msgspec.json.encode(beat))
            await asyncio.sleep(1.0)


async def _team(url: str, bus: Bus, *, quick: bool) -> list[dict[str, Any]]:
    await _put(bus, [_agent("team", n, "team") for n in range(TEAM)])
    await _until(lambda: _has(bus, "team", TEAM))
    apart = await connect(url, name="bench-team")
    members = [_Member(apart, n) for n in range(TEAM)]
    for member in members:
        await member.open()
    client = Client(bus)
    turns = iter(range(1 << 30))
    dice = random.Random(2)

    async def least() -> Any:  # noqa: ANN401 - somebody to ask
        picked = await client.pick("team")
        if not isinstance(picked, AgentHandle):
            message = "the team is no pool"
            raise TypeError(message)
        return picked

    async def by_turn() -> Any:  # noqa: ANN401 - as above
        return client.actor(f"team/{next(turns) % TEAM}")

    async def by_chance() -> Any:  # noqa: ANN401 - as above
        return client.actor(f"team/{dice.randrange(TEAM)}")

    try:
        # as many of the first ones as it takes to know everybody
        _ = await _served(least, 20)
        count = 100 if quick else REQUESTS
        figures = {
            name: await _served(how, count)
            for name, how in (("least", least), ("turn", by_turn), ("chance", by_chance))
        }
    finally:
        for member in members:
            member.close()
        await client.close()
        await apart.close()
    return _worth(figures)


def _worth(figures: dict[str, float]) -> list[dict[str, Any]]:
    load = ((1 - LONG_SHARE) * SHORT_S + LONG_SHARE * LONG_S) / ARRIVE_EVERY_S / TEAM
    note = f"mean load {load:.0%}; {SHORT_S:g} s each, one in {1 / LONG_SHARE:.0f} {LONG_S:g} s"
    return [
        {
            "what": f"least busy, answer at p99 against {words}",
            "concurrency": f"{TEAM} agents",
            "unit": "ms",
            "ours": _one(figures["least"] * 1e3, "least busy"),
            "base": _one(figures[name] * 1e3, words),
            "note": note,
            "is_less_better": True,
        }
        for name, words in (("turn", "round-robin"), ("chance", "chance"))
    ]


async def _served(choose: Callable[[], Awaitable[Any]], count: int) -> float:
    """Send requests at their times, whatever becomes of those before; return the p99 of their answers."""
    dice = random.Random(3)
    times: list[float] = []

    async def one(takes_s: float) -> None:
        began_s = time.perf_counter()
        _ = await (await choose()).ask(takes_s, timeout_s=_ANSWER_S)
        times.append(time.perf_counter() - began_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            _ = group.create_task(one(LONG_S if dice.random() < LONG_SHARE else SHORT_S))
            await asyncio.sleep(dice.expovariate(1 / ARRIVE_EVERY_S))
    return _share(sorted(times), 0.99)


# --- a leader dies


async def _takeovers(bus: Bus, hosts: list[asyncio.subprocess.Process], kills: int) -> list[dict[str, Any]]:
    times = []
    for _ in range(min(kills, len(hosts) - 1)):
        answer = await bus.request(
            subjects.ask("registry", "main"), b"{}", headers={"Cb-Type": "Lead"}, timeout_s=_ANSWER_S
        )
        name = msgspec.json.decode(answer.data)["worker"]
        leader = next(host for host in hosts if name == f"bench-{host.pid}")
        hosts.remove(leader)
        leader.send_signal(signal.SIGKILL)
        began_s = time.perf_counter()
        _ = await leader.wait()
        await _until(lambda: _answers(bus), every_s=0.01)
        times.append(time.perf_counter() - began_s)
        await asyncio.sleep(3.0)
    return [
        {
            "what": "the leader is killed: answers again after, worst",
            "concurrency": f"{len(times)} kills",
            "unit": "s",
            "ours": _one(max(times)),
            "note": f"median {statistics.median(times):.2f} s",
            "goal": "2 s at most",
            "is_less_better": True,
        }
    ]


async def _answers(bus: Bus) -> bool:
    with contextlib.suppress(BusError):
        _ = await bus.request(FIND, b'{"limit":1}', timeout_s=0.25)
        return True
    return False


# --- the scene


@asynccontextmanager
async def _hosts(url: str, count: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    hosts = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.rows_registry", url, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(count)
    ]
    everybody = list(hosts)
    try:
        for host in hosts:
            if host.stdout is not None:
                _ = await host.stdout.readline()
        yield hosts
    finally:
        for host in everybody:
            with contextlib.suppress(ProcessLookupError):
                host.kill()
            _ = await host.wait()


async def _nothing() -> None:
    """Do nothing: a worker serves something."""


async def _serve(url: str) -> None:
    async def connected(name: str) -> Bus:
        return await connect(url, name=name)

    worker = Worker([Capability(_nothing, name="bench-nothing")], connected, worker_id=f"bench-{os.getpid()}")
    await worker.run(on_ready=lambda: print("ready", flush=True))


def _agent(kind: str, number: int, name: str) -> AgentRecord:
    return AgentRecord(
        type=kind,
        key=f"{number}",
        capabilities=[CapabilitySpec(name=name)],
        labels={"zone": "eu" if number // KINDS % 2 else "us"},
        # nobody beats for them: they live as long as the row takes
        timeout_s=3600.0,
        registered_at=datetime.now(UTC),
    )


async def _enter(bus: Bus, number: int) -> None:
    await _put(bus, [_agent("bench", n, f"skill-{n % KINDS}") for n in range(number)])


async def _put(bus: Bus, agents: Sequence[AgentRecord]) -> None:
    writes = [Write(f"$KV.{records.BUCKET}.{records.record_key(a.type, a.key)}", records.encode(a)) for a in agents]
    for start in range(0, len(writes), _AT_ONCE):
        _ = await bus.store_many(writes[start : start + _AT_ONCE])


async def _known(bus: Bus, number: int) -> None:
    await _until(lambda: _has(bus, f"skill-{(number - 1) % KINDS}", number // KINDS))


async def _has(bus: Bus, name: str, count: int) -> bool:
    with contextlib.suppress(BusError):
        answer = await bus.request(FIND, msgspec.json.encode(Query(capability=name, limit=1000)), timeout_s=2.0)
        return len(msgspec.json.decode(answer.data).get("agents", ())) >= count
    return False


async def _warm(client: Client) -> RegistryCache:
    _ = await client.find("skill-1")

    async def is_warm() -> bool:
        return client.lookups.cache is not None and client.lookups.cache.is_warm

    await _until(is_warm)
    if client.lookups.cache is None:
        message = "there is no cache"
        raise RuntimeError(message)
    return client.lookups.cache


async def _until(holds: Callable[[], Awaitable[bool]], *, every_s: float = 0.05, within_s: float = 60.0) -> None:
    give_up_s = time.monotonic() + within_s
    while not await holds():
        if time.monotonic() > give_up_s:
            message = "the registry did not come to know what was entered"
            raise TimeoutError(message)
        await asyncio.sleep(every_s)


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    began_s = time.perf_counter()
    await work()
    return time.perf_counter() - began_s


def _share(times: Sequence[float], share: float) -> float:
    return times[min(len(times) - 1, math.ceil(share * len(times)) - 1)]


def _one(figure: float, name: str = "callboard") -> Side:
    return Side(name=name, figures=[figure])


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
