"""The parent of a group of workers on the bus: it says how the group is, takes orders, and scales it when it is to.

It serves nothing itself: no pool, no actor. ``cb.group.<id>`` carries a ``GroupBeat`` once a second, and
``cb.ctl.worker.<id>`` takes orders for the whole group.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct

from callboard.runtime import autoscale, backlog, events, subjects
from callboard.runtime import labels as label_pools
from callboard.runtime.autoscale import Demand, Need, Rules
from callboard.runtime.backlog import Backlog
from callboard.runtime.beat import Beat
from callboard.runtime.bus.base import Bus, Message, Subscription
from callboard.runtime.bus.topology import ConsumerNumbers
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.control import Order, decode_order
from callboard.runtime.errors import BusError, CallboardError, PermissionDeniedError, TopologyError
from callboard.runtime.group_beat import Bounds, GroupBeat, ProcessState, ProcessStatus
from callboard.runtime.logs import get_logger
from callboard.runtime.processes import Child, ProcessGroup
from callboard.runtime.provide import Refusals, ensure_consumers, ensure_streams
from callboard.runtime.roster import Roster
from callboard.runtime.version import VERSION

EVERY_S = 1.0
# the pools by label that nobody serves are looked for this often
LABELS_EVERY_S = 5.0
MAX_PROCESSES = 512
_PEER_ALIVE_S = 3.5

_log = get_logger(__name__)


class Served(Struct, frozen=True, kw_only=True):
    """What a worker process of the group serves, as the hidden command ``worker describe`` tells it.

    Attributes:
        capabilities: Slots a process, by name.
        actors: The actor types that it hosts.
        turns: Turns of actors that a process runs at once.
    """

    capabilities: dict[str, int] = {}
    actors: list[str] = []
    turns: int = 256


class Scaling(Struct, frozen=True, kw_only=True):
    """What a group needs to scale itself.

    Attributes:
        rules: Bounds and patience; never below 1 where actors are hosted, for an ask needs a host that listens.
        served: What each process serves.
        numbers: Of the consumers, which must exist before anybody serves them, so that work is seen.
        reads_queue: Whether its user may read the queue, to see how old the oldest task is. Without that it goes by how
            long it has seen one of those wait that were pending when it looked.
    """

    rules: Rules
    served: Served
    numbers: ConsumerNumbers
    reads_queue: bool = True


class GroupDesk:
    """Speaks for a group on the bus. Make one beside the ``ProcessGroup`` and keep ``run()`` going.

    Attributes:
        id: The group's name in beats and orders.
        backlog: The work as it was last seen.
        problem: Why the work cannot be seen now, or None.
    """

    def __init__(
        self,
        processes: ProcessGroup,
        connect: Callable[[str], Awaitable[Bus]],
        *,
        name: str,
        labels: Mapping[str, str],
        scaling: Scaling | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Prepare.

        Args:
            processes: The group.
            connect: Opens a connection under the given name.
            name: The group's id.
            labels: Those of its workers.
            scaling: What it needs to scale itself; None leaves its size to orders.
            clock: Time.
        """
        self.id = name
        self.backlog: list[Backlog] = []
        self.problem: str | None = None
        self._processes = processes
        self._connect = connect
        self._labels = dict(labels)
        self._scaling = scaling
        self._clock = clock
        self._roster = Roster(clock)
        self._bus: Bus | None = None
        self._past: tuple[Need, ...] = ()
        self._why = ""
        self._started_at = clock.now()
        self._pools: list[str] = []
        self._pools_looked_s = -LABELS_EVERY_S
        self._refused = Refusals(clock)
        self._ages = backlog.Ages()
        self._replies: set[asyncio.Task[None]] = set()

    # --- life

    async def open(self) -> None:
        """Connect; a group that scales itself has its consumers made, so that work is seen while nobody serves it.

        Raises:
            BusConnectError: If there is no broker.
            TopologyError: If its streams are missing, or a consumer is refused.
        """
        bus = await self._connect("worker-parent")
        try:
            if self._scaling is not None:
                await ensure_streams(bus)
                await ensure_consumers(bus, self._scaling.served.capabilities, self._scaling.numbers)
        except BaseException:
            await bus.close()
            raise
        self._bus = bus

    async def run(self) -> None:
        """Speak and listen until cancelled; says goodbye then. Without a broker it goes on trying."""
        while self._bus is None:
            try:
                await self.open()
            except CallboardError as error:
                self._complain(error.code, str(error))
                await self._clock.sleep(EVERY_S)
        bus = self._bus
        subscriptions: list[Subscription] = []
        try:
            subscriptions.append(await bus.subscribe(subjects.BEAT_ALL, self._roster.hear))
            subscriptions.append(await bus.subscribe(subjects.ctl_worker(self.id), lambda m: self._on_order(bus, m)))
            while True:
                await self._look(bus)
                await self._say(bus)
                await self._clock.sleep(EVERY_S)
        finally:
            for subscription in subscriptions:
                await subscription.close()
            await self._say(bus, is_last=True)
            await bus.close()

    async def _look(self, bus: Bus) -> None:
        """See to the size of the group."""
        if self._scaling is None or self._processes.is_stopping:
            return
        try:
            await self._scale(bus, self._scaling)
        except Exception as error:  # noqa: BLE001 - whatever it is: what runs goes on, and it is looked again
            # nothing was seen, neither much work nor none: what is there stays
            self._complain(getattr(error, "code", type(error).__name__), str(error))
        else:
            self.problem = None

    def _complain(self, code: str, text: str) -> None:
        if self.problem is None:
            _log.warning(events.GROUP_BLINDED, group=self.id, code=code, message=text)
        self.problem = text

    # --- size

    async def _scale(self, bus: Bus, scaling: Scaling) -> None:
        await self._look_for_pools(bus, scaling)
        self.backlog = await backlog.read(
            bus,
            [*scaling.served.capabilities, *self._pools],
            clock=self._clock,
            with_age=scaling.reads_queue,
        )
        if not scaling.reads_queue:
            self.backlog = self._aged(self.backlog)
        processes = len(self._processes.staying)
        decision = autoscale.decide(
            self._demands(scaling.served),
            processes=processes,
            past=self._past,
            rules=scaling.rules,
            now_s=self._clock.monotonic(),
        )
        self._past, self._why = decision.past, decision.why
        if decision.processes != processes:
            _log.info(events.GROUP_SCALED, group=self.id, processes=decision.processes, was=processes, why=decision.why)
            self._processes.resize(decision.processes, first=self._busy)

    async def _look_for_pools(self, bus: Bus, scaling: Scaling) -> None:
        """Find the pools by label that our workers would serve, so that the first task of one starts a process too."""
        now_s = self._clock.monotonic()
        if not self._labels or now_s - self._pools_looked_s < LABELS_EVERY_S:
            return
        self._pools_looked_s = now_s
        known = await backlog.labelled(bus, scaling.served.capabilities)
        found = backlog.fitting(known, self._labels)
        self._pools = [name for name in found if name in self._pools or await self._provide(bus, name, scaling)]

    async def _provide(self, bus: Bus, name: str, scaling: Scaling) -> bool:
        """See to the consumers of a pool by label; return whether we may."""
        if self._refused.holds(name):
            return False
        try:
            await ensure_consumers(bus, [name], scaling.numbers)
        except (PermissionDeniedError, TopologyError) as error:
            self._refused.add(name, error)
            return False
        return True

    def _aged(self, found: list[Backlog]) -> list[Backlog]:
        """Return the work with how long the oldest of each was seen to wait, which is no longer than it did."""
        now_s = self._clock.monotonic()
        return [msgspec.structs.replace(work, oldest_s=self._ages.of(work, now_s)) for work in found]

    def _demands(self, served: Served) -> list[Demand]:
        others = [beat for beat in self._alive() if beat.group != self.id and beat.status == "ready"]
        demands = []
        for work in self.backlog:
            slots = served.capabilities.get(work.capability) or _slots_of(work.capability, served)
            elsewhere = sum(load.slots for beat in others for load in beat.capabilities if load.name == work.capability)
            demands.append(
                Demand(
                    name=work.capability,
                    load=work.load,
                    slots=slots,
                    elsewhere=0 if work.is_paused else elsewhere,
                    oldest_s=work.oldest_s,
                )
            )
        for kind in served.actors:
            busy = sum(load.waiting for beat in self._alive() for load in beat.actors if load.kind == kind)
            hosts = sum(any(load.kind == kind for load in beat.actors) for beat in others)
            demands.append(Demand(name=kind, load=busy, slots=served.turns, elsewhere=hosts * served.turns))
        return demands

    def _alive(self) -> list[Beat]:
        oldest_s = self._clock.monotonic() - _PEER_ALIVE_S
        return [beat for beat in self._roster.alive if self._roster.heard_at[beat.worker] >= oldest_s]

    def _busy(self, child: Child) -> int:
        """Return how much a child runs: the idle ones leave first, those that do not serve yet before them."""
        beat = next((beat for beat in self._alive() if beat.pid == child.pid and beat.group == self.id), None)
        if beat is None or not child.is_ready:
            return -1
        return sum(load.busy + load.unsettled for load in beat.capabilities) + sum(a.running for a in beat.actors)

    # --- orders

    def _on_order(self, bus: Bus, message: Message) -> None:
        try:
            problem = self._obey(decode_order(message.data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            problem = f"not an order: {error}"
        body = {"group": self.id, "error": problem} if problem else {"group": self.id, "ok": True}
        if message.reply:
            task = asyncio.create_task(self._answer(bus, message.reply, msgspec.json.encode(body)), name="group-reply")
            self._replies.add(task)
            task.add_done_callback(self._replies.discard)

    async def _answer(self, bus: Bus, subject: str, data: bytes) -> None:
        try:
            await bus.publish(subject, data)
        except BusError as error:
            self._complain(error.code, str(error))

    def _obey(self, order: Order) -> str | None:
        """Do what is ordered; return why not, or None."""
        match order.op:
            case "drain":
                self._processes.stop()
            case "stop":
                self._processes.stop()
                self._processes.stop()
            case "scale":
                return self._resize(order)
            case _:
                return "orders to a group are drain, stop, and scale"
        return None

    def _resize(self, order: Order) -> str | None:
        scaling = self._scaling
        if scaling is None:
            if order.processes is None or not 0 <= order.processes <= MAX_PROCESSES:
                return f"it has a fixed size: say how many processes, 0 to {MAX_PROCESSES}"
            self._why = "by order"
            self._processes.resize(order.processes, first=self._busy)
            return None
        if order.processes is not None:
            return f"it scales itself between {scaling.rules.min} and {scaling.rules.max}: give it other bounds"
        least = scaling.rules.min if order.min is None else order.min
        most = scaling.rules.max if order.max is None else order.max
        if not 0 <= least <= most <= MAX_PROCESSES or most < 1:
            return f"its bounds would be {least} and {most}: take 0 <= min <= max, and 1 <= max <= {MAX_PROCESSES}"
        if scaling.served.actors and least < 1:
            return "it hosts actors and keeps one process: nobody would hear an ask"
        rules = msgspec.structs.replace(scaling.rules, min=least, max=most)
        self._scaling = msgspec.structs.replace(scaling, rules=rules)
        return None

    # --- what it says

    async def _say(self, bus: Bus, *, is_last: bool = False) -> None:
        try:
            await bus.publish(subjects.group(self.id), msgspec.json.encode(self.beat(is_last=is_last)))
            if is_last:
                await bus.flush(timeout_s=EVERY_S)
        except BusError as error:
            self._complain(error.code, str(error))

    def beat(self, *, is_last: bool = False) -> GroupBeat:
        """Return how the group is now."""
        scaling = self._scaling
        ours = [beat for beat in self._alive() if beat.group == self.id]
        offered = {load.name for beat in ours for load in beat.capabilities} | set(self._pools)
        hosted = {load.kind for beat in ours for load in beat.actors}
        if scaling is not None:
            offered |= set(scaling.served.capabilities)
            hosted |= set(scaling.served.actors)
        return GroupBeat(
            v=1,
            group=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            status="stopped" if is_last else "draining" if self._processes.is_stopping else "ready",
            started_at=self._started_at,
            at=self._clock.now(),
            labels=self._labels,
            wanted=self._processes.wanted,
            processes=[_state(child) for _, child in sorted(self._processes.children.items())],
            bounds=Bounds(min=scaling.rules.min, max=scaling.rules.max) if scaling is not None else None,
            why=self._why,
            capabilities=sorted(offered),
            actors=sorted(hosted),
            backlog=self.backlog,
        )


def _state(child: Child) -> ProcessState:
    status: ProcessStatus = "leaving" if child.is_leaving else "ready" if child.is_ready else "starting"
    return ProcessState(slot=child.slot, pid=child.pid, status=status)


def _slots_of(pool: str, served: Served) -> int:
    """Return the slots of a pool by label: those of its capability, which it shares."""
    return served.capabilities.get(label_pools.split(pool)[0], 1)
