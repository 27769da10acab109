"""The whole of a deployment at one moment: pools, actors, workers, streams, with the rates since the look before.

What waits and what is claimed is the broker's own count; what runs, how long runs take and what ended comes from beats.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

from msgspec import Struct

from callboard.runtime import lookup, subjects
from callboard.runtime.beat import ActorLoad, Beat, CapabilityLoad
from callboard.runtime.bus import topology
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.census import leader
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import Settings
from callboard.runtime.errors import NotFoundError
from callboard.runtime.lookup import Queue
from callboard.runtime.registry.actor import TYPE
from callboard.runtime.registry.cache import RegistryCache
from callboard.runtime.roster import Roster

# Two beats of everybody: the least that gives a rate.
FIRST_LOOK_S = 2.3
SUSPECT_S = 2.5
OFFLINE_S = 5.0
# One that fell silent without a word stays in sight for this long.
FORGET_S = 60.0
P50, P95 = 0.5, 0.95


class PoolRow(Struct, frozen=True, kw_only=True):
    """One capability, over all workers.

    Attributes:
        workers: Workers alive that offer it.
        busy: Slots in which a handler runs.
        waiting: Tasks that no worker has, by the broker's count.
        claimed: Tasks handed out and not settled, by the broker's count; those in the pause of a retry are among them.
        oldest_s: For how long the oldest waiting task has waited.
        in_per_s: New tasks since the look before; None at the first look.
        out_per_s: Tasks that ended, between the latest beats; None before two beats of a worker.
        p50_s: Half of the latest runs of the handler (256 in each worker) took no longer; None before the first.
        p95_s: As ``p50_s``, of 95 in 100.
        paused: Why it is held back; None when it is not.
    """

    capability: str
    pools: list[str]
    workers: int
    slots: int
    busy: int
    waiting: int
    claimed: int
    oldest_s: float | None = None
    in_per_s: float | None = None
    out_per_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    paused: str | None = None


class TypeRow(Struct, frozen=True, kw_only=True):
    """One actor type, over all workers.

    Attributes:
        partitions: Partitions that have an owner.
        active: Actors in memory.
        running: Turns under way.
        waiting: Mails in their mailboxes, as far as the owners have read.
        out_per_s: Turns committed, as in ``PoolRow``; the percentiles as well.
    """

    type: str
    workers: int
    partitions: int
    active: int
    running: int
    waiting: int
    out_per_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None


class WorkerRow(Struct, frozen=True, kw_only=True):
    """One worker.

    Attributes:
        status: What it says of itself; ``suspect`` after two missed beats, ``offline`` after five seconds.
        silent_s: Since its last beat.
        fetch_age_s: Since the broker last answered its pulls, at its last beat.
        restarts: How often its parent has started a process anew in its place.
    """

    worker: str
    host: str
    status: str
    slots: int
    busy: int
    turns: int
    restarts: int
    silent_s: float
    fetch_age_s: float | None
    started_at: datetime
    version: str
    labels: dict[str, str]


class StreamRow(Struct, frozen=True, kw_only=True):
    """One stream and how much longer it takes writes; None where it has no limit of its own."""

    name: str
    messages: int
    size_bytes: int
    bytes_left: int | None
    hours_left: float | None
    when_full: str


class RegistryRow(Struct, frozen=True, kw_only=True):
    """The registry.

    Attributes:
        leader: Worker that leads it; "" when none ever did.
        epoch: Of its ownership; it grows with every change of hands.
        is_led: Whether that worker is alive.
        agents: How many registered agents are in each status.
    """

    leader: str
    epoch: int
    is_led: bool
    agents: dict[str, int]


class Overview(Struct, frozen=True, kw_only=True):
    """Everything, at one moment; ``registry`` is None where none was provisioned."""

    at: datetime
    server: str
    registry: RegistryRow | None
    pools: list[PoolRow]
    actors: list[TypeRow]
    workers: list[WorkerRow]
    streams: list[StreamRow]


class Observer:
    """Hears beats for as long as it is open and takes looks; see ``observing``."""

    def __init__(self, bus: Bus, settings: Settings, clock: Clock) -> None:
        self.roster = Roster(clock)
        self._bus = bus
        self._settings = settings
        self._clock = clock
        # per worker, the beat at the look before, or the first one heard
        self._base: dict[str, Beat] = {}
        self._rates: dict[str, dict[str, float]] = {}
        self._queues: dict[str, Queue] = {}
        self._looked_s = 0.0
        self._cache: RegistryCache | None = RegistryCache(bus, clock=clock)

    async def open(self) -> None:
        """Read the registry's records, and count new tasks from here on."""
        if self._cache is not None:
            try:
                await self._cache.open()
            except NotFoundError:
                self._cache = None
        self.begin(await lookup.queues(self._bus))

    async def close(self) -> None:
        """Stop listening."""
        if self._cache is not None:
            await self._cache.close()

    def hear(self, message: Message) -> None:
        """Take in a beat."""
        self.roster.hear(message)
        for worker, beat in self.roster.beats.items():
            self._base.setdefault(worker, beat)

    def begin(self, queues: Sequence[Queue]) -> None:
        """Count new tasks from here on."""
        self._queues = {queue.capability: queue for queue in queues}
        self._looked_s = self._clock.monotonic()

    async def look(self) -> Overview:
        """Look at everything. A request for each stream and a dozen more."""
        queues, streams, registry = await asyncio.gather(
            lookup.queues(self._bus, with_age=True), self._streams(), self._registry()
        )
        now_s, now = self._clock.monotonic(), self._clock.now()
        workers = [self._worker(beat, now_s) for beat in self._heard(now_s)]
        alive = [self.roster.beats[row.worker] for row in workers if row.status != "offline"]
        self._measure(alive)
        pools = [self._pool(name, queues, alive, now, now_s) for name in _names(queues, alive)]
        kinds = sorted({load.kind for beat in alive for load in beat.actors if load.kind != TYPE})
        self.begin(queues)
        return Overview(
            at=now,
            server=self._bus.server.name,
            registry=registry,
            pools=pools,
            actors=[self._type(kind, alive) for kind in kinds],
            workers=workers,
            streams=streams,
        )

    def _heard(self, now_s: float) -> list[Beat]:
        for worker in [w for w, heard_s in self.roster.heard_at.items() if now_s - heard_s > FORGET_S]:
            self.roster.beats.pop(worker, None)
            del self.roster.heard_at[worker]
        for worker in self._base.keys() - self.roster.beats.keys():
            del self._base[worker]
            self._rates.pop(worker, None)
        return self.roster.alive

    def _worker(self, beat: Beat, now_s: float) -> WorkerRow:
        silent_s = max(0.0, now_s - self.roster.heard_at[beat.worker])
        fetched = beat.fetched_at
        return WorkerRow(
            worker=beat.worker,
            host=beat.host,
            status=_status(beat, silent_s),
            slots=sum(load.slots for load in beat.capabilities),
            busy=sum(load.busy for load in beat.capabilities),
            turns=sum(load.running for load in beat.actors),
            restarts=beat.restarts,
            silent_s=round(silent_s, 1),
            fetch_age_s=None if fetched is None else round((beat.at - fetched).total_seconds(), 1),
            started_at=beat.started_at,
            version=beat.version,
            labels=beat.labels,
        )

    def _measure(self, alive: Iterable[Beat]) -> None:
        """Keep how fast each worker ends tasks and turns; between two beats the last rates stand."""
        for beat in alive:
            before = self._base[beat.worker]
            length_s = (beat.at - before.at).total_seconds()
            if length_s > 0:
                was, ended = _ended(before), _ended(beat)
                self._rates[beat.worker] = {
                    name: max(0, count - was.get(name, 0)) / length_s for name, count in ended.items()
                }
                self._base[beat.worker] = beat

    def _pool(self, name: str, queues: Sequence[Queue], alive: Sequence[Beat], now: datetime, now_s: float) -> PoolRow:
        loads = {beat.worker: load for beat in alive for load in beat.capabilities if load.name == name}
        queue = next((q for q in queues if q.capability == name), None) or Queue(
            capability=name, waiting=0, claimed=0, has_consumer=False
        )
        p50_s, p95_s = self._percentiles(f"task.{name}", loads)
        return PoolRow(
            capability=name,
            pools=sorted({load.pool for load in loads.values()}),
            workers=len(loads),
            slots=sum(load.slots for load in loads.values()),
            busy=sum(load.busy for load in loads.values()),
            waiting=queue.waiting,
            claimed=queue.claimed,
            oldest_s=None if queue.oldest is None else max(0.0, round((now - queue.oldest).total_seconds(), 1)),
            in_per_s=self._in_per_s(queue, loads, now_s),
            out_per_s=self._out_per_s(f"task.{name}", loads),
            p50_s=p50_s,
            p95_s=p95_s,
            paused=queue.paused,
        )

    def _in_per_s(self, queue: Queue, loads: Iterable[str], now_s: float) -> float | None:
        """Return the rate of new tasks: what was handed out, less what came again, and what more waits."""
        before = self._queues.get(queue.capability)
        if before is None or now_s <= self._looked_s:
            return None
        new = queue.waiting - before.waiting + queue.deliveries - before.deliveries
        again = sum(self._rates.get(worker, {}).get(f"again.{queue.capability}", 0.0) for worker in loads)
        return max(0.0, round(new / (now_s - self._looked_s) - again, 1))

    def _type(self, kind: str, alive: Sequence[Beat]) -> TypeRow:
        loads = {beat.worker: load for beat in alive for load in beat.actors if load.kind == kind}
        p50_s, p95_s = self._percentiles(f"turn.{kind}", loads)
        return TypeRow(
            type=kind,
            workers=len(loads),
            partitions=sum(len(load.partitions) for load in loads.values()),
            active=sum(load.active for load in loads.values()),
            running=sum(load.running for load in loads.values()),
            waiting=sum(load.mails for load in loads.values()),
            out_per_s=self._out_per_s(f"turn.{kind}", loads),
            p50_s=p50_s,
            p95_s=p95_s,
        )

    def _out_per_s(self, name: str, workers: Iterable[str]) -> float | None:
        known = [self._rates[worker] for worker in workers if worker in self._rates]
        return round(sum(rates.get(name, 0.0) for rates in known), 1) if known else None

    def _percentiles(
        self, name: str, loads: Mapping[str, CapabilityLoad] | Mapping[str, ActorLoad]
    ) -> tuple[float | None, float | None]:
        samples = [(load.run_times_s, self._rates.get(worker, {}).get(name, 0.0)) for worker, load in loads.items()]
        return percentile(samples, P50), percentile(samples, P95)

    async def _registry(self) -> RegistryRow | None:
        if self._cache is None:
            return None
        place = await leader(self._bus)
        age_s = self._clock.monotonic() - self.roster.heard_at.get(place.owner, -math.inf)
        is_led = place.owner in self.roster.beats and age_s <= OFFLINE_S
        return RegistryRow(leader=place.owner, epoch=place.epoch, is_led=is_led, agents=self._cache.tally())

    async def _streams(self) -> list[StreamRow]:
        declared = topology.declared(self._settings.topology, audit=self._settings.actors.audit).streams
        found = await asyncio.gather(*(self._bus.stream_info(config.name) for config in declared))
        now = self._clock.now()
        rows = []
        for info in found:
            if info is not None:
                room = topology.headroom(info, now=now)
                rows.append(
                    StreamRow(
                        name=info.config.name,
                        messages=info.messages,
                        size_bytes=info.size_bytes,
                        bytes_left=room.bytes_left,
                        hours_left=None if room.hours_left is None else round(room.hours_left, 1),
                        when_full=room.when_full,
                    )
                )
        return rows


@asynccontextmanager
async def observing(bus: Bus, settings: Settings, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Observer]:
    """Observe for as long as the block lasts. The first look comes after two beats, and then rates are known."""
    observer = Observer(bus, settings, clock)
    subscription = await bus.subscribe(subjects.BEAT_ALL, observer.hear)
    try:
        await observer.open()
        await clock.sleep(FIRST_LOOK_S)
        yield observer
    finally:
        await observer.close()
        await subscription.close()


def percentile(samples: Sequence[tuple[Sequence[float], float]], share: float) -> float | None:
    """Return the time that ``share`` of all runs did not exceed, from some times of each worker and its rate.

    A worker's times count in proportion to its rate; when nobody has one, by their number. None without any time.
    """
    has_rates = any(rate > 0 for times, rate in samples if times)
    weighted = [
        (time_s, rate / len(times) if has_rates else 1.0) for times, rate in samples if times for time_s in times
    ]
    total = sum(weight for _, weight in weighted)
    seen = 0.0
    for time_s, weight in sorted(weighted):
        seen += weight
        if seen >= share * total:
            return time_s
    return None


def _status(beat: Beat, silent_s: float) -> str:
    if silent_s > OFFLINE_S:
        return "offline"
    return "suspect" if silent_s > SUSPECT_S else beat.status


def _ended(beat: Beat) -> Counter[str]:
    found: Counter[str] = Counter()
    for load in beat.capabilities:
        found[f"task.{load.name}"] += load.ended
        found[f"again.{load.name}"] += load.again
    for hosted in beat.actors:
        found[f"turn.{hosted.kind}"] += hosted.ended
    return found


def _names(queues: Sequence[Queue], alive: Iterable[Beat]) -> list[str]:
    offered = {load.name for beat in alive for load in beat.capabilities}
    return sorted(offered | {queue.capability for queue in queues})
