"""Who is alive: workers by their heartbeats, and orders to them. Listens; keeps nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import msgspec

from callboard.runtime import subjects
from callboard.runtime.beat import Beat
from callboard.runtime.beat import heard as heard_beat
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.control import Order
from callboard.runtime.errors import BusTimeoutError, InputError, NoRespondersError, NotFoundError

# beats come once a second
LISTEN_S = 1.3
_TICK_S = 0.05
_ORDER_TIMEOUT_S = 3.0
_GONE_AFTER_S = 3.5


class Roster:
    """The latest beat of every worker heard while it listens.

    Attributes:
        beats: By worker.
        heard_at: Monotonic seconds of each worker's last beat.
        skews_s: By how many seconds each worker's beats were older than now when they came; the least of them.
        gone: Workers that said goodbye.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin empty."""
        self.beats: dict[str, Beat] = {}
        self.heard_at: dict[str, float] = {}
        self.skews_s: dict[str, float] = {}
        self.gone: set[str] = set()
        self._clock = clock

    def hear(self, message: Message) -> None:
        """Take in a message from ``cb.beat.>``; what is no beat is left out."""
        beat = heard_beat(message)
        if beat is None:
            return
        if beat.status == "stopped":
            self.beats.pop(beat.worker, None)
            self.gone.add(beat.worker)
            return
        self.beats[beat.worker] = beat
        self.heard_at[beat.worker] = self._clock.monotonic()
        skew_s = (self._clock.now() - beat.at).total_seconds()
        self.skews_s[beat.worker] = min(skew_s, self.skews_s.get(beat.worker, skew_s), key=abs)

    @property
    def alive(self) -> list[Beat]:
        """The latest beats, by worker."""
        return sorted(self.beats.values(), key=lambda beat: beat.worker)

    def serving(self, capability: str) -> list[Beat]:
        """Return the workers heard that offer ``capability``."""
        return [beat for beat in self.beats.values() if any(load.name == capability for load in beat.capabilities)]


@asynccontextmanager
async def listening(bus: Bus, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Roster]:
    """Hear beats for as long as the block lasts."""
    roster = Roster(clock)
    subscription = await bus.subscribe(subjects.BEAT_ALL, roster.hear)
    try:
        yield roster
    finally:
        await subscription.close()


async def live_workers(
    bus: Bus, *, listen_s: float = LISTEN_S, clock: Clock = SYSTEM_CLOCK, until: Callable[[Roster], bool] | None = None
) -> list[Beat]:
    """Return the workers heard within ``listen_s``, by name; sooner when ``until`` says so."""
    return (await heard(bus, listen_s=listen_s, clock=clock, until=until)).alive


async def heard(
    bus: Bus, *, listen_s: float = LISTEN_S, clock: Clock = SYSTEM_CLOCK, until: Callable[[Roster], bool] | None = None
) -> Roster:
    """Listen for ``listen_s``, or until ``until`` says so, and return what was heard."""
    async with listening(bus, clock=clock) as roster:
        give_up_s = clock.monotonic() + listen_s
        while clock.monotonic() < give_up_s and not (until is not None and until(roster)):
            await clock.sleep(_TICK_S)
        return roster


async def select(bus: Bus, name: str, *, capability: str | None = None) -> list[str]:
    """Return the ids of the workers that ``name`` means: one id, or all on a host of that name.

    Raises:
        NotFoundError: If none of that name was heard, or none of them offers ``capability``.
    """
    beats = await live_workers(bus, until=lambda roster: name in roster.beats)
    chosen = [beat for beat in beats if beat.worker == name] or [beat for beat in beats if beat.host == name]
    if not chosen:
        known = ", ".join(beat.worker for beat in beats) or "none at all"
        message = f"no worker or host {name!r} was heard in {LISTEN_S} s; there are: {known}"
        raise NotFoundError(message)
    if capability is not None:
        chosen = [beat for beat in chosen if any(load.name == capability for load in beat.capabilities)]
        if not chosen:
            message = f"{name} does not offer {capability!r}; see `callboard worker ls`"
            raise NotFoundError(message)
    return [beat.worker for beat in chosen]


async def order(bus: Bus, worker: str, what: Order) -> None:
    """Give a worker an order and wait for its word.

    Raises:
        NotFoundError: If it is not there.
        InputError: If it refused.
    """
    try:
        answer = await bus.request(subjects.ctl_worker(worker), msgspec.json.encode(what), timeout_s=_ORDER_TIMEOUT_S)
    except (NoRespondersError, BusTimeoutError) as error:
        message = f"worker {worker} does not answer: it has stopped, or its event loop is blocked"
        raise NotFoundError(message) from error
    reply = msgspec.json.decode(answer.data)
    if isinstance(reply, dict) and reply.get("error"):
        message = f"worker {worker} refused: {reply['error']}"
        raise InputError(message)


async def wait_gone(bus: Bus, workers: Collection[str], *, clock: Clock = SYSTEM_CLOCK) -> None:
    """Wait until every one of ``workers`` has said goodbye or was silent for 3.5 s."""
    async with listening(bus, clock=clock) as roster:
        started_s = clock.monotonic()
        while any(
            clock.monotonic() - roster.heard_at.get(worker, started_s) < _GONE_AFTER_S
            for worker in workers
            if worker not in roster.gone
        ):
            await clock.sleep(_TICK_S)
