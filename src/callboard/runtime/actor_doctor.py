"""Are the actors as they should be? The doctor's checks of partitions, readers, waiting mail and failed actors."""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime

from callboard.runtime import subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor import fleet, inspection
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.beat import Beat
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import Clock
from callboard.runtime.errors import DecodeError
from callboard.runtime.finding import Finding, count

FULL_SHARE = 0.8
# An owner reads what is stored within milliseconds; this long means that it does not.
MAX_UNREAD_S = 10.0
MAX_ACTORS = 5000
_AT_ONCE = 32

Place = tuple[str, int]


async def examine(bus: Bus, beats: Sequence[Beat], clock: Clock) -> AsyncIterator[Finding]:
    """Yield the findings about actors. One request for each partition in use, some 32 at a time, and a dozen more.

    Raises:
        BusError: If the broker does not answer.
    """
    info = await bus.stream_info(subjects.ACTORS)
    if info is None:
        # the check of streams says so
        return
    yield _readers(info.consumers, info.config.max_consumers)
    places = await _cursors(bus)
    unread = await _unread(bus, places, now=clock.now())
    yield _owners(beats, await inspection.partitions(bus))
    yield _unhosted(beats, places, unread)
    yield _lag(beats, unread)
    yield await _stopped(bus)
    for finding in _codes(beats):
        yield finding


def _readers(consumers: int, limit: int) -> Finding:
    text = f"{count(consumers, 'reader')} of {subjects.ACTORS}"
    if limit > 0 and consumers >= FULL_SHARE * limit:
        fix = "raise topology.actor_max_consumers and run `callboard provision`: at the limit partitions stay unread"
        return Finding(check="actor_readers", level="warning", text=f"{text}, of {limit} that it takes", fix=fix)
    return Finding(check="actor_readers", level="ok", text=text)


async def _cursors(bus: Bus) -> dict[Place, Cursor]:
    found = {}
    for stored in await bus.get_many(subjects.ACTORS, ["cb.cursor.*.*"]):
        _, _, kind, number = stored.subject.split(".")
        if kind.startswith("~"):
            continue
        try:
            found[kind, int(number)] = cursors.decode(stored.data)
        except DecodeError:
            # a newer Callboard wrote it
            continue
    return found


async def _unread(bus: Bus, places: Mapping[Place, Cursor], *, now: datetime) -> dict[Place, float]:
    """Return how long the oldest mail beyond each cursor has waited, in seconds; nothing where there is none."""

    async def age_s(place: Place, cursor: Cursor) -> tuple[Place, float] | None:
        found = await bus.get_next(subjects.ACTORS, cursor.upto + 1, subjects.mailbox(*place))
        return (place, (now - found.time).total_seconds()) if found is not None else None

    ages: dict[Place, float] = {}
    everywhere = list(places.items())
    for start in range(0, len(everywhere), _AT_ONCE):
        some = everywhere[start : start + _AT_ONCE]
        found = await asyncio.gather(*(age_s(place, cursor) for place, cursor in some))
        ages |= dict(each for each in found if each is not None)
    return ages


def _hosted(beats: Collection[Beat]) -> dict[str, set[int]]:
    """Return the types that somebody hosts, with the partitions that are owned."""
    found: dict[str, set[int]] = {}
    for beat in beats:
        for load in beat.actors:
            found.setdefault(load.kind, set()).update(load.partitions)
    return found


def _owners(beats: Collection[Beat], partitions: int) -> Finding:
    missing = {
        kind: sorted(used - owned)
        for kind, owned in sorted(_hosted(beats).items())
        if (used := _used(beats, kind) or set(range(partitions))) - owned
    }
    if missing:
        text = "; ".join(f"{kind} {', '.join(map(str, numbers))}" for kind, numbers in missing.items())
        fix = "a worker that starts or stops explains it for some seconds; else see /readyz of the type's workers"
        return Finding(check="actor_owners", level="warning", text=f"partitions without an owner: {text}", fix=fix)
    return Finding(check="actor_owners", level="ok", text="every partition of the types that are hosted has an owner")


def _used(beats: Collection[Beat], kind: str) -> set[int]:
    """Return the partitions that a type has actors in, where those are not all."""
    return {number for beat in beats for load in beat.actors if load.kind == kind for number in load.only}


def _unhosted(beats: Collection[Beat], places: Mapping[Place, Cursor], unread: Collection[Place]) -> Finding:
    hosted = _hosted(beats)
    waiting: Counter[str] = Counter()
    for (kind, number), cursor in places.items():
        if kind not in hosted:
            waiting[kind] += len(cursor.pending) + ((kind, number) in unread)
    lonely = [
        f"{kind} (mail for {count(number, 'actor')} or more)" for kind, number in sorted(waiting.items()) if number
    ]
    if lonely:
        fix = "start a worker that hosts the type; the mail waits and is not lost"
        return Finding(check="actor_hosts", level="problem", text=f"nobody alive hosts {', '.join(lonely)}", fix=fix)
    return Finding(check="actor_hosts", level="ok", text="every actor type with waiting mail is hosted")


def _lag(beats: Collection[Beat], unread: Mapping[Place, float]) -> Finding:
    hosted = _hosted(beats)
    late: dict[str, list[float]] = {}
    for (kind, _), age_s in unread.items():
        if kind in hosted and age_s > MAX_UNREAD_S:
            late.setdefault(kind, []).append(age_s)
    if late:
        text = ", ".join(
            f"{kind} in {count(len(ages), 'partition')}, for {max(ages):.0f} s" for kind, ages in sorted(late.items())
        )
        fix = "its owners are overloaded, or cannot read: see /readyz and the logs of the workers"
        return Finding(check="actor_lag", level="warning", text=f"mail is stored and not read: {text}", fix=fix)
    return Finding(check="actor_lag", level="ok", text="owners keep up with the mail of their partitions")


async def _stopped(bus: Bus) -> Finding:
    lines = await inspection.actors(bus, limit=MAX_ACTORS)
    statuses = (inspection.UNDECODABLE, "failed", "paused", "killed")
    found = {status: [line for line in lines if line.status == status] for status in statuses}
    known = f"{MAX_ACTORS} actors and more" if len(lines) == MAX_ACTORS else count(len(lines), "actor")
    if not any(found.values()):
        return Finding(check="actors", level="ok", text=f"{known}, none failed or paused")
    parts = [f"{len(stopped)} {status}" for status, stopped in found.items() if stopped]
    first = next(line for stopped in found.values() for line in stopped)
    text = f"{known}, of those {', '.join(parts)}; {first.address}: {first.reason[:100]}"
    order = "restart" if first.status == "failed" else "resume"
    address = shlex.quote(first.address)
    fix = f"`callboard agents show {address}` says more"
    if first.status != inspection.UNDECODABLE:
        fix += f"; once the cause is gone `callboard agents {order} {address}` lets it go on"
    return Finding(
        check="actors",
        level="warning" if found["failed"] or found[inspection.UNDECODABLE] else "note",
        text=text,
        fix=fix,
    )


def _codes(beats: Collection[Beat]) -> list[Finding]:
    return [
        Finding(check="actor_code", level="warning", text=fleet.mixture(kind, codes), fix=fleet.ONE_CODE)
        for kind, codes in fleet.differing(beats).items()
    ]
