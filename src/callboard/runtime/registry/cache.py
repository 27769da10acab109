"""The registry as one observer has it in memory: records by a watch, liveness and load by beats. It looks and picks.

The leader answers from one, its standbys keep one warm, and so does every caller that looks up more than once: what
they know is the same, so that losing the leader stops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from callboard.runtime import subjects
from callboard.runtime.beat import heard
from callboard.runtime.bus.base import Bus, KvEntry, Message, Subscription
from callboard.runtime.bus.kv import Bucket, Watch
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BusClosedError, BusError, DecodeError, InputError, NoAgentError
from callboard.runtime.near import hint
from callboard.runtime.registry import record as records
from callboard.runtime.registry.index import Index, Narrowed
from callboard.runtime.registry.message import (
    BEAT,
    MAX_LIMIT,
    SERVED,
    AgentBeat,
    AgentView,
    Found,
    Picked,
    PoolWorkerView,
    Query,
    Served,
    Why,
    is_meant,
)
from callboard.runtime.registry.presence import MAX_ECHO_GAP_S, Presence, Standing
from callboard.runtime.registry.record import AgentRecord
from callboard.runtime.registry.reservation import RESERVED_S, Reservations
from callboard.runtime.registry.select import Candidate, choose, choose_pool, fits

# Every worker was heard by then.
LISTEN_S = 1.3
TICK_S = 0.5
# A tick that comes so much too late means that we stood still.
_STALL_S = 1.1
# Agents that one pick looks at; of more, the next so many in turn.
MAX_LOOKED_AT = 256

_beats = msgspec.json.Decoder(AgentBeat)
_served = msgspec.json.Decoder(Served)


class RegistryCache:
    """Records, liveness, load. ``open`` begins to listen, ``close`` ends it.

    Attributes:
        index: The records.
        presence: Who is alive.
        reservations: Picks of the last moments.
    """

    def __init__(self, bus: Bus, *, clock: Clock, me: str = "", is_dead: Callable[[str], bool] | None = None) -> None:
        """Prepare.

        Args:
            bus: The connection; not owned.
            clock: Time.
            me: Name of the worker that it lives in; "" elsewhere.
            is_dead: Whether a worker's death was noticed sooner than by silence; see ``Presence``.
        """
        self.index = Index()
        self.reservations = Reservations()
        self.presence = Presence(now_s=clock.monotonic(), me=me, is_dead=is_dead)
        self._me = me
        self._bus = bus
        self._clock = clock
        self._turn = 0
        self._opened_s = math.inf
        self._subscriptions: list[Subscription] = []
        self._watch: Watch | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    # --- life

    async def open(self) -> None:
        """Read the records and listen, until ``close``. Costs a few round trips, and the records' bytes.

        Raises:
            NotFoundError: If there is no registry here: the bucket was not provisioned.
            BusError: If the broker cannot be asked now.
        """
        self._bus.on_reconnect(self._reconnected)
        try:
            for subject, sink in (
                (subjects.BEAT_ALL, self._on_beat),
                (BEAT, self._on_agent),
                (f"{BEAT}.*", self._on_agent),
                (SERVED, self._on_served),
            ):
                self._subscriptions.append(await self._bus.subscribe(subject, sink))
            self._watch = await Bucket(self._bus, records.BUCKET).watch(records.PREFIX, self._on_entry)
        except BaseException:
            await self.close()
            raise
        self._opened_s = self._clock.monotonic()
        self._task = asyncio.create_task(self._tick(), name="registry-cache")

    async def close(self) -> None:
        """Stop listening. Closing twice is harmless."""
        self._is_closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        watch, self._watch = self._watch, None
        if watch is not None:
            await watch.close()
        found, self._subscriptions = self._subscriptions, []
        for subscription in found:
            with contextlib.suppress(BusError):
                await subscription.close()

    @property
    def is_warm(self) -> bool:
        """Whether it has read the records and listened for long enough to know everybody."""
        return self._clock.monotonic() - self._opened_s >= LISTEN_S

    # --- looking

    def tally(self) -> dict[str, int]:
        """Return how many agents are in each status, by its name.

        For who has listened for two beats: an agent that was not heard is offline then, whatever the benefit of the
        doubt. Some microseconds an agent.
        """
        records = [self.index.get(address) for address in self.index.addresses()]
        standings = [self.standing(record) for record in records if record is not None]
        found = Counter("offline" if each.seen_s == -math.inf else each.status for each in standings)
        return dict(sorted(found.items()))

    def standing(self, record: AgentRecord) -> Standing:
        """Return an agent's state now."""
        return self.presence.standing(record, self._clock.monotonic())

    def view(self, record: AgentRecord) -> AgentView:
        """Return an agent as it is now."""
        now_s = self._clock.monotonic()
        found = self.presence.standing(record, now_s)
        reserved = self.reservations.count(record.address, now_s)
        busy, waiting = self._less_ended(record.address, found)
        return AgentView(
            record=record,
            status=found.status,
            busy=busy,
            waiting=waiting,
            reserved=reserved,
            load=(busy + waiting + reserved) / record.weight,
            worker=found.worker,
            seen_at=self._wall(found.seen_s, now_s),
            latency_s=self.reservations.latency_s(record.address),
            problem=found.problem,
        )

    def find(self, query: Query) -> Found:
        """Return a page of the agents that fit, by address, and the workers with slots of the capability.

        Raises:
            InputError: If the limit is out of range.
        """
        limit = query.limit
        if not 1 <= limit <= MAX_LIMIT:
            message = f"limit is {limit}: take 1 to {MAX_LIMIT}, and `after` for the rest"
            raise InputError(message)
        now_s = self._clock.monotonic()
        agents: list[AgentView] = []
        following = ""
        for record in self.index.matching(query):
            status = self.presence.standing(record, now_s).status
            if status not in query.status if query.status else status == "offline":
                continue
            if len(agents) == limit:
                following = agents[-1].record.address
                break
            agents.append(self.view(record))
        workers = [each for each in self.presence.slots(query.capability, now_s) if fits(each, query)]
        near: list[str] = []
        if query.capability and not agents and not workers:
            near = self._near(query.capability)
        elif query.type and not agents:
            near = self._near_types(query.type)
        return Found(agents=agents, workers=workers, as_of=self._clock.now(), next=following, near=near)

    def pick(self, query: Query) -> Picked:
        """Choose the least busy agent that fits, and reserve its place; or the pool, where only plain pools do it.

        Where labels are asked for it is the pool by label, if a worker bears them.

        Of more than 256 that fit it looks at the next 256 in turn.

        Raises:
            NoAgentError: If nobody fits, or nobody that fits takes work now.
            InvalidNameError: If only a pool is left and its tasks cannot ask for labels that are spelt so.
            InputError: If the query names no capability and nothing else.
        """
        if not (query.capability or query.all or query.any or query.type):
            message = "a pick needs a capability, or a type: say what the agent shall do"
            raise InputError(message)
        now_s = self._clock.monotonic()
        found = self.index.narrow(query)
        candidates = self._candidates(found.able, now_s)
        choice = choose(candidates, turn=self._turn, refused=found.refused, able=len(found.able))
        self._turn += 1
        if choice.address is None:
            workers = self._pools(query, found, now_s)
            if workers:
                return choose_pool(workers, query)
            raise self._nobody(query, found, choice.why)
        record = self.index.get(choice.address)
        assert record is not None  # noqa: S101 - it was in the index a moment ago
        view = self.view(record)
        self.reservations.add(choice.address, now_s)
        ask = subjects.ask(record.type, record.key)
        return Picked(agent=view, ask=ask, why=choice.why, reserved_s=RESERVED_S)

    def candidates(self, query: Query) -> list[Candidate]:
        """Return those that fit a query as ``choose`` takes them."""
        return self._candidates(self.index.narrow(query).able, self._clock.monotonic())

    def take(self, record: AgentRecord, revision: int) -> None:
        """Take in a record that was written; who has just registered is alive."""
        is_new = self.index.put(record, revision)
        if is_new and not record.is_hosted and self._opened_s < math.inf:
            now_s = self._clock.monotonic()
            self.presence.heard_agent(record.type, record.key, now_s, timeout_s=record.timeout_s)

    # --- inside: looking

    def _candidates(self, able: Sequence[str], now_s: float) -> list[Candidate]:
        """Return the candidates, those that are looked at this time where there are many."""
        if len(able) > MAX_LOOKED_AT:
            start = self._turn * MAX_LOOKED_AT % len(able)
            able = [*able[start : start + MAX_LOOKED_AT], *able[: max(0, start + MAX_LOOKED_AT - len(able))]]
        return [self._candidate(address, now_s) for address in able]

    def _candidate(self, address: str, now_s: float) -> Candidate:
        record = self.index.get(address)
        assert record is not None  # noqa: S101 - the index named it
        found = self.presence.standing(record, now_s)
        busy, waiting = self._less_ended(address, found)
        return Candidate(
            address,
            found.status,
            busy + waiting + self.reservations.count(address, now_s),
            record.weight,
            self.reservations.latency_s(address),
        )

    def _less_ended(self, address: str, found: Standing) -> tuple[int, int]:
        """Return what runs and waits, less what has ended since the beat that told it."""
        ended = self.reservations.ended(address)
        if not ended:
            return found.busy, found.waiting
        left = max(0, found.busy + found.waiting - ended)
        return min(found.busy, left), left - min(found.busy, left)

    def _pools(self, query: Query, found: Narrowed, now_s: float) -> list[PoolWorkerView]:
        """Return the workers whose pool may do it in an agent's place."""
        if not found.has_capability:
            return self.presence.slots(query.capability, now_s)
        if found.able or not query.labels:
            return []
        # no agent bears the labels; slots of an actor type would give it to agents all the same
        slots = self.presence.slots(query.capability, now_s)
        return [each for each in slots if not each.type and fits(each, query)]

    def _nobody(self, query: Query, found: Narrowed, why: Why) -> NoAgentError:
        refused = {reason: number for reason, number in why.refused.items() if number}
        if query.capability and not found.has_capability:
            near = self._near(query.capability)
            hint = f"; near it: {', '.join(near)}" if near else ""
            message = f"no agent and no pool has the capability {query.capability!r}{hint}"
            return NoAgentError(message, near=tuple(near), refused=refused)
        what = f"can do {query.capability!r}" if query.capability else "are known"
        if not found.able:
            message = f"{found.has_capability} agents {what}, none of them fits: {self._misfit(query, found)}"
            return NoAgentError(message, refused=refused)
        states = ", ".join(f"{number} {status}" for status, number in sorted(why.refused.items()))
        return NoAgentError(f"{len(found.able)} agents fit and none takes work now: {states}", refused=refused)

    def _misfit(self, query: Query, found: Narrowed) -> str:
        """Return what was asked for in vain, with the values that exist where it is a label."""
        parts = []
        for reason, number in found.refused.items():
            label = reason.removeprefix("labels.")
            if label == reason:
                meant = self._near_types(query.type) if reason == "type" else []
                parts.append(f"{reason} left out {number}{hint(query.type, meant)}")
                continue
            values = ", ".join(self.index.values(label)[:10]) or "none"
            parts.append(f"label {label}={query.labels[label]} left out {number} (there are: {values})")
        return "; ".join(parts)

    def _near(self, name: str) -> list[str]:
        return self.index.near(name, sorted(self.presence.pools(self._clock.monotonic())))

    def _near_types(self, name: str) -> list[str]:
        return self.index.near_types(name, self.presence.types(self._clock.monotonic()))

    def _wall(self, at_s: float, now_s: float) -> datetime | None:
        return None if at_s == -math.inf else self._clock.now() - timedelta(seconds=max(0.0, now_s - at_s))

    # --- inside: listening

    def _on_entry(self, entry: KvEntry) -> None:
        kind, key = records.address_at(entry.key)
        address = f"{kind}/{key}"
        if entry.data is None:
            if self.index.remove(address, entry.revision):
                self.presence.left_agent(kind, key)
            return
        found = None
        with contextlib.suppress(DecodeError):
            found = records.decode(entry.data)
        if found is not None and found.address == address:
            self.take(found, entry.revision)
        elif self.index.remove(address, entry.revision):
            # what was written over it is nobody's agent
            self.presence.left_agent(kind, key)

    def _on_beat(self, message: Message) -> None:
        beat = heard(message)
        if beat is None:
            return
        now_s = self._clock.monotonic()
        self.presence.heard(beat, now_s)
        loads = {load.kind: load for load in beat.actors}
        for address in self.reservations.open():
            record = self.index.get(address)
            load = loads.get(record.type) if record is not None and record.is_hosted else None
            if record is None or load is None:
                continue
            if not load.of or self.presence.partition(record, load.of) in load.partitions:
                self.reservations.shown(address, now_s)

    def _on_agent(self, message: Message) -> None:
        """Hear an agent's own beat; a stranger's, or one of a process that does not hold the address, says nothing."""
        try:
            beat = _beats.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        record = self.index.get(f"{beat.type}/{beat.key}")
        if (
            record is None
            or record.is_hosted
            or not is_meant(message.subject, message.data)
            or (beat.instance and beat.instance != record.instance)
        ):
            return
        now_s = self._clock.monotonic()
        self.presence.heard_agent(beat.type, beat.key, now_s, beat, timeout_s=record.timeout_s)
        self.reservations.shown(record.address, now_s)

    def _on_served(self, message: Message) -> None:
        try:
            served = _served.decode(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if self.index.get(served.address) is not None:
            self.reservations.served(served.address, served.s)

    def _reconnected(self) -> None:
        if not self._is_closed:
            self.presence.gap(self._clock.monotonic())

    async def _tick(self) -> None:
        """Notice when nobody could be heard, and open the watch again when it broke."""
        last_s = self._clock.monotonic()
        while True:
            await self._clock.sleep(TICK_S)
            now_s = self._clock.monotonic()
            stood_still = now_s - last_s > TICK_S + _STALL_S
            is_deaf = bool(self._me) and self.presence.echo_age_s(now_s) > MAX_ECHO_GAP_S
            if stood_still or is_deaf or not self._bus.is_connected:
                # a worker's own echo tells better when all was well
                self.presence.gap(now_s, since_s=None if self._me else last_s)
            last_s = now_s
            if self._watch is not None and self._watch.problem is not None:
                try:
                    self._watch = await Bucket(self._bus, records.BUCKET).watch(records.PREFIX, self._on_entry)
                except BusClosedError:
                    return
                except BusError:
                    continue
