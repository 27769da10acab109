"""Who is alive: workers and groups of them by their heartbeats, and orders to them. Listens; keeps nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import msgspec
from msgspec import Struct

from callboard.runtime import labels, subjects
from callboard.runtime.beat import Beat
from callboard.runtime.beat import heard as heard_beat
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.control import Order
from callboard.runtime.errors import BusTimeoutError, InputError, NoRespondersError, NotFoundError
from callboard.runtime.group_beat import GroupBeat
from callboard.runtime.group_beat import heard as heard_group

# beats come once a second
LISTEN_S = 1.3
_TICK_S = 0.05
_ORDER_TIMEOUT_S = 3.0
_GONE_AFTER_S = 3.5


class Fleet(Struct, frozen=True):
    """Workers, and the parents that keep them in groups, by name."""

    workers: list[Beat]
    groups: list[GroupBeat]

    @property
    def names(self) -> list[str]:
        """Ids of all of them."""
        return [*(group.group for group in self.groups), *(beat.worker for beat in self.workers)]


class Roster:
    """The latest beat of every worker and group heard while it listens.

    Attributes:
        beats: By worker.
        groups: By group.
        heard_at: Monotonic seconds of each one's last beat.
        skews_s: By how many seconds each worker's beats were older than now when they came; the least of them.
        gone: Workers and groups that said goodbye.
    """

    def __init__(self, clock: Clock) -> None:
        """Begin empty."""
        self.beats: dict[str, Beat] = {}
        self.groups: dict[str, GroupBeat] = {}
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

    def hear_group(self, message: Message) -> None:
        """Take in a message from ``cb.group.>``; what is no beat is left out."""
        beat = heard_group(message)
        if beat is None:
            return
        if beat.status == "stopped":
            self.groups.pop(beat.group, None)
            self.gone.add(beat.group)
            return
        self.groups[beat.group] = beat
        self.heard_at[beat.group] = self._clock.monotonic()

    @property
    def fleet(self) -> Fleet:
        """All that were heard, by name."""
        return Fleet(self.alive, [group for _, group in sorted(self.groups.items())])

    @property
    def alive(self) -> list[Beat]:
        """The latest beats, by worker."""
        return sorted(self.beats.values(), key=lambda beat: beat.worker)

    def serving(self, capability: str) -> list[str]:
        """Return who was heard to offer ``capability``: workers, and groups that start some when there is work.

        A pool by label counts as offered by every worker that bears the labels: it is opened with its first task.
        """
        base, wanted = labels.split(capability)
        found = [
            beat.worker
            for beat in self.beats.values()
            if any(load.name in (base, capability) for load in beat.capabilities) and labels.fits(beat.labels, wanted)
        ]
        return found + [
            group.group
            for group in self.groups.values()
            if base in group.capabilities and labels.fits(group.labels, wanted)
        ]


@asynccontextmanager
async def listening(bus: Bus, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Roster]:
    """Hear beats for as long as the block lasts."""
    roster = Roster(clock)
    subscriptions = [
        await bus.subscribe(subjects.BEAT_ALL, roster.hear),
        await bus.subscribe(subjects.GROUP_ALL, roster.hear_group),
    ]
    try:
        yield roster
    finally:
        for subscription in subscriptions:
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


async def fleet(bus: Bus) -> Fleet:
    """Return all workers and groups heard within 1.3 s."""
    return (await heard(bus)).fleet


async def targets(bus: Bus, name: str, *, capability: str | None = None) -> Fleet:
    """Return the workers and groups that ``name`` means: one worker, a group and its workers, or all on a host.

    Raises:
        NotFoundError: If none of that name was heard, or none of them offers ``capability``.
    """
    found = (await heard(bus, until=lambda roster: name in roster.beats)).fleet
    workers = [beat for beat in found.workers if beat.worker == name]
    groups = [group for group in found.groups if group.group == name]
    if groups:
        workers = [beat for beat in found.workers if beat.group == name]
    elif not workers:
        workers = [beat for beat in found.workers if beat.host == name]
        groups = [group for group in found.groups if group.host == name]
    if not workers and not groups:
        known = ", ".join(found.names) or "none at all"
        message = f"no worker, group or host {name!r} was heard in {LISTEN_S} s; there are: {known}"
        raise NotFoundError(message)
    if capability is not None:
        workers = [beat for beat in workers if any(load.name == capability for load in beat.capabilities)]
        if not workers:
            message = f"{name} does not offer {capability!r} now; see `callboard workers ls`"
            raise NotFoundError(message)
    return Fleet(workers, groups)


async def order(bus: Bus, worker: str, what: Order) -> None:
    """Give a worker, or the parent of a group, an order and wait for its word.

    Raises:
        NotFoundError: If it is not there.
        InputError: If it refused.
    """
    try:
        answer = await bus.request(subjects.ctl_worker(worker), msgspec.json.encode(what), timeout_s=_ORDER_TIMEOUT_S)
    except (NoRespondersError, BusTimeoutError) as error:
        message = f"{worker} does not answer: it has stopped, or its event loop is blocked"
        raise NotFoundError(message) from error
    reply = msgspec.json.decode(answer.data)
    if isinstance(reply, dict) and reply.get("error"):
        message = f"{worker} refused: {reply['error']}"
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
