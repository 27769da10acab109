"""A whole Callboard in one process: a broker, its topology, a client, and workers that come and go on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from callboard.runtime import record, subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.capability import Capability
from callboard.runtime.client import Client
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import TopologySettings
from callboard.runtime.record import AttemptRecord, DeadLetter, TaskRecord
from callboard.runtime.worker import Worker, WorkerOptions
from tests.support.eventually import eventually

Kind = Literal["memory", "jetstream"]
Connect = Callable[[str], Coroutine[Any, Any, Bus]]

# Short, so that a test of a dead worker takes a second; the shares between the numbers are those of the defaults.
# Without the registry: most tests look at what one worker owns and stores. Those of the registry switch it on.
QUICK = WorkerOptions(ack_wait_s=1.2, extend_every_s=0.3, holds_wait_s=0.2, drain_grace_s=5.0, hosts_registry=False)


class Running:
    """A worker that runs in a task of this process."""

    def __init__(self, worker: Worker, task: asyncio.Task[None], buses: list[Bus]) -> None:
        self.worker = worker
        self.task = task
        self._buses = buses

    async def stop(self, *, now: bool = False) -> None:
        """Drain it as SIGTERM would, and see how it ended."""
        self.worker.stop(now=now)
        await self.task

    async def kill(self) -> None:
        """End it as kill -9 would: nothing it does from now on reaches the broker."""
        for bus in self._buses:
            if isinstance(bus, MemoryBus):
                bus.cut()
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self.task

    @property
    def pool(self) -> Any:  # noqa: ANN401 - tests look inside
        """The only pool it has."""
        (pool,) = self.worker.pools.values()
        return pool


class World:
    """A broker with its topology, one client, and the workers a test starts."""

    def __init__(self, kind: Kind, connect: Connect, bus: Bus, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.kind = kind
        self.clock = clock
        self.bus = bus
        self.client = Client(bus, clock=clock)
        self.workers: list[Running] = []
        self._background: set[asyncio.Task[None]] = set()
        self._connect = connect

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the test, such as an answer from a plain subscription."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def connect(self, name: str = "test") -> Bus:
        """Open a further connection."""
        return await self._connect(name)

    async def start(
        self,
        *parts: Capability[..., Any] | type[Actor],
        options: WorkerOptions = QUICK,
        worker_id: str | None = None,
        wrap: Callable[[Bus], Bus] | None = None,
    ) -> Running:
        """Start a worker and wait until it serves; ``wrap`` may put something between it and the broker."""
        buses: list[Bus] = []

        async def connect(name: str) -> Bus:
            bus = await self._connect(name)
            buses.append(bus)
            return bus if wrap is None else wrap(bus)

        worker = Worker(
            [part for part in parts if isinstance(part, Capability)],
            connect,
            actors=[part for part in parts if isinstance(part, type)],
            options=options,
            clock=self.clock,
            worker_id=worker_id,
            keeper_in_thread=self.kind == "jetstream",
        )
        ready = asyncio.Event()
        task = asyncio.create_task(worker.run(ready.set), name=f"worker-{worker.id}")
        waiter = asyncio.create_task(ready.wait())
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if task.done():
            await task
        running = Running(worker, task, buses)
        self.workers.append(running)
        return running

    async def close(self) -> None:
        """Stop what still runs; a worker that ended by itself shows its error here."""
        for running in self.workers:
            running.worker.stop(now=True)
        results = await asyncio.gather(*(running.task for running in self.workers), return_exceptions=True)
        await self.client.close()
        await self.bus.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    # --- what is stored

    async def records(self, capability: str) -> dict[str, TaskRecord]:
        """Return the ledger's records of a capability by task id."""
        found = [
            record.decode_task(stored.data) async for stored in self._all("CB_LEDGER", f"cb.result.{capability}.*")
        ]
        assert len({r.task for r in found}) == len(found), "a task has two records"
        return {r.task: r for r in found}

    async def attempts(self, capability: str, task_id: str) -> list[AttemptRecord]:
        """Return the attempt records of a task, by number."""
        wildcard = subjects.attempts(capability, task_id)
        found = [record.decode_attempt(stored.data) async for stored in self._all("CB_LEDGER", wildcard)]
        return sorted(found, key=lambda r: r.n)

    async def dead(self, capability: str) -> list[DeadLetter]:
        """Return the dead letters of a capability."""
        stored = self._all("CB_DEAD", f"cb.dead.task.{capability}.*")
        return [record.decode_dead(found.data) async for found in stored]

    async def waiting(self, stream: str = "CB_WORK") -> int:
        """Return how many messages a stream holds: a task stays until it is settled."""
        info = await self.bus.stream_info(stream)
        assert info is not None
        return info.messages

    async def all_recorded(self, capability: str, count: int, *, timeout_s: float = 15.0) -> dict[str, TaskRecord]:
        """Wait until ``count`` tasks are recorded and the queue is empty; return the records."""
        subject = f"cb.result.{capability}.*"

        async def done() -> bool:
            if len(await self.bus.subject_counts("CB_LEDGER", subject)) < count:
                return False
            return await self.waiting() == 0

        await eventually(done, within_s=timeout_s)
        return await self.records(capability)

    async def nothing_held(self, *workers: Running) -> None:
        """Wait until no worker keeps a claim: what is left there for ever would be extended for ever."""
        for running in workers or self.workers:
            if not running.task.done():
                await eventually(partial(_holds_nothing, running), what="a worker keeps a claim")

    def _all(self, stream: str, subject: str) -> AsyncIterator[Stored]:
        return self.bus.read(stream, subjects=(subject,))


def _holds_nothing(running: Running) -> bool:
    return not running.worker.keeper.claims


@asynccontextmanager
async def open_world(
    kind: Kind, folder: Path, *, clock: Clock = SYSTEM_CLOCK, settings: TopologySettings | None = None
) -> AsyncIterator[World]:
    """Give a provisioned world on one of the two adapters; a jetstream one runs a nats-server of its own."""
    async with contextlib.AsyncExitStack() as stack:
        connect: Connect
        if kind == "memory":
            connect = _memory(clock)
        else:
            connect = await stack.enter_async_context(_server(folder))
        bus = await connect("world")
        await apply(bus, await plan(bus, declared(settings or TopologySettings())))
        world = World(kind, connect, bus, clock=clock)
        try:
            yield world
        finally:
            await world.close()


def _memory(clock: Clock) -> Connect:
    broker = MemoryBroker(clock)

    async def connect(name: str) -> Bus:
        return broker.connect(name=name)

    return connect


@asynccontextmanager
async def _server(folder: Path) -> AsyncIterator[Connect]:
    from callboard.runtime.bus import jetstream
    from callboard.runtime.config import ServerSettings
    from callboard.runtime.embedded import EmbeddedServer

    settings = ServerSettings(data_dir=folder, port=0, profile="fast", max_file_bytes=8 << 30)
    async with EmbeddedServer(settings) as server:

        async def connect(name: str) -> Bus:
            bus: Bus = await jetstream.connect(server.url, name=name)
            return bus

        yield connect
