"""A worker: one process that serves capabilities with pools of slots."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec

from callboard.runtime import crash, ids, patience, subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.definition import ActorType, with_companions
from callboard.runtime.actor.hosting import ActorHost
from callboard.runtime.actor.offer import with_offers
from callboard.runtime.actor.shutdown import END_WAIT_S, Drain
from callboard.runtime.beat import Beat, WorkerStatus, encode_beat, heard
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus, KvEntry, Message, Subscription
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.capability import Capability, served
from callboard.runtime.claim import Claim
from callboard.runtime.client import Client
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.commit import Committer
from callboard.runtime.control import CONFIG_BUCKET, PAUSE_PREFIX, answer, decode_cancel, decode_order
from callboard.runtime.errors import BusError, CallboardError, PermissionDeniedError
from callboard.runtime.label_pools import LabelPools
from callboard.runtime.lease import KeeperThread, LeaseKeeper
from callboard.runtime.pool import Pool
from callboard.runtime.pool_set import WRONG_ORDER, PoolSet
from callboard.runtime.provide import ensure_consumers, ensure_streams
from callboard.runtime.questions import Questions
from callboard.runtime.registry import house, micro
from callboard.runtime.registry.actor import MAIN, TYPE, Registry
from callboard.runtime.registry.handle import finder_now
from callboard.runtime.settle import Settler
from callboard.runtime.version import VERSION
from callboard.runtime.view import view_of
from callboard.runtime.vitals import TICK_S, Vitals
from callboard.runtime.worker_options import WorkerOptions

__all__ = ["Worker", "WorkerOptions"]

PEER_ALIVE_S = 3.0
# Two beats: whoever is alive was heard by then.
KNOW_PEERS_S = 2.0


class Worker:
    """Serves capabilities until told to stop. Make one per process and ``await run()``.

    Attributes:
        id: Its name in beats, records and orders.
        pools: By capability.
        house: Its part of the registry; None while it hosts none.
        label_pools: Follows those of its pools that ask for labels; None before it runs.
        status: starting, ready, deaf (connected and not fetching), draining, stopped.
        reconnects: How often its link to the broker came back.
        restarts: How often its parent has started a process anew in its place.
        vitals: Whether it fetches, and what stands in its way.
    """

    label_pools: LabelPools | None = None
    _pool_set: PoolSet | None = None

    def __init__(
        self,
        capabilities: Sequence[Capability[..., Any]],
        connect: Callable[[str], Awaitable[Bus]],
        *,
        actors: Sequence[type[Actor]] = (),
        options: WorkerOptions | None = None,
        clock: Clock = SYSTEM_CLOCK,
        worker_id: str | None = None,
        keeper_in_thread: bool = True,
    ) -> None:
        """Prepare.

        Args:
            capabilities: What to serve.
            connect: Opens a connection under the given name; called twice, once in the keeper's thread.
            actors: Classes of the actors to host.
            options: Numbers.
            clock: Time.
            worker_id: Its name; made from host, process and chance when None.
            keeper_in_thread: False runs the lease keeper on this loop; only for buses without sockets.

        Raises:
            ModuleLoadError: If there is nothing to serve.
            ConfigError: If an annotation of a capability cannot be decoded into.
            ActorDefinitionError: If an actor's class cannot be used.
        """
        self.options = options or WorkerOptions()
        hosted = with_companions(actors) if self.options.hosts_companions else actors
        self._types = [ActorType.of(cls) for cls in hosted]
        house.check_names(self._types)
        for kind in self._types:
            kind.prepare()
        bears, slots = self.options.labels, self.options.concurrency
        has_more = bool(self._types) or self.options.only_registry
        wanted = served(capabilities, self.options.pool, has_actors=has_more, labels=bears)
        wanted = with_offers(wanted, self._types, slots=slots, stage=lambda: self.host, clock=clock)
        for capability in wanted:
            capability.prepare()
        self.id = worker_id or ids.new_worker_id()
        self.status: WorkerStatus = "starting"
        self.pools: dict[str, Pool] = {}
        self.house: house.House | None = None
        self._capabilities = wanted
        self._connect = connect
        self._clock = clock
        self._keeper_in_thread = keeper_in_thread
        self._peers: dict[str, float] = {}
        self._stop = asyncio.Event()
        self._stop_now = self._is_retired = False
        self._hurry_s = math.inf
        self.host: ActorHost | None = None
        self.reconnects = self.restarts = 0
        self._started_at = clock.now()
        self._subscriptions: list[Subscription] = []
        self._group: asyncio.TaskGroup | None = None
        self._listening_s = clock.monotonic()
        self.keeper = LeaseKeeper(
            self.id,
            ack_wait_s=self.options.ack_wait_s,
            extend_every_s=self.options.extend_every_s,
            max_block_s=self.options.max_block_s,
            clock=clock,
            beat=self.beat,
        )
        self.vitals = Vitals(self, clock=clock, max_block_s=self.options.max_block_s)

    # --- life

    def stop(self, *, now: bool = False) -> None:
        """Ask it to drain and end as ``options.shutdown`` says; with ``now`` at once. May be called more than once."""
        self._stop_now = self._stop_now or now
        if self._is_retired:
            self._hurry_s = min(self._hurry_s, self._clock.monotonic() + self.options.drain_grace_s)
        self._stop.set()

    @property
    def offers(self) -> dict[str, int]:
        """What it serves, with the slots of each; known before it runs."""
        return {each.name: each.concurrency or self.options.concurrency for each in self._capabilities}

    def retire(self) -> None:
        """Ask it to take nothing new, finish what runs however long that takes, and end; ``stop`` hurries it."""
        if not self._stop.is_set():
            self._is_retired = True
            self._stop.set()

    async def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Serve until ``stop``; returns when everything is settled or handed back.

        Raises:
            BusConnectError: If the broker cannot be reached at the start.
            TopologyError: If its streams are missing.
            CallboardError: If the worker went deaf and could not recover, or a thread could not be stopped.
        """
        bus = await self._connect(self.id)
        bus.on_reconnect(self._count_reconnect)
        try:
            await self._serve(bus, on_ready)
        finally:
            self.status = "stopped"
            await bus.close()
        if self.vitals.stuck is not None:
            raise self.vitals.stuck

    async def _serve(self, bus: Bus, on_ready: Callable[[], None] | None) -> None:
        await ensure_streams(bus)
        await ensure_consumers(bus, (each.name for each in self._capabilities), self.options)
        self.client = Client(bus, clock=self._clock)
        # pools run their handlers in the context that they are made in
        finder_now.set(self.client)
        thread = KeeperThread(self.keeper, lambda: self._connect(f"{self.id}-keeper"))
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self.keeper.loop_ticked_at = self._clock.monotonic()
                local_stop = asyncio.Event()
                if self._keeper_in_thread:
                    self.vitals.thread = thread
                    await thread.start()
                else:
                    self._fire(self.keeper.serve(bus, stop=local_stop.is_set), "keeper")
                background = [group.create_task(self.vitals.run(bus), name="worker-tick")]
                try:
                    background.append(group.create_task(self._open(bus).run(), name="committer"))
                    await self._listen(bus)
                    for pool in self.pools.values():
                        await pool.open()
                    if self._pool_set is not None and self.pools:
                        background.append(await self._follow_labels(bus, self._pool_set))
                    await self._open_registry(bus)
                    if self._types:
                        background.append(await self._host_actors(bus, group))
                    self.status = "ready"
                    if on_ready is not None:
                        on_ready()
                    await self._stop.wait()
                    await self._drain(bus)
                finally:
                    local_stop.set()
                    await self._close(background)
        except BaseExceptionGroup as errors:
            raise _first(errors) from errors
        finally:
            await thread.stop()

    async def _close(self, background: Sequence[asyncio.Task[None]]) -> None:
        for pool in self.pools.values():
            pool.shut()
        if self.house is not None:
            await self.house.close()
        await self.client.close()
        for task in background:
            task.cancel()
        for subscription in self._subscriptions:
            await subscription.close()

    def _open(self, bus: Bus) -> Committer:
        clock, options, keeper = self._clock, self.options, self.keeper
        committer = Committer(bus, stream=subjects.LEDGER, clock=clock)
        self._committer = committer
        blobs = BlobStore(bus)
        loop = asyncio.get_running_loop()
        rules = options.settle_rules
        settler = Settler(
            bus, committer, keeper, blobs, clock=clock, told=self, spawn=self._fire, soon=loop.call_soon, rules=rules
        )
        questions = Questions(bus, keeper, clock=clock, holds_wait_s=options.holds_wait_s, peers=self._known_peers)
        self._pool_set = PoolSet(
            self._capabilities,
            make=Pool if options.seat is None else options.seat.pool,
            concurrency=options.concurrency,
            bus=bus,
            settler=settler,
            committer=committer,
            keeper=keeper,
            questions=questions,
            blobs=blobs,
            clock=clock,
            rules=options.pool_rules,
            spawn=self._spawn,
        )
        self.pools = self._pool_set.pools
        return committer

    async def _open_registry(self, bus: Bus) -> None:
        """Take part in hosting the registry, or at least in entering the agents that are hosted here."""
        hosts, enters = self.options.hosts_registry, self.options.enters_agents and bool(self._types)
        if not (hosts or enters) or not await house.is_possible(bus, self.id, must=self.options.only_registry):
            return
        self.house = house.House(bus, clock=self._clock, worker=self.id, spawn=self._spawn, is_dead=self._is_dead)
        await self.house.open()
        if hosts:
            self._types.append(ActorType.of(Registry))
        self.client.lookups.use(self.house.cache)

    def _is_dead(self, worker: str) -> bool:
        return self.host is not None and self.host.liveness.is_dead(worker, self._clock.monotonic())

    async def _follow_labels(self, bus: Bus, pools: PoolSet) -> asyncio.Task[None]:
        """Open the pools by label that have work, now and later."""
        self.label_pools = LabelPools(
            bus,
            frozenset(self.pools),
            labels=self.options.labels,
            open_pool=partial(pools.open_by_label, numbers=self.options),
            clock=self._clock,
        )
        await self.label_pools.open()
        self._subscriptions.append(self.label_pools)
        return asyncio.create_task(self.label_pools.run(), name="label-pools")

    async def _host_actors(self, bus: Bus, group: asyncio.TaskGroup) -> asyncio.Task[None]:
        """Start the actors' side and wait until it takes mail."""
        self.host = ActorHost(
            self._types,
            worker=self.id,
            bus=bus,
            clock=self._clock,
            rules=self.options.actor_rules,
            spawn=self._spawn,
            client=self.client,
        )
        self.host.services.enroller = self.house.enrol if self.house is not None else None
        opened = asyncio.Event()
        task = group.create_task(self.host.run(opened.set), name="actors")
        waiter = asyncio.create_task(opened.wait(), name="actors-opening")
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        return task

    async def _drain(self, bus: Bus) -> None:
        self.status = "draining"
        options = self.options
        drain = Drain(
            options.shutdown,
            clock=self._clock,
            configured_s=math.inf if self._is_retired else options.drain_grace_s,
            is_now=lambda: self._stop_now or self._clock.monotonic() >= self._hurry_s,
        )
        # the strategy is asked first: what is told that we stop may end while the pulls are being closed
        for pool in self.pools.values():
            pool.is_draining = True
            pool.stop_running("drain", which=partial(_must_end, drain))
        for pool in list(self.pools.values()):
            await pool.drain()
        if crash.point:
            crash.at("in-drain")
        actors = None
        if self.host is not None:
            actors = self._spawn(self._drain_actors(bus, self.host, drain), "actors-drain")
        while not all(pool.is_idle for pool in self.pools.values()):
            for pool in self.pools.values():
                pool.stop_running("drain", which=partial(_must_end, drain))
            if drain.is_over:
                break
            await self._clock.sleep(TICK_S)
        if actors is not None:
            await asyncio.wait([actors])
        # what was cancelled ends within a moment; a handler that will not end keeps its lease until the process is gone
        last_s = self._clock.monotonic() + END_WAIT_S
        while self.keeper.claims and not drain.is_ended and self._clock.monotonic() < last_s:
            await self._clock.sleep(TICK_S)
        if not self.keeper.claims:
            await self._committer.drain()
        self.status = "stopped"
        await bus.publish(subjects.beat(self.id), self.beat())
        with contextlib.suppress(PermissionDeniedError):
            await bus.flush(timeout_s=2.0)

    async def _drain_actors(self, bus: Bus, host: ActorHost, drain: Drain) -> None:
        with contextlib.suppress(BusError):
            # now, not with the next beat: whoever takes us for one that stays hands partitions back
            await bus.publish(subjects.beat(self.id), self.beat())
        await host.drain(drain)

    # --- what it hears

    async def _listen(self, bus: Bus) -> None:
        self._subscriptions.append(await bus.subscribe(subjects.BEAT_ALL, self._on_beat))
        self._subscriptions.append(await bus.subscribe(subjects.CTL_CANCEL, lambda m: self._on_cancel(bus, m)))
        self._subscriptions.append(await bus.subscribe(subjects.ctl_worker(self.id), lambda m: self._on_order(bus, m)))
        self._subscriptions.append(await micro.serve(bus, self._services, self._fire))
        self._listening_s = self._clock.monotonic()
        follow = partial(Bucket(bus, CONFIG_BUCKET).watch, PAUSE_PREFIX, self._on_pause)
        if self._pool_set is not None:
            await patience.outlast(self._pool_set.read_pauses, clock=self._clock, within_s=patience.START_S)
        self._subscriptions.append(await patience.outlast(follow, clock=self._clock, within_s=patience.START_S))

    def _on_pause(self, entry: KvEntry) -> None:
        pools = self._pool_set
        if pools is None:
            return
        for pool in pools.heard_pause(entry.key.removeprefix(PAUSE_PREFIX), is_paused=entry.data is not None):
            self._fire(pool.pause() if pools.is_paused(pool) else pool.resume(), "pool-pause")

    def _on_beat(self, message: Message) -> None:
        beat = heard(message)
        if beat is None:
            return
        if self.host is not None:
            self.host.heard(beat)
        if self.label_pools is not None:
            self.label_pools.hear(beat)
        for load in beat.capabilities:
            if load.name in self.pools:
                self.pools[load.name].doubt.heard(load.newest)
        if beat.worker == self.id:
            # our own comes once a second: time to forget the silent
            self._peers = {worker: self._peers[worker] for worker in self.peers()}
        elif beat.status == "stopped":
            self._peers.pop(beat.worker, None)
        else:
            self._peers[beat.worker] = self._clock.monotonic()

    def peers(self) -> frozenset[str]:
        """Return the other workers whose beats were heard within three seconds."""
        oldest_s = self._clock.monotonic() - PEER_ALIVE_S
        return frozenset(worker for worker, heard_s in self._peers.items() if heard_s >= oldest_s)

    def _known_peers(self) -> frozenset[str] | None:
        return self.peers() if self._clock.monotonic() - self._listening_s >= KNOW_PEERS_S else None

    def _on_cancel(self, bus: Bus, message: Message) -> None:
        try:
            request = decode_cancel(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        found = [pool.cancel(request.task, request.reason) for pool in self.pools.values()]
        if any(found):
            self._reply(bus, message, {"worker": self.id, "cancelled": True})

    def _on_order(self, bus: Bus, message: Message) -> None:
        try:
            order = decode_order(message.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._reply(bus, message, {"worker": self.id, "error": f"not an order: {error}"})
            return
        if order.op in ("drain", "stop"):
            self.stop(now=order.op == "stop")
        elif self._pool_set is None or order.op != "slots" or not self._pool_set.resize(order):
            self._reply(bus, message, {"worker": self.id, "error": WRONG_ORDER})
            return
        self._reply(bus, message, {"worker": self.id, "ok": True})

    def _services(self) -> list[micro.Service]:
        is_leader = self.host is not None and self.host.find(TYPE, MAIN) is not None
        started, labels = self._started_at, self.options.labels
        return micro.services(view_of(self), started=started, labels=labels, leads_registry=is_leader)

    def _reply(self, bus: Bus, message: Message, body: dict[str, object]) -> None:
        self._fire(answer(bus, message, body), "reply")

    def _count_reconnect(self) -> None:
        self.reconnects += 1

    # --- what it says

    def settled(self, claim: Claim, name: str) -> None:
        """Count the end of a claim."""
        self.pools[claim.capability].stats.endings[name] += 1

    def beat(self) -> bytes:
        """Return the present heartbeat; called from the keeper's thread, reads plain values only."""
        now_s, now = self._clock.monotonic(), self._clock.now()
        fetched_s = self.vitals.fetched_s
        return encode_beat(
            Beat(
                v=1,
                worker=self.id,
                host=socket.gethostname(),
                pid=os.getpid(),
                version=VERSION,
                status=self.status,
                started_at=self._started_at,
                at=now,
                fetched_at=None if fetched_s is None else now - timedelta(seconds=max(0.0, now_s - fetched_s)),
                labels=self.options.labels,
                group=self.options.group,
                capabilities=[pool.load() for pool in list(self.pools.values())],
                actors=self.host.load() if self.host is not None else [],
                server=self.keeper.server,
                restarts=self.restarts,
            )
        )

    def ready_problem(self) -> str | None:
        """Return why it is not ready, or None: ready means that the broker answered its pulls lately."""
        if self.status not in ("ready", "deaf"):
            return f"the worker is {self.status}"
        return self.vitals.problem

    @property
    def loop_lag_s(self) -> float:
        """How late its event loop was at the last tick, 20 times a second."""
        return self.vitals.loop_lag_s

    def stalled(self, now_s: float) -> None:
        """Hear that the loop stood still: what comes in now may have lain in the socket, and nobody was heard."""
        self.keeper.stalled_at = self._listening_s = now_s
        if self.host is not None:
            self.host.doubt()

    def _fire(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        # the task group owns it
        _ = self._spawn(coroutine, name)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        if self._group is None:
            message = "the worker does not run"
            raise CallboardError(message)
        try:
            return self._group.create_task(coroutine, name=name)
        except RuntimeError:
            # the worker is going down with an error: what it holds is taken over
            coroutine.close()
            return None


def _must_end(drain: Drain, claim: Claim) -> bool:
    # a task has no steps to stop between: `halt` lets it come to its end
    return drain.decide("task", claim.capability, claim.task_id) == "cancel"


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    for error in errors.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return errors
