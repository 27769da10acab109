"""The actors of one worker: which partitions it owns, taking them over, handing them on, and letting go at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec.structs import replace

from callboard.runtime import events, logs, subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor import ending, guard, placement
from callboard.runtime.actor.activation import Activation
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.asks import AskServer
from callboard.runtime.actor.commit import TurnCommitter
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.fleet import Fleet
from callboard.runtime.actor.held import FREED, Held
from callboard.runtime.actor.liveness import MAX_ECHO_GAP_S, Liveness
from callboard.runtime.actor.load import loads_of
from callboard.runtime.actor.orders import OrderServer
from callboard.runtime.actor.owners import CURSORS, Owners, Place, decoded
from callboard.runtime.actor.partition import Partition
from callboard.runtime.actor.pinger import Pinger
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.services import ActorRules, Services, alone
from callboard.runtime.actor.shutdown import Drain
from callboard.runtime.actor.upkeep import Upkeep
from callboard.runtime.beat import ActorLoad, Beat
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Message, Subscription, Write
from callboard.runtime.client import Client
from callboard.runtime.clock import Clock
from callboard.runtime.control import Accusation, decode_death
from callboard.runtime.errors import BusError, DecodeError, TopologyError

_log = logs.get_logger(__name__)

LOOK_EVERY_S = 0.25
# a thread starts only when no idle one is left
MAX_THREADS = 1024


class ActorHost:
    """Owns its share of the partitions of its types, for as long as the worker lives.

    Attributes:
        types: By name.
        partitions: Those that we own.
        held: Actors of partitions that went to others in mid-turn.
        fleet: The other hosts.
        liveness: Who is alive.
        takeovers: Partitions taken from the dead.
        unplaced: Why partitions could not be taken or handed on at the last look; None when they could.
    """

    def __init__(
        self,
        types: Sequence[ActorType],
        *,
        worker: str,
        bus: Bus,
        clock: Clock,
        rules: ActorRules,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None] | None],
        client: Client | None = None,
    ) -> None:
        """Prepare; ``run`` does the work."""
        self.types = {kind.name: kind for kind in types}
        self.partitions: dict[Place, Partition] = {}
        self.fleet = Fleet(worker)
        self.takeovers = 0
        self.unplaced: str | None = None
        self.liveness = Liveness(worker, now_s=clock.monotonic())
        self._worker = worker
        self._spawn = spawn
        self._tasks: set[asyncio.Task[None]] = set()
        self._bus = bus
        self._clock = clock
        self._owners = Owners(bus, worker)
        self._committer = TurnCommitter(bus, clock=clock)
        self.services = Services(
            worker=worker,
            bus=bus,
            clock=clock,
            committer=self._committer,
            blobs=BlobStore(bus),
            client=client or Client(bus, clock=clock),
            rules=rules,
            spawn=self._start,
            slots=asyncio.Semaphore(rules.turns),
            echo_age_s=lambda: self.liveness.echo_age_s(clock.monotonic()),
            executor=ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="cb-actor"),
            stays=self.fleet.stays,
        )
        self.held = Held(self.services, self.partitions, self.liveness)
        self._upkeep = Upkeep(self)
        self._look = asyncio.Event()
        self._is_draining = False
        self._is_over = False
        self._moving = asyncio.Lock()
        self._subscriptions: list[Subscription] = []
        self._asks = AskServer(self)
        self._orders = OrderServer(self)

    # --- life

    async def run(self, opened: Callable[[], None]) -> None:
        """Own, take over and hand on until cancelled; ``opened`` is called once when it takes mail.

        Raises:
            TopologyError: If the actors' stream is missing, or is deleted meanwhile.
        """
        if await self._bus.stream_info(subjects.ACTORS) is None:
            message = f"stream {subjects.ACTORS} is missing: run 'callboard provision'"
            raise TopologyError(message)
        self._bus.on_reconnect(self.doubt)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._committer.run(), name="turn-committer")
            group.create_task(Pinger(self._bus, self.liveness, clock=self._clock, me=self._worker).run(), name="pinger")
            await self._listen()
            await self._asks.open()
            await self._orders.open()
            group.create_task(self._upkeep.keep_cursors(), name="cursors")
            group.create_task(self._upkeep.sweep(), name="sweeper")
            group.create_task(guard.watch(self._bus, clock=self._clock, known_seq=self._known_seq), name="stream-guard")
            await self._place()
            opened()
            try:
                while True:
                    await self._wait()
                    await self._place()
            finally:
                for subscription in self._subscriptions:
                    await subscription.close()
                if self.services.executor is not None:
                    self.services.executor.shutdown(wait=False, cancel_futures=True)

    def _known_seq(self) -> int:
        return max((partition.cursor_seq for partition in self.partitions.values()), default=0)

    async def drain(self, drain: Drain) -> None:
        """Hand everything on: idle actors at once, those in mid-turn when done or stopped by ``drain``."""
        self._is_draining = True
        self.services.drain = drain
        await self._asks.close()
        ending.tell(self._running())
        for partition in self.partitions.values():
            partition.leave()
        ending.decide(drain, self._running())
        await self._place()
        for partition in self.partitions.values():
            partition.leave()
        while self._running() and not drain.is_ended:
            ending.decide(drain, self._running())
            await self._clock.sleep(LOOK_EVERY_S / 5)
        await self._leave_rest()
        await self._orders.close()
        while self._tasks and not drain.is_ended:
            await self._clock.sleep(LOOK_EVERY_S / 5)
        # a hook that never ends, say
        for task in self._tasks:
            task.cancel()

    def swap(self, types: Sequence[ActorType]) -> None:
        """Use new classes of the same names from the next turn on: state and mail stay, instances are made anew."""
        for kind in types:
            self.types[kind.name] = kind
        for partition in self.partitions.values():
            kind = self.types[partition.kind.name]
            partition.kind = kind
            for activation in partition.activations.values():
                activation.use(kind)
        self._look.set()

    def _start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Start a task whose error is its own: it ends neither its neighbours nor the worker."""
        task = self._spawn(alone(coroutine, name), name)
        if task is None:
            coroutine.close()
            return None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # one that is cancelled before it began is never awaited
        task.add_done_callback(lambda _: coroutine.close())
        return task

    # --- what it hears

    def heard(self, beat: Beat, *, status_left: bool = False) -> None:
        """Take in a worker's beat, our own too."""
        now_s = self._clock.monotonic()
        if status_left or beat.status == "stopped":
            self.liveness.left(beat.worker, now_s)
            self.fleet.left(beat.worker)
            self._look.set()
            return
        if beat.worker == self._worker and self.liveness.echo_age_s(now_s) > MAX_ECHO_GAP_S:
            # stopped or cut off, perhaps for longer than a death takes; from here on the echo alone looks well again
            self._doubt_all()
        self.liveness.heard(beat.worker, now_s, server=beat.server, host=beat.host, pid=beat.pid)
        if beat.worker == self._worker:
            return
        if self.fleet.heard(beat, self.types):
            self._look.set()

    def load(self) -> list[ActorLoad]:
        """Return what the beat says of our actors; called from the keeper's thread, reads plain values only."""
        return loads_of(list(self.types.values()), self.partitions, self.services)

    def problem(self) -> str | None:
        """Return why mail cannot be read now, or None."""
        now_s = self._clock.monotonic()
        for (kind, number), partition in self.partitions.items():
            found = partition.problem(now_s)
            if found is not None:
                return f"partition {number} of {kind} cannot be read: {found}"
        return self.unplaced

    def find(self, kind: str, key: str) -> Partition | None:
        """Return the partition of an actor if we own it."""
        number = Address(kind, key).partition(self.services.rules.partitions)
        return self.partitions.get((kind, number))

    def find_held(self, kind: str, key: str) -> Activation | None:
        """Return an actor that we still have in mid-turn although its partition is another's."""
        return self.held.activations.get((kind, Address(kind, key).partition(self.services.rules.partitions), key))

    def doubt(self) -> None:
        """Take nothing we knew for granted: our link was away, or this process stood still.

        What comes in now, our own beats among it, may be old, and our partitions somebody else's.
        """
        self.liveness.reconnected(self._clock.monotonic())
        self._doubt_all()

    def _doubt_all(self) -> None:
        for partition in self.partitions.values():
            partition.doubt()
        self.held.doubt()
        self._owners.doubt()

    async def _listen(self) -> None:
        self._subscriptions.append(await self._bus.subscribe(CURSORS, self._on_cursor))
        self._subscriptions.append(await self._bus.subscribe(FREED, self.held.hear))
        self._subscriptions.append(await self._bus.subscribe(subjects.CTL_DEAD, self._on_death))

    def _on_cursor(self, message: Message) -> None:
        _, _, kind, number = message.subject.split(".")
        if not number.isdecimal():
            return
        place = (kind, int(number))
        try:
            found = cursors.decode(message.data)
        except DecodeError:
            return
        self.held.disown(place, found)
        if kind in self.types and self._owners.hear(place, found):
            self._look.set()

    def _on_death(self, message: Message) -> None:
        """Hear of a death: a parent's word counts, another worker's makes us look for ourselves."""
        now_s = self._clock.monotonic()
        try:
            death = decode_death(message.data)
        except DecodeError:
            return
        if isinstance(death, Accusation):
            self.liveness.accused(death.worker, now_s)
            return
        self.liveness.ended(death.host, death.pid, now_s)
        self._look.set()

    # --- who owns what

    async def _wait(self) -> None:
        self._look.clear()
        sleeper = asyncio.ensure_future(self._clock.sleep(LOOK_EVERY_S))
        waiter = asyncio.ensure_future(self._look.wait())
        try:
            await asyncio.wait((sleeper, waiter), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            waiter.cancel()

    async def _place(self) -> None:
        """Bring what we own in line with who is alive."""
        self.held.free_from_dead(self._clock.monotonic())
        # one at a time: a drain begins while this is under way
        async with self._moving:
            try:
                for place, found in await self._owners.read(self.types, self._clock.monotonic()):
                    self.held.disown(place, found)
                if self._is_draining:
                    await self._hand_on()
                    return
                for kind in list(self.types.values()):
                    await self._place_type(kind)
                self.unplaced = None
            except BusError as error:
                self.unplaced = f"partitions cannot be placed: {error}"
                _log.debug(events.PARTITION_UNPLACED, code=error.code, message=str(error))

    async def _hand_on(self) -> None:
        """Give everything to others, also what is handed to us, even when we are done: nobody else may take that."""
        for kind in self.types:
            for number in self.types[kind].numbers(self.services.rules.partitions):
                heir = self._heir(kind, number)
                owned = self.partitions.get((kind, number))
                if heir is not None and owned is not None and not self._is_over:
                    await self._hand_over(owned, heir)
                elif heir is not None and self._owners.is_ours((kind, number)):
                    await self._pass_on(kind, number, heir)

    async def _place_type(self, kind: ActorType) -> None:
        hosts = self.fleet.candidates(kind, self.liveness.live(self._clock.monotonic()))
        wanted = placement.assign(kind.name, self.services.rules.partitions, sorted(hosts))
        for number in kind.numbers(self.services.rules.partitions):
            place = (kind.name, number)
            owned = self.partitions.get(place)
            owner = wanted.get(number)
            if owned is not None:
                if self._is_draining:
                    # what is left goes to others in the next round
                    return
                if owner is not None and owner != self._worker:
                    await self._hand_over(owned, owner)
                elif owned.is_deaf:
                    await owned.go_on()
            elif not self._is_draining and (owner == self._worker or self._owners.is_ours(place)):
                # one that was handed to us is taken even when it should go on to another: nobody else may take it
                await self._take_if_free(kind, number)

    def _heir(self, kind: str, number: int) -> str | None:
        return self.fleet.heir(self.types[kind], number, self.liveness.live(self._clock.monotonic()))

    async def _take_if_free(self, kind: ActorType, number: int) -> None:
        known = self._owners.known((kind.name, number))
        now_s = self._clock.monotonic()
        is_free = known.owner in ("", self._worker) or self.liveness.is_dead(known.owner, now_s)
        if is_free:
            await self._take(kind, number, began_s=now_s)

    async def _take(self, kind: ActorType, number: int, *, began_s: float) -> None:
        """Become the owner, against the record that stands at the leader."""
        subject = subjects.cursor(kind.name, number)
        stored = await self._bus.get_last(subjects.ACTORS, subject, from_leader=True)
        found = decoded(subject, stored)
        if found is None:
            return
        self._owners.learn((kind.name, number), found)
        now_s = self._clock.monotonic()
        is_handed = found.owner == self._worker
        is_from_dead = found.owner not in ("", self._worker)
        if is_from_dead and not self.liveness.is_dead(found.owner, now_s):
            return
        info = await self._bus.stream_info(subjects.ACTORS)
        if info is None:
            return
        if found.upto > info.last_seq:
            text = f"the cursor stands at {found.upto}, the stream ends at {info.last_seq}: was it restored?"
            _log.error(events.PARTITION_UNPLACED, code=TopologyError.code, message=f"{subject}: {text}")
            found = replace(found, upto=info.last_seq)
        held = {key: worker for key, worker in found.held.items() if self._still_holds(worker, now_s)}
        pending = {key: found.pending.get(key, found.upto) for key in {*found.pending, *held}}
        partition = Partition(
            self.services,
            kind,
            number,
            cursor=replace(found, held=held, pending=pending),
            cursor_seq=stored.seq if stored is not None else 0,
            taken_at=info.last_seq,
            is_from_dead=is_from_dead or bool(found.held.keys() - held.keys()),
            former=found.owner if is_from_dead else next(iter(found.held.values()), ""),
            on_lost=self._lost,
            on_settled=self._settled,
        )
        # where another holds an actor it hears of this, and says if that has ended meanwhile
        if not is_handed or found.held or not found.epoch:
            wanted = replace(partition.cursor, epoch=found.epoch + 1, owner=self._worker)
            if not await partition.write(wanted):
                if is_from_dead and partition.lost_to == found.owner:
                    # it has written meanwhile: it lives, and its beats are late
                    self.liveness.pinged(found.owner, self._clock.monotonic(), answered=True)
                return
        self._owners.learn((kind.name, number), partition.cursor)
        self.held.adopt(partition)
        self.partitions[kind.name, number] = partition
        await partition.open(is_doubtful=self._clock.monotonic() - began_s > 4 * LOOK_EVERY_S)
        self._taken(partition, from_worker=found.owner, is_from_dead=is_from_dead)

    def _taken(self, partition: Partition, *, from_worker: str, is_from_dead: bool) -> None:
        self.takeovers += is_from_dead
        _log.info(
            events.PARTITION_TAKEN,
            worker=self._worker,
            type=partition.kind.name,
            partition=partition.number,
            epoch=partition.epoch,
            from_worker=from_worker,
            is_from_dead=is_from_dead,
            pending=len(partition.cursor.pending),
        )

    def _still_holds(self, worker: str, now_s: float) -> bool:
        return worker == self._worker or not self.liveness.is_dead(worker, now_s)

    async def _pass_on(self, kind: str, number: int, to: str) -> None:
        """Give a partition that was handed to us and never taken to another worker, as it stands."""
        subject = subjects.cursor(kind, number)
        stored = await self._bus.get_last(subjects.ACTORS, subject, from_leader=True)
        found = decoded(subject, stored)
        if stored is None or found is None or found.owner != self._worker:
            self._owners.doubt()
            return
        wanted = replace(found, epoch=found.epoch + 1, owner=to)
        await self._bus.store(Write(subject, cursors.encode(wanted), header.build(expected_seq=stored.seq)))
        self._owners.learn((kind, number), wanted)

    async def _hand_over(self, partition: Partition, to: str) -> None:
        """Give a partition to another worker; actors in mid-turn stay until they are done."""
        await partition.close()
        partition.leave()
        held = {key: self._worker for key, activation in partition.activations.items() if activation.is_busy}
        wanted = partition.next_cursor(epoch=partition.epoch + 1, owner=to, held=held)
        try:
            is_written = await partition.write(wanted)
        except BusError:
            # nobody knows what stands, or will: nothing begins here until another write has gone through
            partition.is_adrift = True
            raise
        if not is_written:
            partition.doubt()
            await self._go_on(partition)
            return
        partition.is_handed = True
        place = (partition.kind.name, partition.number)
        self.partitions.pop(place, None)
        self._upkeep.forget(place)
        self._owners.learn(place, partition.cursor)
        self.held.keep(partition, held)
        for activation in partition.activations.values():
            if not activation.is_busy:
                _ = self.services.spawn(activation.runner.instance.end(), "actor-end")
        _log.info(
            events.PARTITION_HANDED_OVER,
            worker=self._worker,
            type=place[0],
            partition=place[1],
            epoch=wanted.epoch,
            to=to,
            held=len(held),
        )

    async def _go_on(self, partition: Partition) -> None:
        if not partition.is_lost:
            await partition.go_on()

    async def _leave_rest(self) -> None:
        """Leave the partitions that have no heir: whoever comes next finds everything as it stands."""
        async with self._moving:
            self._is_over = True
            try:
                for partition in list(self.partitions.values()):
                    await self._give_up(partition)
            except BusError as error:
                # the others would fare no better, each after its time
                _log.warning(events.PARTITION_UNPLACED, code=error.code, message=str(error))

    async def _give_up(self, partition: Partition) -> None:
        await partition.close()
        partition.leave()
        for activation in partition.activations.values():
            _ = self.services.spawn(activation.runner.instance.end(), "actor-end")
        # what would not end in time runs until this process is gone
        held = {key: self._worker for key, activation in partition.activations.items() if activation.is_busy}
        if await partition.write(partition.next_cursor(epoch=partition.epoch + 1, owner="", held=held)):
            partition.is_handed = True
            self.partitions.pop((partition.kind.name, partition.number), None)

    def _lost(self, partition: Partition) -> None:
        place = (partition.kind.name, partition.number)
        if self.partitions.get(place) is partition:
            del self.partitions[place]
            self._upkeep.forget(place)
            self.held.keep(partition, partition.activations)
        _ = self.services.spawn(partition.close(), "partition-close")
        self._owners.doubt()
        self._look.set()

    def _settled(self, partition: Partition, activation: Staged) -> None:
        self.held.settled((partition.kind.name, partition.number), activation)

    def _running(self) -> list[Activation]:
        mine = [a for p in self.partitions.values() for a in p.activations.values() if a.is_busy]
        return [*mine, *self.held.activations.values()]
