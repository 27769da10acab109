"""Run a simulated system: same seed, same history."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from msgspec import Struct

from callboard.runtime import ids
from callboard.runtime.errors import SimulationError
from callboard.runtime.simulation.clock import VirtualClock
from callboard.runtime.simulation.history import Event, History
from callboard.runtime.simulation.host import Host
from callboard.runtime.simulation.loop import MAX_STEPS, MAX_TIME_S, SimulatedTask, VirtualLoop
from callboard.runtime.simulation.network import SimulatedBroker

T = TypeVar("T")
LATENCY_S = (0.0001, 0.001)
_WIND_UP_S = 60.0
_WIND_UP_ROUNDS = 20


class Outcome(Struct, Generic[T], frozen=True, kw_only=True):
    """How a run ended.

    Attributes:
        value: What its main returned.
        history_hash: SHA-256 of the history; equal for equal seeds, in every process and on every machine.
        steps: Callbacks that ran.
        took_s: Virtual seconds.
    """

    seed: int
    value: T
    history: list[Event]
    history_hash: str
    steps: int
    took_s: float


class Simulation:
    """A running simulation: a broker, and processes that a test makes.

    Attributes:
        clock: The true time.
        broker: The broker; connections of the test itself come from ``broker.connect``.
        hosts: All processes that ever were, in order.
    """

    def __init__(self, seed: int, loop: VirtualLoop, history: History, *, latency_s: tuple[float, float]) -> None:
        """Prepare; use ``run``."""
        self.seed = seed
        self.loop = loop
        self.history = history
        self.clock = VirtualClock(loop)
        self.broker = SimulatedBroker(self.clock, self.dice("network"), history, latency_s=latency_s)
        self.hosts: list[Host] = []

    def dice(self, purpose: str) -> random.Random:
        """Return dice that belong to the seed and to ``purpose``: one's use does not change another's throws."""
        return random.Random(f"{self.seed}/{purpose}")

    def host(self, name: str) -> Host:
        """Make a process."""
        made = Host(name, number=len(self.hosts) + 1, loop=self.loop, broker=self.broker)
        self.hosts.append(made)
        return made

    def note(self, name: str, detail: str = "", *, host: str = "") -> None:
        """Write into the history; ``detail`` must repeat with the seed."""
        self.history.add(self.loop.time(), host, name, detail)


def run(
    main: Callable[[Simulation], Awaitable[T]],
    seed: int,
    *,
    latency_s: tuple[float, float] = LATENCY_S,
    max_steps: int = MAX_STEPS,
    max_time_s: float = MAX_TIME_S,
    history: History | None = None,
) -> Outcome[T]:
    """Run ``main`` on a virtual loop of its own until it returns. Must not be called from a running loop.

    Args:
        main: The test; it makes hosts and watches what they do.
        seed: Decides everything that is left to chance.
        latency_s: Bounds of what a message takes one way between a host and the broker.
        max_steps: Callbacks before the run counts as stuck.
        max_time_s: Virtual seconds before the run counts as stuck.
        history: Filled during the run; give one to read it after a failure.

    Raises:
        SimulationDeadlockError: If nothing can happen any more.
        SimulationStuckError: If it does not end.
        SimulationError: If a task of a living process ended with an error that nobody took.
        Exception: Whatever ``main`` raises, with the seed in its notes.
    """
    history = history or History()
    loop = VirtualLoop(random.Random(f"{seed}/order"), max_steps=max_steps, max_time_s=max_time_s)
    complaints: list[BaseException] = []
    loop.set_exception_handler(lambda _, context: _complain(complaints, context))
    with _repeatable(seed):
        simulation = Simulation(seed, loop, history, latency_s=latency_s)
        try:
            value = loop.run_until_complete(_as_coroutine(main, simulation))
            _raise_first(complaints)
            return Outcome(
                seed=seed,
                value=value,
                history=history.events,
                history_hash=history.hash(),
                steps=loop.steps,
                took_s=loop.time(),
            )
        except BaseException as error:
            error.add_note(f"simulation seed {seed}, virtual second {loop.time():.6f}, {loop.steps} steps")
            raise
        finally:
            history.is_open = False
            _wind_up(simulation)


async def _as_coroutine(main: Callable[[Simulation], Awaitable[T]], simulation: Simulation) -> T:
    return await main(simulation)


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Let all chance come from the seed; collect no garbage, which would end abandoned generators at any time."""
    state = random.getstate()
    had_gc = gc.isenabled()
    gc.disable()
    random.seed(seed)
    try:
        with ids.drawn_from(random.Random(f"{seed}/ids").randbytes):
            yield
    finally:
        random.setstate(state)
        if had_gc:
            gc.enable()


def _complain(complaints: list[BaseException], context: dict[str, Any]) -> None:
    error = context.get("exception")
    task = context.get("task") or context.get("future")
    is_buried = isinstance(task, SimulatedTask) and isinstance(task.process, Host) and task.process.is_dead
    if isinstance(error, BaseException) and not is_buried:
        complaints.append(error)


def _raise_first(complaints: list[BaseException]) -> None:
    if complaints:
        message = f"a task failed and nobody took its error: {complaints[0]!r}"
        raise SimulationError(message) from complaints[0]


def _wind_up(simulation: Simulation) -> None:
    loop = simulation.loop
    loop.set_exception_handler(lambda _loop, _context: None)
    for host in simulation.hosts:
        host.bury()
    loop.allow_more()
    # what ends may start something to tidy up
    for _ in range(_WIND_UP_ROUNDS):
        tasks = [task for task in asyncio.all_tasks(loop) if isinstance(task, SimulatedTask)]
        if not tasks:
            break
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=_WIND_UP_S))
        for task in tasks:
            if task.done() and not task.cancelled():
                # seen: nobody else will look
                task.exception()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
