"""What the broker holds, looked at every 15 s for metrics: queues, dead letters, agents, and how full the streams are.

A scrape shows the latest look and asks nobody. Every worker with a health port looks by itself: all see the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from msgspec import Struct

from callboard.runtime import events, logs, lookup, subjects
from callboard.runtime.bus import topology
from callboard.runtime.bus.base import Bus, StreamInfo
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import BusError, PermissionDeniedError
from callboard.runtime.lookup import Queue
from callboard.runtime.metrics import Spec, Table

EVERY_S = 15.0
# How fast a stream fills is taken over so long at most; over less than the least it would be chance.
GROWTH_WINDOW_S = 600.0
GROWTH_LEAST_S = 60.0

T = TypeVar("T")
_HOUR_S = 3600.0
_log = logs.get_logger(__name__)


class StreamRoom(Struct, frozen=True, kw_only=True):
    """One stream and the room it has.

    Attributes:
        limit_bytes: None where it has no limit of its own; then it shares the store's.
        bytes_left: Until the limit.
        hours_left: Until the limit, by the growth of the last ten minutes or, when that is slower, by that of its whole
            content; None where neither leads there.
        when_full: What happens then.
    """

    name: str
    messages: int
    size_bytes: int
    limit_bytes: int | None
    bytes_left: int | None
    hours_left: float | None
    when_full: str

    @property
    def is_low(self) -> bool:
        """Whether a person should see to it: more than 80 % used, or full in less than a day."""
        used = None if self.limit_bytes is None else self.size_bytes / self.limit_bytes
        return topology.is_low(used=used, hours_left=self.hours_left)


class Survey(Struct, frozen=True, kw_only=True):
    """One look.

    Attributes:
        at_s: Monotonic seconds; ``now`` the wall time.
        dead_letters: Of tasks and of mail.
        agents: How many registered agents are in each status; empty where the registry is not hosted.
    """

    at_s: float
    now: datetime
    queues: Sequence[Queue] = ()
    streams: Sequence[StreamRoom] = ()
    dead_letters: int = 0
    agents: Mapping[str, int] = {}


QUEUE_METRICS: Final[dict[Spec, Callable[[Queue], float]]] = {
    Spec("callboard_queue_waiting", "gauge", "Tasks that no worker has"): lambda queue: queue.waiting,
    Spec("callboard_queue_claimed", "gauge", "Tasks handed out and not settled, retries in their pause included"): (
        lambda queue: queue.claimed
    ),
    Spec("callboard_queue_paused", "gauge", "1 while it is held back on all workers, else 0"): (
        lambda queue: int(queue.paused is not None)
    ),
    Spec("callboard_queue_deliveries_total", "counter", "Times the broker handed out a task, each time counted"): (
        lambda queue: queue.deliveries
    ),
}
OLDEST: Final = Spec("callboard_queue_oldest_seconds", "gauge", "How long the oldest waiting task has waited, else 0")
STREAM_METRICS: Final[dict[Spec, Callable[[StreamRoom], float | None]]] = {
    Spec("callboard_stream_messages", "gauge", "Messages in the stream"): lambda stream: stream.messages,
    Spec("callboard_stream_bytes", "gauge", "Bytes in the stream"): lambda stream: stream.size_bytes,
    Spec("callboard_stream_limit_bytes", "gauge", "Its limit; absent without one of its own"): (
        lambda stream: stream.limit_bytes
    ),
    Spec("callboard_stream_left_bytes", "gauge", "Room until the limit; absent without one"): (
        lambda stream: stream.bytes_left
    ),
    Spec("callboard_stream_left_hours", "gauge", "Hours until the limit as it grows; absent when it does not"): (
        lambda stream: stream.hours_left
    ),
}
AGENTS: Final = Spec("callboard_agents", "gauge", "Registered agents in this status")
DEAD_LETTERS: Final = Spec("callboard_dead_letters", "gauge", "Dead letters of tasks and of mail")
SURVEY_AGE: Final = Spec("callboard_survey_age_seconds", "gauge", "How old the numbers of the broker are")
METRICS: Final = (*QUEUE_METRICS, OLDEST, *STREAM_METRICS, AGENTS, DEAD_LETTERS, SURVEY_AGE)


class Surveyor:
    """Looks, and keeps the latest look.

    Attributes:
        latest: None before the first.
    """

    def __init__(
        self,
        streams: Sequence[str],
        *,
        agents: Callable[[], Mapping[str, int]] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Prepare.

        Args:
            streams: Names of those to look at; what does not exist is left out.
            agents: Returns how many agents there are in each status, without asking anybody.
            clock: Time.
        """
        self.latest: Survey | None = None
        self._names = streams
        self._agents = agents
        self._clock = clock
        self._sizes: dict[str, deque[tuple[float, int]]] = {}
        self._low: set[str] = set()
        self._denied: set[str] = set()
        self._is_failing = False

    async def run(self, bus: Bus) -> None:
        """Look every 15 s, until cancelled; while the broker cannot be asked the latest look gets old."""
        while True:
            try:
                await self.look(bus)
            except BusError as error:
                if not self._is_failing:
                    _log.warning(events.SURVEY_FAILED, code=error.code)
                self._is_failing = True
            else:
                self._is_failing = False
            await self._clock.sleep(EVERY_S)

    async def look(self, bus: Bus) -> Survey:
        """Look once, keep it and return it. A request for each stream and a few more; what we may not see is left out.

        Raises:
            BusError: If the broker cannot be asked.
        """
        queues = await self._allowed("queues", lambda: lookup.queues(bus, with_age=True))
        infos = await asyncio.gather(*(self._allowed(n, partial(bus.stream_info, n)) for n in self._names))
        now_s, now = self._clock.monotonic(), self._clock.now()
        found = [info for info in infos if info is not None]
        self.latest = Survey(
            at_s=now_s,
            now=now,
            queues=queues or (),
            streams=[self._room(info, now_s, now) for info in found],
            dead_letters=sum(info.messages for info in found if info.config.name == subjects.DEAD),
            agents=self._agents() if self._agents is not None else {},
        )
        self._warn(self.latest.streams)
        return self.latest

    async def _allowed(self, what: str, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Ask; what this worker's user may not see is left out, and not asked for again."""
        if what in self._denied:
            return None
        try:
            return await ask()
        except PermissionDeniedError:
            self._denied.add(what)
            return None

    def tables(self, worker: str) -> Iterator[Table]:
        """Yield the latest look as metrics, nothing before the first; asks nobody."""
        survey = self.latest
        if survey is None:
            return
        for spec, read in QUEUE_METRICS.items():
            counts = [((worker, queue.capability), read(queue)) for queue in survey.queues]
            yield Table(spec, ("worker", "capability"), counts)
        ages = [((worker, queue.capability), _age_s(queue, survey.now)) for queue in survey.queues]
        yield Table(OLDEST, ("worker", "capability"), ages)
        for spec, read_room in STREAM_METRICS.items():
            rooms = [((worker, room.name), value) for room in survey.streams if (value := read_room(room)) is not None]
            yield Table(spec, ("worker", "stream"), rooms)
        yield Table(AGENTS, ("worker", "status"), [((worker, status), n) for status, n in survey.agents.items()])
        yield Table(DEAD_LETTERS, ("worker",), [((worker,), survey.dead_letters)])
        yield Table(SURVEY_AGE, ("worker",), [((worker,), max(0.0, self._clock.monotonic() - survey.at_s))])

    def _room(self, info: StreamInfo, now_s: float, now: datetime) -> StreamRoom:
        room = topology.headroom(info, now=now)
        name, limit = info.config.name, info.config.max_bytes
        return StreamRoom(
            name=name,
            messages=info.messages,
            size_bytes=info.size_bytes,
            limit_bytes=limit if limit > 0 else None,
            bytes_left=room.bytes_left,
            hours_left=_sooner(room.hours_left, self._by_growth(name, info.size_bytes, room.bytes_left, now_s)),
            when_full=room.when_full,
        )

    def _by_growth(self, name: str, size_bytes: int, bytes_left: int | None, now_s: float) -> float | None:
        """Return the hours until the stream is full as it grew of late, None while it does not."""
        sizes = self._sizes.setdefault(name, deque())
        sizes.append((now_s, size_bytes))
        while now_s - sizes[0][0] > GROWTH_WINDOW_S:
            sizes.popleft()
        since_s, before = sizes[0]
        if bytes_left is None or now_s - since_s < GROWTH_LEAST_S or size_bytes <= before:
            return None
        return bytes_left / (size_bytes - before) * (now_s - since_s) / _HOUR_S

    def _warn(self, streams: Sequence[StreamRoom]) -> None:
        low = {stream.name: stream for stream in streams if stream.is_low}
        for name in low.keys() - self._low:
            room = low[name]
            hours = None if room.hours_left is None else round(room.hours_left, 1)
            _log.warning(
                events.STREAM_FILLED_UP, stream=name, bytes_left=room.bytes_left, hours_left=hours, then=room.when_full
            )
        self._low = set(low)


def _age_s(queue: Queue, now: datetime) -> float:
    return 0.0 if queue.oldest is None else max(0.0, (now - queue.oldest).total_seconds())


def _sooner(one: float | None, other: float | None) -> float | None:
    return min((hours for hours in (one, other) if hours is not None), default=None)
