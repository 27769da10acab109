"""A server, workers and a load together, and the evidence they leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from msgspec import structs

from callboard.runtime import record, subjects
from callboard.runtime.bus import header, provision
from callboard.runtime.bus.base import Bus, StreamConfig
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.topology import declared
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError, CallboardError
from tests.chaos.checker import Evidence, Verdict, check
from tests.chaos.fleet import Fleet
from tests.chaos.load import Load
from tests.support.cluster import Servers
from tests.support.eventually import eventually

_MIB = 1 << 20
PROVISION_WITHIN_S = 30.0
SETTINGS = TopologySettings(
    queue_max_bytes=64 * _MIB, ledger_max_bytes=64 * _MIB, audit_max_bytes=8 * _MIB, dead_max_bytes=8 * _MIB,
    tokens_max_bytes=_MIB,
)  # fmt: skip
# Shorter leases than in production, where only the order of events matters.
QUICK: dict[str, Any] = {"ack_wait_s": 2.0, "extend_every_s": 0.5, "quarantine_s": 2.0}
Tweak = Callable[[StreamConfig], StreamConfig]


class Stage:
    """Everything of one chaos run."""

    def __init__(self, servers: Servers, bus: Bus, fleet: Fleet) -> None:
        self.servers = servers
        self.server = servers.first
        self.bus = bus
        self.fleet = fleet
        self.load = Load(bus)

    async def settled(self, *, within_s: float) -> None:
        """Wait until nothing waits, runs or is scheduled; two equal looks are needed."""
        await eventually(self._is_empty, within_s=within_s, what="an empty queue", every_s=0.2)
        await eventually(self._is_empty, within_s=within_s, what="a queue that stays empty", every_s=0.2)

    async def evidence(self) -> Evidence:
        """Gather what is known now."""
        self.fleet.note_deaths()
        effects: Counter[str] = Counter()
        statuses: dict[str, str] = {}
        async for stored in self.bus.read(subjects.LEDGER, subjects=("cb.result.>",)):
            entry = record.decode_task(stored.data)
            effects[entry.task] += 1
            statuses[entry.task] = entry.status
        return Evidence(
            acked=frozenset(self.load.acked),
            offered=frozenset(self.load.offered),
            unnamed_unknown=self.load.unnamed_unknown,
            effects=effects,
            statuses=statuses,
            dead=frozenset(await self.dead()),
            pending=frozenset(await self.pending()),
            events=self.fleet.events(),
            deaths=tuple(self.fleet.deaths),
        )

    async def verdict(self) -> Verdict:
        """Return what the checker says now."""
        return check(await self.evidence())

    async def dead(self) -> dict[str, record.DeadLetter]:
        """Return the dead letters by task."""
        letters = [record.decode_dead(s.data) async for s in self.bus.read(subjects.DEAD, subjects=("cb.dead.task.>",))]
        return {letter.task: letter for letter in letters}

    async def depth(self) -> int:
        """Return how many tasks wait or run."""
        info = await self.bus.stream_info(subjects.WORK)
        later = await self.bus.stream_info(subjects.LATER)
        if info is None or later is None:
            message = "the streams are gone"
            raise AssertionError(message)
        return info.messages + later.messages

    async def pending(self) -> set[str]:
        """Return the ids of the tasks that wait or run."""
        found = set()
        for stream in (subjects.WORK, subjects.LATER):
            async for stored in self.bus.read(stream):
                headers = stored.headers or {}
                found.add(headers.get(header.TASK_ID) or headers.get(header.MSG_ID) or f"~{stored.seq}")
        return found

    async def _is_empty(self) -> bool:
        try:
            return await self.depth() == 0
        except BusError:
            # the server is on its way down or up
            return False


@contextlib.asynccontextmanager
async def staged(
    folder: Path,
    *,
    tweak: Tweak | None = None,
    max_file_bytes: int = 4 << 30,
    servers: int = 1,
    has_mesh: bool = False,
    brokers: Servers | None = None,
    **workers: Any,  # noqa: ANN401 - fields of Options
) -> AsyncIterator[Stage]:
    """Start the servers with the topology; workers take ``workers`` as their defaults. Everything ends with the block.

    With three servers every stream has three copies, and ``has_mesh`` puts doors on the routes between them.
    ``brokers`` are servers made otherwise.
    """
    if brokers is None:
        brokers = Servers(
            folder,
            count=servers,
            more=lambda number: jetstream(store_of(folder, number), max_file_bytes=max_file_bytes),
            has_mesh=has_mesh,
        )
    fleet: Fleet | None = None
    try:
        await brokers.start()
        bus = await _connected(brokers.url)
        try:
            await apply(bus, tweak, replicas=len(brokers.all))
            fleet = Fleet(folder, url=brokers.url, **workers)
            yield Stage(brokers, bus, fleet)
        finally:
            if fleet is not None:
                fleet.end()
            await asyncio.wait_for(bus.close(), 10)
    finally:
        brokers.kill()


async def _connected(url: str) -> Bus:
    """Return a connection. A cluster without a leader leaves the first question unanswered: it is asked again."""
    found: list[Bus] = []

    async def is_done() -> bool:
        try:
            found.append(await connect(url, name="chaos-harness", connect_deadline_s=2.0))
        except CallboardError:
            return False
        return True

    await eventually(is_done, within_s=PROVISION_WITHIN_S, what="a connection", every_s=0.1)
    return found[0]


def store_of(folder: Path, number: int) -> Path:
    """Return where a server stores."""
    return folder / (f"store-{number}" if number else "store")


def jetstream(store: Path, *, max_file_bytes: int = 4 << 30, sync: str | None = "always") -> str:
    """Return a server's part of JetStream, as production has it: every write on disk before it is acknowledged.

    ``sync`` is None for the server's own default, for controls.
    """
    line = "" if sync is None else f"sync_interval: {sync}"
    return (
        f"jetstream {{ store_dir: {json.dumps(str(store))}\n  {line}\n"
        f"  max_mem: 256MB, max_file: {max_file_bytes}\n"
        "  limits { batch { max_inflight_per_stream: 50, max_inflight_total: 1000 } } }"
    )


async def apply(bus: Bus, tweak: Tweak | None, *, replicas: int) -> None:
    """Create or update the streams."""
    wanted = declared(SETTINGS.model_copy(update={"replicas": replicas}))
    if tweak is not None:
        wanted = structs.replace(wanted, streams=tuple(tweak(stream) for stream in wanted.streams))

    async def is_done() -> bool:
        try:
            await provision.apply(bus, await provision.plan(bus, wanted))
        except CallboardError:
            # a cluster that has only just begun has no leader yet
            if replicas == 1:
                raise
            return False
        return True

    await eventually(is_done, within_s=PROVISION_WITHIN_S, what="streams", every_s=0.25)
