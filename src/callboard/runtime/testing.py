"""Doubles for tests of programs built on Callboard: a clock, a whole Callboard in a test, and simulated runs of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

from callboard.runtime import ids
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.faulty import FaultRates, FaultyBus
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.client import Client
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import InputError, SimulationError
from callboard.runtime.simulation.nemesis import Nemesis, NemesisRules
from callboard.runtime.simulation.run import LATENCY_S, Outcome, Simulation, run
from callboard.runtime.simulation.world import Serves, World, open_world, worker_of
from callboard.runtime.worker import Worker, WorkerOptions

__all__ = [
    "FakeClock",
    "FaultRates",
    "FaultyBus",
    "ManualWorld",
    "Nemesis",
    "NemesisRules",
    "Outcome",
    "World",
    "simulate",
    "world",
]

T = TypeVar("T")

_START = datetime(2026, 1, 1, tzinfo=UTC)
# Wake-ups chain: sleeper -> timer -> sink -> handler -> commit. Idle loop turns cost about a microsecond each.
_SETTLE_TURNS = 50
_STEP_S = 0.05


class FakeClock:
    """A clock that moves only when told. Implements ``Clock``."""

    def __init__(self, *, start: datetime = _START, monotonic_s: float = 1000.0) -> None:
        """Begin at ``start`` on the wall and at ``monotonic_s`` since the unknown start."""
        self._start = start
        self._began = monotonic_s
        self._time = monotonic_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    def monotonic(self) -> float:
        """Return the fake seconds."""
        return self._time

    def now(self) -> datetime:
        """Return the fake wall time; it moves in step with ``monotonic``."""
        return self._start + timedelta(seconds=self._time - self._began)

    async def sleep(self, delay_s: float) -> None:
        """Wait until ``advance`` has moved the clock by ``delay_s``; 0 yields once."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (self._time + delay_s, next(self._arrivals), waiter))
        await waiter

    async def advance(self, delay_s: float) -> None:
        """Move the clock, waking sleepers one due time after the other and letting the loop settle after each."""
        target = self._time + delay_s
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, waiter = heappop(self._sleepers)
            if waiter.done():
                continue
            self._time = max(self._time, due)
            waiter.set_result(None)
            await self.settle()
        self._time = target
        await self.settle()

    async def settle(self, turns: int = _SETTLE_TURNS) -> None:
        """Let ready work run for ``turns`` loop turns without moving the clock."""
        for _ in range(turns):
            await asyncio.sleep(0)


# --- simulated runs ----------------------------------------------------------------------------------------------


def simulate(
    main: Callable[[World], Awaitable[T]],
    *,
    seed: int = 0,
    latency_s: tuple[float, float] = LATENCY_S,
    settings: TopologySettings | None = None,
) -> Outcome[T]:
    """Run ``main`` against a whole Callboard in virtual time: hours take moments, and a seed repeats to the letter.

    Workers started in ``main`` are processes of their own, as far as the test can tell: they crash, stand still and
    lose their links one by one. The seed decides in which order things happen that may happen in any order, and how
    long messages take. Called from plain code, not from inside a running loop::

        def test_nothing_is_lost() -> None:
            for seed in range(100):
                callboard.testing.simulate(orders_survive_a_crash, seed=seed)

    Args:
        main: The test; gets the world.
        seed: Repeats the run; a failure bears it in its notes.
        latency_s: Bounds of what a message takes one way.
        settings: How the streams are made; by default as ``callboard provision`` does.

    Raises:
        SimulationDeadlockError: If nothing can happen any more; names who waits where.
        SimulationStuckError: If it does not end.
        SimulationError: If something failed and nobody took the error.
        Exception: Whatever ``main`` raises.
    """

    async def body(simulation: Simulation) -> T:
        async with open_world(simulation, settings) as opened:
            return await main(opened)

    return run(body, seed, latency_s=latency_s)


# --- in the test's own loop --------------------------------------------------------------------------------------


class _Program:
    """A worker that runs in tasks of the test's loop."""

    def __init__(self, worker: Worker, buses: list[MemoryBus], task: asyncio.Task[None]) -> None:
        self.worker = worker
        self.buses = buses
        self.task = task
        self.is_crashed = False


class ManualWorld:
    """A whole Callboard in the test's own loop, with a clock that moves when told. ``world()`` gives one.

    What needs no time (tells, asks, submissions) is simply awaited. What waits for time (retries, timers, leases, the
    takeover from a dead worker) comes about with ``advance``, at some hundred times the speed of real time; for hours
    and for pauses take ``simulate``.

    Attributes:
        clock: The clock of everything in it.
        client: A client of the test's own.
        bus: Its connection.
    """

    def __init__(self, broker: MemoryBroker, bus: Bus, clock: FakeClock, settings: TopologySettings, seed: int) -> None:
        """``world()`` makes these."""
        self.clock = clock
        self.bus = bus
        self.client = Client(bus, clock=clock)
        self._broker = broker
        self._settings = settings
        self._seed = seed
        self._starts = 0
        self._programs: dict[str, _Program] = {}

    def actor(self, address: str) -> ActorRef:
        """Return an actor, ``type/key``, to tell and to ask."""
        return self.client.actor(address)

    async def start(
        self, *serves: Serves, name: str = "a", options: WorkerOptions | None = None, faults: FaultRates | None = None
    ) -> Worker:
        """Start a worker and wait until it serves; the clock moves if it needs to.

        Args:
            serves: Capabilities and actor classes.
            name: Its name in this world; a dead one of the same name is replaced.
            options: Numbers.
            faults: What its connection does wrong once it serves, by the world's seed.

        Raises:
            InputError: If a living worker has the name.
            CallboardError: What it ended with instead of becoming ready.
            SimulationError: If it is not ready within a minute.
        """
        found = self._programs.get(name)
        if found is not None and not found.task.done():
            message = f"there is a living worker {name!r}: crash or stop it first"
            raise InputError(message)
        self._starts += 1
        own_name = f"{name}-{self._starts}"
        buses: list[MemoryBus] = []
        faulty: list[FaultyBus] = []

        async def connect(bus_name: str) -> Bus:
            bus = self._broker.connect(name=bus_name)
            buses.append(bus)
            if faults is None:
                return bus
            faulty.append(FaultyBus(bus, random.Random(f"{self._seed}/{own_name}"), clock=self.clock))
            return faulty[-1]

        worker = worker_of(
            serves, connect, options or WorkerOptions(), clock=self.clock, name=own_name, settings=self._settings
        )
        ready = asyncio.Event()
        task = asyncio.create_task(worker.run(ready.set), name=f"worker-{own_name}")
        self._programs[name] = _Program(worker, buses, task)
        await self.until(lambda: ready.is_set() or task.done(), what=f"worker {name} is ready")
        if not ready.is_set():
            await task
        for bus in faulty:
            bus.faults.rates = faults or FaultRates()
        return worker

    async def stop(self, name: str) -> None:
        """Drain a worker as SIGTERM would, moving the clock until it has ended.

        Raises:
            CallboardError: What it ended with.
        """
        program = self._programs[name]
        program.worker.stop()
        await self.until(program.task.done, what=f"worker {name} has ended")
        await program.task

    async def crash(self, name: str) -> None:
        """End a worker as kill -9 would: nothing that it does from now on reaches the broker.

        Its tasks are cancelled, so a ``finally`` in a handler still runs, which a killed process would not do.
        """
        program = self._programs[name]
        program.is_crashed = True
        for bus in program.buses:
            bus.sever()
        program.task.cancel()
        await asyncio.wait([program.task])
        if not program.task.cancelled():
            # how a dead process ended is nobody's business
            program.task.exception()

    def cut(self, name: str) -> None:
        """Take a worker's link away until ``mend``; it goes on running."""
        for bus in self._programs[name].buses:
            bus.cut()

    def mend(self, name: str) -> None:
        """Give the link back."""
        for bus in self._programs[name].buses:
            bus.mend()

    async def advance(self, delay_s: float) -> None:
        """Move the clock, and let everything happen that comes due."""
        await self.clock.advance(delay_s)

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        await self.clock.settle()

    async def until(self, holds: Callable[[], bool], *, within_s: float = 60.0, what: str = "") -> None:
        """Move the clock until ``holds``.

        Raises:
            SimulationError: If it does not within ``within_s`` of the clock.
        """
        give_up_s = self.clock.monotonic() + within_s
        await self.clock.settle()
        while not holds():
            if self.clock.monotonic() >= give_up_s:
                message = f"not within {within_s:g} s of the clock: {what or 'the condition'}"
                raise SimulationError(message)
            await self.clock.advance(_STEP_S)

    async def close(self) -> None:
        """End everything; a worker that failed by itself shows its error here.

        Raises:
            CallboardError: The first such error.
        """
        failed = [program.task for program in self._programs.values() if program.task.done() and not program.is_crashed]
        for name, program in self._programs.items():
            if not program.task.done():
                await self.crash(name)
        await self.bus.close()
        for task in failed:
            await task


@asynccontextmanager
async def world(seed: int = 0, *, settings: TopologySettings | None = None) -> AsyncIterator[ManualWorld]:
    """Give a provisioned Callboard inside the running loop: in memory, with a clock that moves when told.

    ::

        async with callboard.testing.world() as w:
            await w.start(Greeter)
            reply = await w.actor("greeter/ann").ask(Hello("bob"))

    Args:
        seed: Decides ids and faults.
        settings: How the streams are made; by default as ``callboard provision`` does.
    """
    clock = FakeClock()
    broker = MemoryBroker(clock)
    with ids.drawn_from(random.Random(f"{seed}/ids").randbytes):
        bus = broker.connect(name="world")
        wanted = settings or TopologySettings()
        await apply(bus, await plan(bus, declared(wanted)))
        made = ManualWorld(broker, bus, clock, wanted, seed)
        try:
            yield made
        finally:
            await made.close()
