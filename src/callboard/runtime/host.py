"""A worker in a process of its own: from ``Settings`` to a running ``Worker`` with signals, logs and health."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from callboard.runtime import config_here, endpoint, events, ids, limits, logs, subjects, tracing
from callboard.runtime.actor import shutdown
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.services import ActorRules
from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.base import Bus
from callboard.runtime.capability import DEFAULT_POOL, Capability
from callboard.runtime.client import Client
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import Settings
from callboard.runtime.errors import BusError, CallboardError, ConfigError, NoLeaderError
from callboard.runtime.fairness import Seat
from callboard.runtime.pool import PoolRules
from callboard.runtime.processes import RETIRE, tell_worn
from callboard.runtime.registry.handle import finder_now
from callboard.runtime.retry import RetryPolicy
from callboard.runtime.server_folder import DataFolder
from callboard.runtime.settle import SettleRules
from callboard.runtime.worker import Worker, WorkerOptions

T = TypeVar("T")
Connect = Callable[[str], Awaitable[Bus]]

TASK_STREAMS = (subjects.WORK, subjects.LATER, subjects.LEDGER, subjects.DEAD)
# after its parent's death a child has this long to hand its tasks back
ORPHAN_GRACE_S = 3.0
STUCK_GRACE_S = 2.0
# objects between two rounds of the garbage collector, and how many rounds of the younger ones pass without one of the
# older. Few: an actor that is forgotten is a circle of some 25 objects, and 6 KB that only a round of the oldest frees.
GC_EVERY_OBJECTS = 20_000
GC_OLDER_EVERY = (1, 1)
_PROVISION_AGAIN_S = 0.25

_log = logs.get_logger(__name__)
_bus_log = logs.get_logger("callboard.runtime.bus")
# the catalogue's levels; what is not named here is info
_BUS_LEVELS = {
    events.BUS_REPULLED: "debug",
    events.BUS_CLOSED: "debug",
    events.BUS_DISCONNECTED: "warning",
    events.BUS_DEAFENED: "warning",
    events.BUS_RECONNECT_FORCED: "warning",
    events.BUS_FAILED: "warning",
    events.BUS_REFUSED: "error",
}


def connector(settings: Settings) -> Connect:
    """Return the function that opens a connection under a name, as the settings say."""
    nats = settings.nats

    async def connect(name: str) -> Bus:
        # the adapter imports the client library: only who connects pays for it
        from callboard.runtime.bus import jetstream  # noqa: PLC0415

        return await jetstream.connect(
            [url.strip() for url in nats.url.split(",")],
            name=name,
            user=nats.user,
            password=nats.password.get_secret_value() if nats.password else None,
            token=nats.token.get_secret_value() if nats.token else None,
            nkey_seed=_seed(nats.nkey_seed_file),
            creds=_path(nats.creds_file),
            tls_ca=_path(nats.tls_ca_file),
            tls_cert=_path(nats.tls_cert_file),
            tls_key=_path(nats.tls_key_file),
            inbox_prefix=nats.inbox_prefix,
            is_guest=nats.is_guest,
            connect_deadline_s=nats.connect_deadline_s,
            on_event=_log_event,
        )

    return connect


async def provision_embedded(
    settings: Settings, *, store_bytes: int | None = None, patience_s: float = 0.0, clock: Clock = SYSTEM_CLOCK
) -> None:
    """Create the streams on the embedded server at ``nats.url``, as large as the disk of its data folder allows.

    When this returns the disk has their declarations, whatever the profile.

    Args:
        settings: All settings.
        store_bytes: What all servers of a cluster may store together, in place of the data folder's room.
        patience_s: How long a refusal is tried again: servers of a new cluster do not know each other at once.
        clock: Time.

    Raises:
        ServerStartError: If the disk has no room for streams.
        TopologyError: If what is there cannot be brought in line.
    """
    bus = await connector(settings)("provision")
    try:
        room = store_bytes or DataFolder(settings.server.data_dir).max_file_bytes(settings.server)
        fitting = topology.fit(settings.topology, store_bytes=room)
        wanted = topology.declared(fitting, audit=settings.actors.audit)
        deadline = clock.monotonic() + patience_s
        while True:
            try:
                await provision.apply(bus, await provision.plan(bus, wanted))
            except BusError:
                if clock.monotonic() > deadline:
                    raise
                await clock.sleep(_PROVISION_AGAIN_S)
            else:
                await asyncio.to_thread(DataFolder(settings.server.data_dir).flush)
                return
    finally:
        await bus.close()


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _seed(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8").strip()
    except OSError as error:
        message = f"nats.nkey_seed_file: {path} cannot be read: {error.strerror}"
        raise ConfigError(message) from error


def _log_event(event: str, fields: dict[str, object]) -> None:
    _bus_log.log(_BUS_LEVELS.get(event, "info"), event, **fields)


@asynccontextmanager
async def connect(
    url: str | None = None, *, name: str = "client", settings: Settings | None = None
) -> AsyncIterator[Client]:
    """Open a client for the time of a block.

    ``async with callboard.connect() as client: print(await client.call("hello", "world"))``

    Args:
        url: The server; None takes the one of the settings.
        name: What the server's monitoring calls us.
        settings: All settings; None loads them as commands do (file, environment).

    Raises:
        BusConnectError: If there is no server.
        BusAuthError: If it refuses us.
        ConfigError: If a setting is wrong.
    """
    loaded = settings or Settings.load(flags={"nats.url": url})
    if settings is not None and url is not None:
        loaded = settings.model_copy(update={"nats": settings.nats.model_copy(update={"url": url})})
    bus = await connector(loaded)(name)
    client = Client(bus, claim_check_bytes=int(loaded.work.claim_check_bytes))
    before = finder_now.get()
    finder_now.set(client)
    try:
        with tracing.running(loaded.trace):
            yield client
    finally:
        # not by the token: a block may end in another context than it began in
        finder_now.set(before)
        await client.close()
        await bus.close()


def worker_options(settings: Settings, *, group: str = "", only_registry: bool = False) -> WorkerOptions:
    """Return what a worker needs to know; ``group`` is the id of the parent that keeps it."""
    work, worker = settings.work, settings.worker
    return WorkerOptions(
        concurrency=worker.concurrency,
        pool=None if worker.pool == DEFAULT_POOL else worker.pool,
        labels=dict(worker.labels),
        group=group,
        ack_wait_s=work.ack_wait_s,
        extend_every_s=work.extend_every_s,
        max_ack_pending=work.max_ack_pending,
        max_block_s=worker.max_block_s,
        drain_grace_s=worker.drain_grace_s,
        shutdown=shutdown.named(worker.shutdown),
        holds_wait_s=work.holds_wait_s,
        pool_rules=PoolRules(crash_limit=work.crash_limit, quarantine_s=work.quarantine_s),
        actor_rules=actor_rules(settings),
        hosts_registry=settings.registry.host or only_registry,
        enters_agents=settings.registry.enter,
        only_registry=only_registry,
        hosts_companions=settings.actors.companions,
        settle_rules=SettleRules(
            schedule_over_s=work.retry_schedule_above_s, claim_check_bytes=int(work.claim_check_bytes)
        ),
    )


def actor_rules(settings: Settings) -> ActorRules:
    """Return the numbers that turns and partitions go by."""
    actors = settings.actors
    return ActorRules(
        partitions=settings.topology.partitions,
        turns=actors.turns,
        step_ttl_s=actors.step_ttl_s,
        event_ttl_s=actors.event_ttl_s,
        claim_check_bytes=int(settings.work.claim_check_bytes),
        idle_s=actors.idle_s,
        state_limit_bytes=int(actors.state_limit_bytes),
        retention_s=actors.retention_s,
        audit=actors.audit,
        audit_settle_s=actors.audit_settle_s,
    )


def use_retry(capabilities: Sequence[Capability[..., Any]], settings: Settings) -> None:
    """Give the configured retry policy to every capability that names none."""
    retry = settings.work.retry
    policy = RetryPolicy(
        attempts=retry.attempts,
        base_s=retry.base_s,
        factor=retry.factor,
        max_s=retry.max_s,
        jitter=min(retry.jitter, 0.99),
    )
    for capability in capabilities:
        if not capability.has_own_retry:
            capability.retry = policy


def use_limit(capabilities: Sequence[Capability[..., Any]], settings: Settings) -> None:
    """Let no run of a task last longer than ``worker.max_task_s``."""
    limit_s = settings.worker.max_task_s
    for capability in capabilities if limit_s else ():
        capability.timeout_s = min(limit_s, capability.timeout_s or limit_s)


def limits_of(settings: Settings) -> limits.Limits:
    """Return what a worker process may use."""
    worker = settings.worker
    return limits.Limits(
        memory_bytes=worker.max_memory_bytes,
        cpu_s=worker.max_cpu_s,
        open_files=worker.max_open_files,
        tasks=worker.recycle_tasks,
        rss_bytes=worker.recycle_rss_bytes,
    )


def configure_logs(settings: Settings, *, slot: int = 0) -> None:
    """Send logs where the settings say; each process of a group has a log file of its own."""
    file = settings.log.file
    if file is not None and slot:
        file = file.with_name(f"{file.stem}.{slot}{file.suffix}")
    logs.configure(level=settings.log.level, form=settings.log.format, file=file)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on uvloop where it is installed, else on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - costs a worker 20 ms and nobody else

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


def settle_memory() -> None:
    """Keep what is loaded out of the garbage collector's rounds, and have those come more rarely.

    For a process that has loaded all it will: what stands now is never collected. What a turn leaves is nearly never
    part of a circle, so that a round every 700 objects, the default, finds nothing to free. With 100 asks at once a
    host's CPU time for a stateful ask fell from 137 to 122 µs (``bench``, row j). What is let go of when it is
    older waits for 80,000 new objects, or until a quarter of what lives is new; with 8 million it looked like a leak
    (``bench.soak``).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_EVERY_OBJECTS, *GC_OLDER_EVERY)


async def run_worker(
    settings: Settings,
    capabilities: Sequence[Capability[..., Any]],
    *,
    actors: Sequence[type[Actor]] = (),
    on_ready: Callable[[Worker], None] | None = None,
    parent_fd: int | None = None,
    group: str = "",
    health_port: int | None = None,
    connect: Connect | None = None,
    on_signal: Callable[[], None] | None = None,
    seat: Seat | None = None,
    has_signals: bool = True,
    restarts: int = 0,
    only_registry: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT; the first drains, the second stops at once. Returns after a clean end.

    Args:
        settings: All settings.
        capabilities: What to serve.
        actors: Classes of the actors to host.
        on_ready: Called once, when it pulls.
        parent_fd: A pipe whose end means that the parent died: then it stops at once.
        group: Id of that parent, for beats.
        health_port: Port of the health endpoint in place of the setting's.
        connect: How to connect in place of the settings'; for tests.
        on_signal: Called at each signal, before the worker stops.
        seat: Its tenant's place, where one process works for several.
        has_signals: Whether signals stop it; else whoever runs it does by ``Worker.stop``.
        restarts: How often the parent has started a process anew in this one's place; beats tell it.
        only_registry: Host the registry, and nothing else.

    Raises:
        ModuleLoadError: If there is nothing to serve in the pool.
        BusConnectError: If there is no broker at the start.
        NoLeaderError: If its streams have no leader within ``nats.connect_deadline_s``.
        TopologyError: If its streams are missing or break a promise.
        PortInUseError: If the health port is taken.
    """
    use_retry(capabilities, settings)
    use_limit(capabilities, settings)
    links: list[Bus] = []
    open_bus = _verified(connect or connector(settings), links.append, patience_s=settings.nats.connect_deadline_s)
    options = replace(worker_options(settings, group=group, only_registry=only_registry), seat=seat)
    name = ids.new_worker_id(settings.worker.user)
    worker = Worker(capabilities, open_bus, actors=actors, options=options, worker_id=name)
    worker.restarts = restarts
    port = settings.worker.health_port if health_port is None else health_port

    watchers: list[asyncio.Task[None]] = []

    def ready() -> None:
        _log.info(events.WORKER_READIED, worker=worker.id, capabilities=sorted(worker.pools))
        if surveyor is not None:
            watchers.append(asyncio.create_task(surveyor.run(links[0]), name="host-survey"))
        if parent_fd is not None:
            watchers.append(asyncio.create_task(_watch_wear(worker, settings, parent_fd), name="host-wear"))
        if on_ready is not None:
            on_ready(worker)

    signals = _signals(worker, on_signal) if has_signals else contextlib.nullcontext()
    with signals, _lifeline(worker, parent_fd), tracing.running(settings.trace), config_here.using(settings):
        async with endpoint.serving(worker, settings, port=port) as surveyor:
            watchers.append(asyncio.create_task(_leave_stuck(worker), name="host-stuck"))
            try:
                await worker.run(ready)
            except CallboardError as error:
                _log.error(events.WORKER_FAILED, worker=worker.id, code=error.code)
                raise
            finally:
                for watcher in watchers:
                    watcher.cancel()
    _log.info(events.WORKER_STOPPED, worker=worker.id, exit_code=0)


def leave(status: int) -> None:
    """End the process with ``status`` without waiting for threads that still run a handler."""
    others = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon and t.is_alive()]
    if others:
        # the interpreter would join them, for ever if need be; their tasks are already in other hands
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


async def _watch_wear(worker: Worker, settings: Settings, parent_fd: int) -> None:
    """Ask the parent for a successor when this process has done or used enough."""

    def done() -> int:
        turns = worker.host.services.stats.values() if worker.host is not None else ()
        return sum(pool.stats.started for pool in worker.pools.values()) + sum(each.started for each in turns)

    def on_worn(why: str) -> None:
        _log.info(events.WORKER_WORN, worker=worker.id, why=why)
        tell_worn(parent_fd)

    await limits.watch(limits_of(settings), tasks=done, on_worn=on_worn)


async def _leave_stuck(worker: Worker) -> None:
    """End the process when the worker has drained and a handler in a thread, or one that swallows cancels, goes on.

    Nothing can stop such a handler but the end of the process; its lease ends with it and the task runs elsewhere.
    """
    while worker.status != "stopped":
        await SYSTEM_CLOCK.sleep(0.1)
    await SYSTEM_CLOCK.sleep(STUCK_GRACE_S)
    _log.error(events.WORKER_FAILED, worker=worker.id, code="stuck", message="a handler does not end; the process does")
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)


def _verified(connect: Connect, on_first: Callable[[Bus], None], *, patience_s: float) -> Connect:
    """Return ``connect`` with a look at the streams after the first time; without leaders it waits for them.

    ``on_first`` is given that first connection once it was looked at.
    """
    is_first = True

    def told(problem: str) -> None:
        _bus_log.info(events.BUS_WAITED, code=NoLeaderError.code, message=problem)

    async def verified(name: str) -> Bus:
        nonlocal is_first
        bus = await connect(name)
        if is_first:
            is_first = False
            try:
                await provision.await_leaders(bus, streams=TASK_STREAMS, within_s=patience_s, told=told)
                await provision.verify(bus, streams=TASK_STREAMS)
            except BaseException:
                await bus.close()
                raise
            on_first(bus)
        return bus

    return verified


@contextmanager
def _signals(worker: Worker, on_signal: Callable[[], None] | None) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if on_signal is not None:
            on_signal()
        _log.info(events.WORKER_DRAIN_BEGUN, worker=worker.id, now=count > 1, shutdown=worker.options.shutdown.name)
        worker.stop(now=count > 1)

    def retire() -> None:
        _log.info(events.WORKER_DRAIN_BEGUN, worker=worker.id, now=False, shutdown=worker.options.shutdown.name)
        worker.retire()

    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(RETIRE, retire)
    try:
        yield
    finally:
        for number in (*caught, RETIRE):
            loop.remove_signal_handler(number)


@contextmanager
def _lifeline(worker: Worker, parent_fd: int | None) -> Iterator[None]:
    if parent_fd is None:
        yield
        return
    loop = asyncio.get_running_loop()
    done = threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(parent_fd, 64):
                pass
        if done.is_set():
            return
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: worker.stop(now=True))
        if not done.wait(ORPHAN_GRACE_S):
            # a handler that blocks the loop must not keep an orphan alive
            os._exit(1)

    threading.Thread(target=watch, name="callboard-lifeline", daemon=True).start()
    try:
        yield
    finally:
        done.set()
