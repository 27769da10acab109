"""Everybody who is there: actors by their records and their mail, agents by the registry, in one list.

For people and tools. The leader of the registry answers; without one the records are read and beats are listened to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor import inspection
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.inspection import Line
from callboard.runtime.actor.owners import decoded
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import BusError, NoAgentError, RegistryAwayError, RegistryError
from callboard.runtime.near import hint, near
from callboard.runtime.registry.actor import TYPE
from callboard.runtime.registry.cache import RegistryCache
from callboard.runtime.registry.lookup import Lookups
from callboard.runtime.registry.message import MAX_LIMIT, AgentView, Found, Picked, Query, Status

EVERYWHERE: tuple[Status, ...] = ("idle", "busy", "paused", "failed", "draining", "suspect", "offline")
_WARM_WITHIN_S = 4.0
_TICK_S = 0.02
_STOPPED = ("paused", "failed", "killed", "undecodable")


class Member(Struct, frozen=True, kw_only=True):
    """An actor or an agent in the list.

    Attributes:
        status: ``paused``, ``failed`` or ``killed`` where its record says so, ``undecodable`` where it is unreadable;
            else as the registry sees it (``idle``, ``busy``, ``draining``, ``suspect``, ``offline``); of an actor that
            is not registered ``active``, or ``new`` when it has mail and has never run.
        is_registered: Whether it can be found and picked.
        is_hosted: Whether it is an actor of workers, also while none of them hosts it; False for an agent that runs
            by itself.
        worker: Worker that hosts it now, "" when none does or it is not known.
        host: Where an agent runs that hosts itself.
        busy: Requests under way.
        waiting: Requests that wait in it, as far as beats tell.
        load: (busy + waiting + reserved) / weight; None of one that is not registered.
        turns: Turns committed so far; ``parked``, ``stored``, ``at`` as in ``inspection.Line``.
        reason: Why it is stopped, silent or away.
        has_mixed_code: Whether its hosts run different code; whoever listens to beats fills it in.
    """

    address: str
    status: str
    is_registered: bool
    is_hosted: bool
    capabilities: list[str] = []
    labels: dict[str, str] = {}
    version: str = ""
    weight: int | None = None
    busy: int = 0
    waiting: int = 0
    load: float | None = None
    worker: str = ""
    host: str = ""
    seen_at: datetime | None = None
    turns: int = 0
    parked: int = 0
    stored: int = 0
    at: datetime | None = None
    reason: str = ""
    has_mixed_code: bool = False


async def find(bus: Bus, query: Query, *, clock: Clock = SYSTEM_CLOCK) -> Found:
    """Return agents and workers as ``cb.registry.find`` does, as many as ``query.limit`` says, however large it is.

    Raises:
        RegistryAwayError: If nobody leads the registry and its records cannot be read.
        InputError: If the query cannot be used.
    """
    wanted = query.limit
    async with _looking(bus, clock) as look:
        found = await look.find(replace(query, limit=min(wanted, MAX_LIMIT)))
        agents = list(found.agents)
        page = found
        while page.next and len(agents) < wanted:
            page = await look.find(replace(query, limit=min(wanted - len(agents), MAX_LIMIT), after=page.next))
            agents += page.agents
    return replace(found, agents=agents, next=page.next)


async def pick(bus: Bus, query: Query, *, clock: Clock = SYSTEM_CLOCK) -> Picked:
    """Choose the least busy agent and reserve its place for two seconds.

    Raises:
        NoAgentError: If nobody fits, or nobody that fits takes work now.
        RegistryAwayError: If nobody leads the registry and its records cannot be read.
        InputError: If the query cannot be used.
    """
    async with _looking(bus, clock) as look:
        return await look.pick(query)


async def agent(bus: Bus, address: Address, *, clock: Clock = SYSTEM_CLOCK) -> AgentView | None:
    """Return an agent as the registry sees it, None when it is not registered or there is no registry."""
    name = str(address)
    after = name[:-1]
    while True:
        # pages go by address: begin just before this one
        query = Query(type=address.type, status=list(EVERYWHERE), after=after, limit=MAX_LIMIT)
        try:
            found = await find(bus, query, clock=clock)
        except RegistryAwayError:
            return None
        view = next((view for view in found.agents if view.record.address == name), None)
        if view is not None or not found.next or found.next >= name:
            return view
        after = found.next


async def members(
    bus: Bus,
    *,
    kind: str | None = None,
    limit: int = 1000,
    is_late: Callable[[str], bool] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> list[Member]:
    """Return all actors and agents, by address. A request for each 1,000 agents and those of ``inspection.actors``.

    Args:
        bus: Where.
        kind: Only this type.
        limit: How many at most.
        is_late: Whether actors of a type are left out first, where there are more.
        clock: Time.

    Raises:
        InvalidNameError: If the type cannot be one.
        NotFoundError: If there is no stream of actors.
    """
    lines = {line.address: line for line in await inspection.actors(bus, kind=kind, limit=limit, is_late=is_late)}
    query = Query(type=kind or "", status=list(EVERYWHERE), limit=limit)
    try:
        views = {view.record.address: view for view in (await find(bus, query, clock=clock)).agents}
    except RegistryAwayError:
        # no worker has ever led one here: actors are listed all the same
        views = {}
    everybody = sorted(lines.keys() | views.keys())
    if is_late is not None and len(everybody) > limit:
        everybody.sort(key=lambda name: is_late(name.partition("/")[0]))
    found = [member(name, lines.get(name), views.get(name)) for name in sorted(everybody[:limit])]
    return [each for each in found if not _is_ours(each)]


async def near_types(bus: Bus, name: str, *, clock: Clock = SYSTEM_CLOCK) -> list[str]:
    """Return the actor types that come nearest to ``name``, itself when it is one; for errors. Two requests.

    By what the registry's leader knows and by the types that were ever hosted, as far as our user may ask.
    """
    found = set(await _near(bus, Query(type=name, status=list(EVERYWHERE), limit=1), clock))
    with suppress(BusError):
        found.update(await inspection.types(bus))
    return near(name, found)


async def near_capabilities(bus: Bus, name: str, *, clock: Clock = SYSTEM_CLOCK) -> list[str]:
    """Return the capabilities that come nearest to ``name``, by what the registry's leader knows. One request."""
    return await _near(bus, Query(capability=name, status=list(EVERYWHERE), limit=1), clock)


async def address_hint(bus: Bus, address: Address, *, clock: Clock = SYSTEM_CLOCK) -> str:
    """Return what may be meant by an actor that nothing is known of, as ``hint`` does. Three requests."""
    kinds = await near_types(bus, address.type, clock=clock)
    if address.type not in kinds:
        return hint(address.type, kinds, after=f"/{address.key}")
    with suppress(BusError):
        states = await bus.subject_counts(subjects.ACTORS, f"cb.state.{address.type}.*")
        keys = (subjects.actor_of(subject)[1] for subject in states)
        return hint(address.key, keys, before=f"{address.type}/")
    return ""


async def leader(bus: Bus) -> Cursor:
    """Return who leads the registry, as its cursor says; one without an owner when nobody ever did. One request.

    Whether that worker lives is another question: beats answer it.
    """
    found = [decoded(stored.subject, stored) for stored in await bus.get_many(subjects.ACTORS, [f"cb.cursor.{TYPE}.*"])]
    return max((place for place in found if place is not None), key=lambda place: place.epoch, default=Cursor())


def judged(cache: RegistryCache, query: Query) -> Found:
    """Return what a cache that has only just begun to listen finds; whoever was not heard yet counts as offline.

    A long-lived one gives them some seconds more, lest an outage of its own link make the whole fleet look dead.
    """
    wanted = query.status or [status for status in EVERYWHERE if status != "offline"]
    agents: list[AgentView] = []
    page = replace(query, status=list(EVERYWHERE), limit=MAX_LIMIT)
    while True:
        found = cache.find(page)
        for view in found.agents:
            seen = view if view.seen_at is not None else replace(view, status="offline")
            if seen.status not in wanted:
                continue
            if len(agents) == query.limit:
                return replace(found, agents=agents, next=agents[-1].record.address)
            agents.append(seen)
        if not found.next:
            return replace(found, agents=agents)
        page = replace(page, after=found.next)


def member(address: str, line: Line | None, view: AgentView | None) -> Member:
    """Return one line of the list from what the two sides know."""
    known = line or Line(address=address, status="")
    if view is None:
        return Member(
            address=address,
            status=known.status,
            is_registered=False,
            is_hosted=True,
            turns=known.turns,
            parked=known.parked,
            stored=known.stored,
            at=known.at,
            reason=known.reason,
        )
    record = view.record
    is_stopped = known.status in _STOPPED
    return Member(
        address=address,
        status=known.status if is_stopped else view.status,
        is_registered=True,
        is_hosted=record.is_hosted,
        capabilities=[spec.name for spec in record.capabilities],
        labels=record.labels,
        version=record.version,
        weight=record.weight,
        busy=view.busy,
        waiting=view.waiting,
        load=round(view.load, 3),
        worker=view.worker,
        host=record.host,
        seen_at=view.seen_at,
        turns=known.turns,
        parked=known.parked,
        stored=known.stored,
        at=known.at,
        reason=known.reason if is_stopped else view.problem,
    )


def _is_ours(found: Member) -> bool:
    """Return whether it is the registry itself, which is an actor too."""
    return found.address.startswith(f"{TYPE}/")


async def _near(bus: Bus, query: Query, clock: Clock) -> list[str]:
    """Return the nearest names that the registry's leader tells; whoever fits counts as the nearest of all."""
    lookups = Lookups(bus, clock=clock)
    try:
        found = await lookups.find(query)
    except (BusError, RegistryError):
        # nobody leads it, or we may not ask
        return []
    finally:
        await lookups.close()
    is_there = bool(found.agents or found.workers)
    return [query.capability or query.type] if is_there else found.near


class _Looker:
    """Asks the leader; when nobody leads, whoever reads and listens for a second knows the same."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self.lookups = Lookups(bus, clock=clock)
        self._clock = clock

    async def find(self, query: Query) -> Found:
        try:
            return await self.lookups.find(query)
        except RegistryAwayError:
            cache = await self._warm()
            if cache is None:
                raise
            return judged(cache, query)

    async def pick(self, query: Query) -> Picked:
        try:
            return await self.lookups.pick(query)
        except RegistryAwayError:
            if await self._warm() is None:
                raise
            picked = await self.lookups.pick(query)
            if picked.agent is not None and picked.agent.seen_at is None:
                message = f"{picked.agent.record.address} fits, and nobody who could run it was heard"
                raise NoAgentError(message, refused={"offline": 1}) from None
            return picked

    async def _warm(self) -> RegistryCache | None:
        give_up_s = self._clock.monotonic() + _WARM_WITHIN_S
        while self._clock.monotonic() < give_up_s:
            cache = self.lookups.cache
            if cache is not None and cache.is_warm:
                return cache
            await self._clock.sleep(_TICK_S)
        return None


@asynccontextmanager
async def _looking(bus: Bus, clock: Clock) -> AsyncIterator[_Looker]:
    looker = _Looker(bus, clock)
    try:
        yield looker
    finally:
        await looker.lookups.close()
