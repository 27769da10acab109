"""Rows i, j, n, p and q: how long one ask takes, how many a second, beside a blocked actor, and what a step costs."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

import msgspec
import nats

from bench import job
from bench.broker import PAYLOAD, Broker
from bench.cast import CAST, Add, Linger, Peek, Walk
from bench.hosts import Hosts, hosting, neighbours
from bench.options import Options
from bench.side_crowd import Crowd
from bench.side_serve import ECHO
from bench.table import Row, Side
from callboard.runtime import subjects
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus, Write

COUNTER = "bench-counter"
CALLERS = 100
HOSTS = 2
BLOCKED = "blocked"
MAILS = 5000
NEIGHBOURS = 8
TEXT = "x" * 245
_ASK_GOALS = {"default": "2.5x at most", "always": "6x at most"}
_RATE_GOALS = {"default": "10,000/s", "always": "5,000/s"}
_GUESS = {"default": 3000.0, "always": 1500.0}
_keys = count()

Ask = Callable[[], Awaitable[object]]


async def latency(broker: Broker, options: Options) -> list[Row]:
    """Row i: plain request-reply, a read-only ask and a stateful one in turn, one caller."""
    asks = 50 if options.is_quick else 500
    core, port = Side(name="core request-reply"), Side(name="core request-reply by our port")
    reads, turns = Side(name="read-only"), Side(name="stateful")
    tails: list[float] = []
    plain = await nats.connect(broker.url)
    async with hosting(broker.url) as hosts, broker.bus() as bus:
        await hosts.settled(bus, types=len(CAST))
        echo = f"{ECHO}.{hosts.names[0]}"
        ref = ActorRef(bus, f"{COUNTER}/one")
        for _ in range(50):
            await ref.ask(Add(TEXT))
        for _ in range(options.rounds):
            core.figures.append(_p50(await _times(lambda: plain.request(echo, PAYLOAD, timeout=10), asks)))
            port.figures.append(_p50(await _times(lambda: bus.request(echo, PAYLOAD), asks)))
            reads.figures.append(_p50(await _times(lambda: ref.ask(Peek(TEXT)), asks)))
            took = await _times(lambda: ref.ask(Add(TEXT)), asks)
            turns.figures.append(_p50(took))
            tails.append(_p99(took))
    await plain.close()
    shared: dict[str, Any] = {"key": "i", "mode": broker.mode, "concurrency": "1", "unit": "µs", "is_less_better": True}
    return [
        Row(what="read-only ask, p50", ours=reads, base=core, goal=_read_goal(broker), **shared),
        Row(what="stateful ask, p50", ours=turns, base=core, goal=_ASK_GOALS[broker.mode], **shared),
        Row(what="stateful ask, p50", ours=turns, base=port, **shared),
        Row(what="stateful ask, p99", ours=Side(name="stateful", figures=tails), **shared),
    ]


async def rate(broker: Broker, options: Options) -> list[Row]:
    """Row j: asks a second of 100 callers, two host processes and one."""
    found = []
    for hosts in (HOSTS, 1):
        rates, p50s, costs = Side(name="ours"), Side(name="ours"), []
        async with hosting(broker.url, hosts) as serving, broker.bus() as bus:
            await serving.settled(bus, types=len(CAST))
            guess = _GUESS[broker.mode]
            for _ in range(options.rounds):
                report, cost = await _crowd(broker, serving, bus, asks=int(guess * options.seconds), loop=options.loop)
                guess = report.rate
                rates.figures.append(report.rate)
                p50s.figures.append(msgspec.json.decode(report.note)[0] / 1000)
                costs.append(cost)
        goal = _RATE_GOALS[broker.mode] if hosts == HOSTS else ""
        shared: dict[str, Any] = {"key": "j", "mode": broker.mode, "concurrency": str(CALLERS)}
        what = f"stateful asks, {hosts} host process{'es' if hosts > 1 else ''}"
        found.append(Row(what=what, unit="/s", ours=rates, goal=goal, note=statistics.median_low(costs), **shared))
        found.append(Row(what=f"{what}, p50", unit="ms", ours=p50s, **shared))
    return found


async def profile(broker: Broker, options: Options) -> str:
    """Row q: row j with one host once more, under the sampler."""
    path = options.out / f"profile-asks-{broker.mode}.txt"
    async with hosting(broker.url, profile=str(path)) as serving, broker.bus() as bus:
        await serving.settled(bus, types=len(CAST))
        asks = int(_GUESS[broker.mode] * options.seconds * 2)
        await _crowd(broker, serving, bus, asks=asks, loop=options.loop)
    return path.read_text("utf-8")


async def blocked(broker: Broker, options: Options) -> list[Row]:
    """Row n: neighbours of an actor with 5,000 mails behind a long turn, against the same without them."""
    asks = 50 if options.is_quick else 400
    rounds = {name: (Side(name="idle"), Side(name="queue standing")) for name in ("p50", "p99")}
    async with hosting(broker.url) as hosts, broker.bus() as bus:
        await hosts.settled(bus, types=len(CAST))
        for number in range(options.rounds):
            key = f"{BLOCKED}{number}"
            refs = [ActorRef(bus, f"{COUNTER}/{other}") for other in neighbours(COUNTER, key, NEIGHBOURS)]
            for ref in refs * 3:
                await ref.ask(Add(TEXT))
            before = await _in_turn(refs, asks)
            await _block(bus, key)
            during = await _in_turn(refs, asks)
            for name, figure in (("p50", _p50), ("p99", _p99)):
                rounds[name][0].figures.append(figure(before))
                rounds[name][1].figures.append(figure(during))
    return [
        Row(
            key="n",
            what=f"ask beside {MAILS:,} mails of a blocked actor, {name}",
            mode=broker.mode,
            concurrency="1",
            unit="µs",
            ours=during_side,
            base=before_side,
            goal="2x at most",
            is_less_better=True,
        )
        for name, (before_side, during_side) in rounds.items()
    ]


async def steps(broker: Broker, options: Options) -> list[Row]:
    """Row p: a journaled step whose function does nothing."""
    number = 20 if options.is_quick else 300
    sides = {name: Side(name="ours") for name in ("p50", "p95")}
    async with hosting(broker.url) as hosts, broker.bus() as bus:
        await hosts.settled(bus, types=len(CAST))
        ref = ActorRef(bus, "bench-stepper/one")
        await ref.ask(Walk(20))
        for _ in range(options.rounds):
            took = sorted(await ref.ask(Walk(number), timeout_s=60))
            sides["p50"].figures.append(_p50(took) / 1000)
            sides["p95"].figures.append(took[len(took) * 95 // 100] / 1000)
    goals = {"p50": "3 ms at most", "p95": "10 ms at most"}
    return [
        Row(
            key="p",
            what=f"a step with its journal, {name}",
            mode=broker.mode,
            concurrency="1",
            unit="ms",
            ours=side,
            goal=goals[name],
        )
        for name, side in sides.items()
    ]


async def _crowd(broker: Broker, serving: Hosts, bus: Bus, *, asks: int, loop: str) -> tuple[job.Report, str]:
    crowd = Crowd(
        url=broker.url, kind=COUNTER, message="Add", callers=CALLERS, count=max(1000, asks), warm=2000, loop=loop
    )
    before_s, server_s = await serving.cpu_s(bus), broker.cpu_s
    report = await asyncio.to_thread(job.run, "crowd", crowd)
    asked = crowd.count + crowd.warm
    hosts_us = (await serving.cpu_s(bus) - before_s) / asked * 1e6
    server_us = (broker.cpu_s - server_s) / asked * 1e6
    chose = (await serving.facts(bus))[0].chose
    cost = f"CPU an ask: hosts {hosts_us:.0f} µs, server {server_us:.0f}, callers {report.cpu_us:.0f}; {chose}"
    return report, cost


async def _block(bus: Bus, key: str) -> None:
    """Let an actor stay in a turn, and put mails behind it."""
    ref = ActorRef(bus, f"{COUNTER}/{key}")
    await ref.tell(Linger(600.0))
    mail = msgspec.json.encode(Add(TEXT))
    subject = subjects.mail(COUNTER, key)
    for start in range(0, MAILS, 1000):
        for answer in await bus.store_many([Write(subject, mail)] * min(1000, MAILS - start), timeout_s=30):
            if isinstance(answer, Exception):
                raise answer
    # the flood itself is not what is asked about
    await asyncio.sleep(1.0)


async def _in_turn(refs: Sequence[ActorRef], asks: int) -> list[float]:
    turn = count()
    return await _times(lambda: refs[next(turn) % len(refs)].ask(Add(TEXT)), asks)


async def _times(ask: Ask, number: int) -> list[float]:
    """Return the microseconds that each took, one after the other."""
    took = []
    for _ in range(number):
        began = time.perf_counter()
        await ask()
        took.append((time.perf_counter() - began) * 1e6)
    return took


def _p50(figures: Sequence[float]) -> float:
    return statistics.median(figures)


def _p99(figures: Sequence[float]) -> float:
    return sorted(figures)[len(figures) * 99 // 100]


def _read_goal(broker: Broker) -> str:
    return "2x at most" if broker.mode == "default" else ""
