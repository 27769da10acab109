"""Rows k and l: turns that send, in groups against one batch each; replay against a raw ordered consumer."""

from __future__ import annotations

import asyncio
from itertools import count

from bench import job
from bench.broker import IN_FLIGHT, PAYLOAD, Broker
from bench.cast import CAST, NOBODY, SENDS
from bench.cluster import Cluster
from bench.hosts import hosting
from bench.job import Report
from bench.options import Options
from bench.side_crowd import Crowd
from bench.side_replay import Replay
from bench.side_turns import Turns
from bench.table import Row, Side
from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.errors import BusError

LANES = 64
MESSAGES = 100_000
_GUESS = {True: 250.0, False: 1500.0}
_numbers = count()


async def sending(broker: Broker, options: Options) -> list[Row]:
    """Row k: on one server, the commits alone and whole asks; on three, the commits alone."""
    found = [await _commits(broker.url, broker.mode, options, what="one server", goal="10x")]
    found.append(await _whole(broker, options))
    async with Cluster(broker.mode, options.folder) as cluster:
        found.append(await _commits(cluster.url, broker.mode, options, what="three replicas", goal="1.2x"))
    return found


async def replay(broker: Broker, options: Options) -> list[Row]:
    """Row l: mail as it stands in the stream of actors, and its copy in the audit stream."""
    number = 5000 if options.is_quick else MESSAGES
    subject = f"{NOBODY}-{next(_numbers)}"
    async with broker.bus() as bus:
        await _fill(bus, subjects.mail(subject, "one"), number)
        wanted = f"cb.mbox.{subject}.>"
        await _copied(bus, wanted, number)
    found = []
    for stream in (subjects.ACTORS, subjects.AUDIT):
        ours, raw = [], []
        for _ in range(options.rounds):
            read = Replay(url=broker.url, stream=stream, subject=wanted, count=number, loop=options.loop)
            ours.append(await asyncio.to_thread(job.run, "replay", read))
            raw.append(await asyncio.to_thread(job.run, "replay", _raw(read)))
        found.append(
            Row(
                key="l",
                what=f"messages read in order, {stream}",
                mode=broker.mode,
                concurrency="1",
                unit="/s",
                ours=_rates("ours", ours),
                base=_rates("raw ordered consumer", raw),
                goal="0.8",
            )
        )
    return found


def _raw(read: Replay) -> Replay:
    return Replay(url=read.url, stream=read.stream, subject=read.subject, count=read.count, loop=read.loop, is_raw=True)


async def _commits(url: str, mode: str, options: Options, *, what: str, goal: str) -> Row:
    grouped: list[Report] = []
    alone: list[Report] = []
    for _ in range(options.rounds):
        for is_alone, reports in ((False, grouped), (True, alone)):
            turns = Turns(
                url=url,
                kind=f"bench-turns-{next(_numbers)}",
                lanes=LANES,
                seconds=options.seconds,
                is_alone=is_alone,
                loop=options.loop,
            )
            reports.append(await asyncio.to_thread(job.run, "turns", turns))
    return _row(f"turns that send {SENDS}, commits alone, {what}", mode, grouped, alone, goal)


async def _whole(broker: Broker, options: Options) -> Row:
    sides: dict[bool, list[Report]] = {False: [], True: []}
    rates = dict(_GUESS)
    for _ in range(options.rounds):
        for is_alone, reports in sides.items():
            async with hosting(broker.url, is_alone=is_alone) as hosts, broker.bus() as bus:
                await hosts.settled(bus, types=len(CAST))
                crowd = Crowd(
                    url=broker.url,
                    kind="bench-teller",
                    message="Spread",
                    callers=LANES,
                    count=max(200, int(rates[is_alone] * options.seconds)),
                    warm=LANES * 4,
                    loop=options.loop,
                )
                reports.append(await asyncio.to_thread(job.run, "crowd", crowd))
                rates[is_alone] = reports[-1].rate
    return _row(f"asks whose turns send {SENDS}, one server", broker.mode, sides[False], sides[True], "")


def _row(what: str, mode: str, grouped: list[Report], alone: list[Report], goal: str) -> Row:
    return Row(
        key="k",
        what=what,
        mode=mode,
        concurrency=str(LANES),
        unit="/s",
        ours=_rates("grouped", grouped),
        base=_rates("a batch each", alone),
        goal=goal,
    )


def _rates(name: str, reports: list[Report]) -> Side:
    return Side(name=name, figures=[report.rate for report in reports])


async def _fill(bus: Bus, subject: str, number: int) -> None:
    for start in range(0, number, IN_FLIGHT):
        writes = [Write(subject, PAYLOAD)] * min(IN_FLIGHT, number - start)
        for answer in await bus.store_many(writes, timeout_s=30):
            if isinstance(answer, BusError):
                raise answer


async def _copied(bus: Bus, wanted: str, number: int) -> None:
    while sum((await bus.subject_counts(subjects.AUDIT, wanted)).values()) < number:
        await asyncio.sleep(0.1)
