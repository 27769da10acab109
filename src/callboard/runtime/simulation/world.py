"""A whole Callboard inside a simulation: the broker with its streams, a client, and workers that fare badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.capability import Capability
from callboard.runtime.client import Client
from callboard.runtime.clock import Clock
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError, InputError, SimulationError
from callboard.runtime.simulation.clock import VirtualClock
from callboard.runtime.simulation.host import Host
from callboard.runtime.simulation.run import Simulation
from callboard.runtime.worker import Worker, WorkerOptions

Serves = Capability[..., Any] | type[Actor]
# A process that ended with an error is started again after this long, as a service manager does.
AGAIN_S = 1.0
_READY_S = 60.0
PLAIN = WorkerOptions(hosts_registry=False)


class Recipe(Struct, frozen=True):
    """What a worker was started with, to start it again."""

    serves: tuple[Serves, ...]
    options: WorkerOptions
    wrap: Callable[[Bus], Bus] | None


class World:
    """A broker with its topology, one client, and the workers that a test starts. ``open_world`` makes one.

    Attributes:
        client: A client of the test's own; server faults hit it too.
        bus: Its connection.
        hosts: The present process of each name that was started.
        workers: The worker that runs, or ran last, under each name.
    """

    def __init__(self, simulation: Simulation, bus: Bus, settings: TopologySettings) -> None:
        """Use ``open_world``."""
        self._settings = settings
        self.simulation = simulation
        self.bus = bus
        self.client = Client(bus, clock=simulation.clock)
        self.hosts: dict[str, Host] = {}
        self.workers: dict[str, Worker] = {}
        self._recipes: dict[str, Recipe] = {}
        self._starts = 0

    @property
    def clock(self) -> VirtualClock:
        """The true time."""
        return self.simulation.clock

    async def connect(self, name: str = "test") -> Bus:
        """Open a further connection of the test's own."""
        return self.simulation.broker.connect(name=name)

    def actor(self, address: str) -> ActorRef:
        """Return an actor, ``type/key``, to tell and to ask with the test's own connection."""
        return self.client.actor(address)

    # --- workers

    async def start(
        self,
        *serves: Serves,
        name: str = "a",
        options: WorkerOptions | None = None,
        wrap: Callable[[Bus], Bus] | None = None,
    ) -> Host:
        """Start a worker process and wait until it serves.

        Args:
            serves: Capabilities and actor classes.
            name: Its name in this world; a dead one of the same name is replaced.
            options: Numbers; by default every worker's, but for the registry: it would watch for nothing.
            wrap: Puts something between its connections and the broker.

        Raises:
            InputError: If a living worker has the name.
            CallboardError: What the worker ended with instead of becoming ready.
        """
        found = self.hosts.get(name)
        if found is not None and not found.is_dead:
            message = f"there is a living worker {name!r}: crash or stop it first"
            raise InputError(message)
        self._recipes[name] = Recipe(serves, options or PLAIN, wrap)
        return await self._launch(name)

    async def start_again(self, name: str) -> Host:
        """Start a worker that died as it was; repeated until it is ready, as a service manager does."""
        while True:
            try:
                return await self._launch(name)
            except SimulationError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever kept it from starting, it is started again
                self.simulation.note("start-failed", type(error).__name__, host=name)
                await self.clock.sleep(AGAIN_S)

    async def _launch(self, name: str) -> Host:
        recipe = self._recipes[name]
        self._starts += 1
        host = self.simulation.host(f"{name}-{self._starts}")

        async def connect(bus_name: str) -> Bus:
            bus = await host.connect(bus_name)
            return bus if recipe.wrap is None else recipe.wrap(bus)

        worker = worker_of(
            recipe.serves, connect, recipe.options, clock=host.clock, name=host.name, settings=self._settings
        )
        self.hosts[name], self.workers[name] = host, worker
        self.simulation.note("start", host=host.name)
        ready = asyncio.Event()
        host.main(worker.run(ready.set))
        await first(ready.wait(), host.ended.wait(), timeout_s=_READY_S)
        if host.error is not None:
            raise host.error
        return host

    async def stop(self, name: str, *, now: bool = False) -> None:
        """Drain a worker as SIGTERM would and wait for its end.

        Raises:
            Exception: What it ended with.
        """
        host = self.hosts[name]
        self.workers[name].stop(now=now)
        await host.ended.wait()
        if host.error is not None:
            raise host.error

    # --- faults; by name, they hit the process that lives under it now

    def crash(self, name: str) -> None:
        """End a worker as kill -9 would: none of its code runs any more, what it has sent may still arrive."""
        self.hosts[name].crash()

    def pause(self, name: str) -> None:
        """Let a worker stand still, as SIGSTOP does, until ``resume``; its connection stays."""
        self.hosts[name].pause()

    def resume(self, name: str) -> None:
        """Let it go on; what came due meanwhile runs now."""
        self.hosts[name].resume()

    def cut(self, name: str) -> None:
        """Take a worker's link away, both ways, until ``mend``; it goes on running."""
        self.hosts[name].cut()

    def mend(self, name: str) -> None:
        """Give the link back."""
        self.hosts[name].mend()

    async def restart_server(self, down_s: float = 1.0) -> None:
        """Kill the broker and bring it back: every link is lost, what is stored stays."""
        await self.simulation.broker.restart(down_s)

    async def lose_leader(self, gap_s: float = 5.0, *, is_hung: bool = False) -> None:
        """Let the streams have no leader for ``gap_s``; plain messages pass.

        Args:
            gap_s: How long.
            is_hung: True: nobody answers; False: writes are refused at once.
        """
        await self.simulation.broker.lose_leader(gap_s, "silent" if is_hung else "refused")

    # --- looking

    async def eventually(self, holds: Callable[[], Awaitable[object]], *, within_s: float, what: str = "") -> None:
        """Wait until ``holds``, in virtual time; while the broker cannot be asked it does not.

        Raises:
            SimulationError: If it does not within ``within_s``.
        """
        give_up_s = self.clock.monotonic() + within_s
        while not await _without_bus_error(holds):
            if self.clock.monotonic() > give_up_s:
                message = f"not within {within_s:g} virtual seconds: {what or getattr(holds, '__name__', holds)}"
                raise SimulationError(message)
            await self.clock.sleep(0.25)

    async def stored(self, stream: str, subject: str) -> list[Stored]:
        """Return all messages on ``subject`` (wildcards allowed), in order."""
        return [found async for found in self.bus.read(stream, subjects=(subject,))]


def worker_of(
    serves: Sequence[Serves],
    connect: Callable[[str], Awaitable[Bus]],
    options: WorkerOptions,
    *,
    clock: Clock,
    name: str,
    settings: TopologySettings,
) -> Worker:
    """Return a worker without threads of its own, fit for streams made with ``settings``."""
    return Worker(
        [one for one in serves if isinstance(one, Capability)],
        connect,
        actors=[one for one in serves if isinstance(one, type)],
        options=replace(options, actor_rules=replace(options.actor_rules, partitions=settings.partitions)),
        clock=clock,
        worker_id=name,
        keeper_in_thread=False,
    )


@asynccontextmanager
async def open_world(simulation: Simulation, settings: TopologySettings | None = None) -> AsyncIterator[World]:
    """Give a provisioned world; with its end whatever still runs is thrown away."""
    bus = simulation.broker.connect(name="world")
    settings = settings or TopologySettings()
    await apply(bus, await plan(bus, declared(settings)))
    yield World(simulation, bus, settings)
    await bus.close()


async def first(*waits: Awaitable[object], timeout_s: float) -> None:
    """Return when the first of ``waits`` is done.

    Raises:
        SimulationError: If none is in time.
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    if not done:
        message = f"nothing came within {timeout_s:g} virtual seconds"
        raise SimulationError(message)


async def _without_bus_error(holds: Callable[[], Awaitable[object]]) -> object:
    try:
        return await holds()
    except BusError:
        return False


def alive(hosts: Mapping[str, Host]) -> list[str]:
    """Return the names whose process is up: running and linked."""
    return [name for name, host in hosts.items() if host.is_up]
