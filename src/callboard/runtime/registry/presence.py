"""Who is there, by beats and the observer's own monotonic clock. Pure: times are handed in, nothing is sent.

What stands in a beat about time is never looked at: a worker whose clock is an hour off is as alive as any other. An
agent that workers host lives as long as one of them does; one that beats for itself until its own time-out. After a gap
of our own (our link was away, we stood still) everybody who was alive counts as alive for a grace time; those who were
dead before stay dead until they are heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

from msgspec import Struct

from callboard.runtime.beat import ActorLoad, Beat
from callboard.runtime.bus.pattern import partition_of
from callboard.runtime.registry.message import AgentBeat, PoolWorkerView, Status
from callboard.runtime.registry.record import TIMEOUT_S, AgentRecord
from callboard.runtime.subjects import escape

# Beats come once a second: two were missed, or three.
SUSPECT_S = 2.2
OFFLINE_S = 3.2
GRACE_S = 4.0
# Our own beat comes back once a second; with a longer gap we heard nobody.
MAX_ECHO_GAP_S = 1.6
MAX_WORKERS = 10_000
# The silent are forgotten.
_FORGET_AFTER_S = 600.0
# A worker's end and its last beat may cross.
_LATE_BEAT_S = 0.5
# A share of an agent's own time-out after which it is suspect, where that is sooner than two beats.
_SUSPECT_SHARE = 0.6

Vitality = Literal["alive", "suspect", "offline"]


class Standing(Struct, frozen=True, gc=False):
    """An agent's state now. ``seen_s`` is monotonic, negative infinity when it was never heard."""

    status: Status
    busy: int = 0
    waiting: int = 0
    worker: str = ""
    seen_s: float = -math.inf
    problem: str = ""


class _Heard:
    """Somebody who beats."""

    __slots__ = ("was_dead", "heard_s", "left_s")

    def __init__(self, now_s: float) -> None:
        self.heard_s = now_s
        self.was_dead = False
        self.left_s = -math.inf


class _Worker(_Heard):
    __slots__ = ("beat",)

    def __init__(self, beat: Beat, now_s: float) -> None:
        super().__init__(now_s)
        self.beat = beat


class _Agent(_Heard):
    __slots__ = ("beat", "timeout_s")

    def __init__(self, now_s: float) -> None:
        super().__init__(now_s)
        self.beat: AgentBeat | None = None
        self.timeout_s = TIMEOUT_S


class _Type:
    """What the workers say of one actor type, put together once for many agents."""

    def __init__(self) -> None:
        self.vitality: Vitality = "offline"
        self.is_draining = True
        self.seen_s = -math.inf
        self.silent = ""
        self.of = 0
        self.owners: dict[int, str] = {}
        self.busy: dict[str, int] = {}


class Presence:
    """What one observer knows of all workers and agents. Not thread safe.

    Attributes:
        is_dead: Told a worker's name, whether its death was noticed otherwise (pings, its parent): sooner than by
            silence. None when nobody knows more than the beats.
    """

    def __init__(self, *, now_s: float, me: str = "", is_dead: Callable[[str], bool] | None = None) -> None:
        """Begin to listen, with a grace time.

        Args:
            now_s: The present.
            me: Our own worker's name, whose beats prove our link; "" for an observer that beats not.
            is_dead: See the attribute.
        """
        self.is_dead = is_dead
        self._me = me
        self._echo_s = now_s
        self._gap_s = now_s
        self._workers: dict[str, _Worker] = {}
        self._agents: dict[tuple[str, str], _Agent] = {}
        self._types: dict[str, _Type] = {}
        self._types_at_s = -math.inf
        self._partitions: dict[tuple[str, str, int], int] = {}

    # --- what happens

    def heard(self, beat: Beat, now_s: float) -> None:
        """Note a worker's beat."""
        found = self._workers.get(beat.worker)
        if beat.status == "stopped":
            if found is not None:
                found.left_s, found.beat = now_s, beat
                self._types_at_s = -math.inf
            return
        if beat.worker == self._me:
            if now_s - self._echo_s > MAX_ECHO_GAP_S:
                self.gap(now_s)
            self._echo_s = now_s
        if found is None:
            if len(self._workers) >= MAX_WORKERS:
                self._forget(now_s)
            self._workers[beat.worker] = _Worker(beat, now_s)
        elif now_s - found.left_s > _LATE_BEAT_S:
            found.beat, found.heard_s, found.was_dead = beat, now_s, False
            found.left_s = -math.inf
        self._types_at_s = -math.inf

    def heard_agent(
        self, kind: str, key: str, now_s: float, beat: AgentBeat | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        """Note an agent's own beat, or that it registered just now. Strangers are kept out before."""
        found = self._agents.get((kind, key))
        if found is None:
            found = self._agents[kind, key] = _Agent(now_s)
        found.heard_s, found.was_dead, found.timeout_s = now_s, False, timeout_s
        found.beat = beat or found.beat

    def left_agent(self, kind: str, key: str) -> None:
        """Forget an agent that has left."""
        self._agents.pop((kind, key), None)

    def gap(self, now_s: float, *, since_s: float | None = None) -> None:
        """Note that we heard nobody for a while: verdicts stand as they were before, then a grace time begins.

        Args:
            now_s: The present.
            since_s: When we last heard for certain; by default when our own beat last came back.
        """
        before_s = self._echo_s if since_s is None else since_s
        if now_s - self._gap_s >= GRACE_S:
            for worker in self._workers.values():
                worker.was_dead = worker.was_dead or self._age_s(worker, before_s) > OFFLINE_S
            for agent in self._agents.values():
                agent.was_dead = agent.was_dead or self._age_s(agent, before_s) > agent.timeout_s
        self._gap_s = now_s
        self._types_at_s = -math.inf

    def echo_age_s(self, now_s: float) -> float:
        """Return the seconds since our own worker's last beat came back."""
        return now_s - self._echo_s

    # --- what follows

    def standing(self, record: AgentRecord, now_s: float) -> Standing:
        """Return an agent's state. Cost: some 2 µs."""
        return self._hosted(record, now_s) if record.is_hosted else self._own(record, now_s)

    def worker(self, name: str, now_s: float) -> Vitality:
        """Return whether a worker is alive; one never heard is offline."""
        found = self._workers.get(name)
        return "offline" if found is None else self._vitality(found, name, now_s)

    def workers(self, now_s: float) -> list[Beat]:
        """Return the latest beats of those workers that are not offline, by name."""
        return [
            found.beat
            for name, found in sorted(self._workers.items())
            if self._vitality(found, name, now_s) != "offline"
        ]

    def pools(self, now_s: float) -> set[str]:
        """Return the names of the capabilities that live workers have slots for."""
        return {load.name for beat in self.workers(now_s) for load in beat.capabilities}

    def types(self, now_s: float) -> set[str]:
        """Return the names of the actor types that live workers host."""
        return {load.kind for beat in self.workers(now_s) for load in beat.actors}

    def slots(self, capability: str, now_s: float) -> list[PoolWorkerView]:
        """Return the live workers with slots of a capability, by name."""
        return [
            PoolWorkerView(
                worker=beat.worker,
                host=beat.host,
                labels=beat.labels,
                status=beat.status if self.worker(beat.worker, now_s) == "alive" else "suspect",
                slots=load.slots,
                busy=load.busy,
                backlog=load.backlog,
                type=load.type,
            )
            for beat in self.workers(now_s)
            for load in beat.capabilities
            if load.name == capability
        ]

    def partition(self, record: AgentRecord, count: int) -> int:
        """Return the partition that an agent's mail is filed under."""
        place = (record.type, record.key, count)
        found = self._partitions.get(place)
        if found is None:
            if len(self._partitions) > 2 * MAX_WORKERS:
                self._partitions.clear()
            found = self._partitions[place] = partition_of(count, record.type, escape(record.key))
        return found

    # --- inside

    def _own(self, record: AgentRecord, now_s: float) -> Standing:
        agent = self._agents.get((record.type, record.key))
        if agent is None:
            if now_s - self._gap_s < max(GRACE_S, record.timeout_s):
                return Standing("idle", problem="not heard yet")
            return Standing("offline", problem="it was never heard")
        silent_s = now_s - agent.heard_s
        age_s = now_s - max(agent.heard_s, self._gap_s if not agent.was_dead else -math.inf)
        beat = agent.beat
        busy, waiting = (beat.busy, beat.waiting) if beat is not None else (0, 0)
        status: Status = "busy" if busy + waiting else "idle"
        problem = ""
        if age_s > record.timeout_s:
            agent.was_dead = True
            status, problem = "offline", f"no beat for {silent_s:.1f} s"
        elif now_s - self._gap_s >= GRACE_S and age_s > min(SUSPECT_S, _SUSPECT_SHARE * record.timeout_s):
            status, problem = "suspect", f"no beat for {silent_s:.1f} s"
        elif beat is not None and beat.status != "ready":
            status = beat.status
        return Standing(status, busy=busy, waiting=waiting, seen_s=agent.heard_s, problem=problem)

    def _hosted(self, record: AgentRecord, now_s: float) -> Standing:
        found = self._type(record.type, now_s)
        owner, problem = "", ""
        if found is None:
            if now_s - self._gap_s < GRACE_S:
                return Standing("idle", problem="no worker was heard yet")
            return Standing("offline", problem=f"no worker hosts {record.type}")
        if found.of:
            owner = found.owners.get(self.partition(record, found.of), "")
        mails = found.busy.get(record.key, 0)
        vitality: Vitality = self.worker(owner, now_s) if owner else found.vitality
        status: Status = "busy" if mails else "idle"
        if vitality == "offline" or found.vitality == "offline":
            status, problem = "offline", f"no worker that hosts {record.type} is heard: {found.silent}"
        elif record.status != "active":
            status, problem = record.status, record.problem
        elif vitality == "suspect":
            status, problem = "suspect", f"worker {owner or found.silent} is silent"
        elif found.is_draining:
            status = "draining"
        seen_s = self._workers[owner].heard_s if owner else found.seen_s
        return Standing(
            status, busy=min(mails, 1), waiting=max(0, mails - 1), worker=owner, seen_s=seen_s, problem=problem
        )

    def _type(self, kind: str, now_s: float) -> _Type | None:
        # silence grows by itself: what was put together is good for a moment only
        if now_s - self._types_at_s > 0.05:  # noqa: PLR2004
            self._types_at_s = now_s
            self._types = {}
            known = [(self._vitality(worker, name, now_s), worker) for name, worker in self._workers.items()]
            # the living last: of two that name one partition theirs, they are right
            for vitality, worker in sorted(known, key=lambda item: _RANK[item[0]]):
                for load in worker.beat.actors:
                    _add(self._types.setdefault(load.kind, _Type()), load, worker, vitality)
        return self._types.get(kind)

    def _vitality(self, worker: _Worker, name: str, now_s: float) -> Vitality:
        if name == self._me:
            return "alive"
        if worker.left_s > worker.heard_s or worker.was_dead:
            return "offline"
        if self.is_dead is not None and self.is_dead(name):
            return "offline"
        if now_s - self._gap_s < GRACE_S or (self._me and self.echo_age_s(now_s) > MAX_ECHO_GAP_S):
            return "alive"
        age_s = self._age_s(worker, now_s)
        return "alive" if age_s <= SUSPECT_S else "suspect" if age_s <= OFFLINE_S else "offline"

    def _age_s(self, heard: _Heard, now_s: float) -> float:
        return now_s - max(heard.heard_s, self._gap_s)

    def _forget(self, now_s: float) -> None:
        silent: Iterable[str] = [
            name for name, found in self._workers.items() if now_s - found.heard_s > _FORGET_AFTER_S
        ] or sorted(self._workers, key=lambda name: self._workers[name].heard_s)[:1]
        for name in silent:
            del self._workers[name]


_RANK: dict[Vitality, int] = {"offline": 0, "suspect": 1, "alive": 2}


def _add(found: _Type, load: ActorLoad, worker: _Worker, vitality: Vitality) -> None:
    """Take one worker's word on a type into what is known of it: the best vitality counts, the living say the load."""
    beat = worker.beat
    if _RANK[vitality] >= _RANK[found.vitality]:
        found.vitality = vitality
        found.silent = beat.worker
    found.seen_s = max(found.seen_s, worker.heard_s)
    if vitality == "offline":
        return
    found.is_draining = found.is_draining and beat.status == "draining"
    found.of = load.of or found.of
    for number in load.partitions:
        found.owners[number] = beat.worker
    for key, mails in load.busy.items():
        found.busy[key] = max(mails, found.busy.get(key, 0))
