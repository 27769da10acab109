"""A simulated process: tasks and connections that crash, stand still or are cut off together."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from callboard.runtime.bus.base import Bus
from callboard.runtime.simulation.clock import VirtualClock
from callboard.runtime.simulation.loop import Process, VirtualLoop, process
from callboard.runtime.simulation.network import SimulatedBroker, SimulatedBus

Wrap = Callable[[Bus], Bus]


class Host(Process):
    """One process of a simulated system. What it spawns, and whatever that starts, belongs to it.

    Attributes:
        clock: Its clock; ``clock.skew_s`` sets its wall time wrong.
        is_dead: It crashed or ended.
        is_unharmed: It was never paused nor cut off.
        well_since_s: Virtual second since when it runs and is linked, as far as ``is_up``.
        error: What it ended with, None while it runs and after a good end or a crash.
    """

    def __init__(self, name: str, *, number: int, loop: VirtualLoop, broker: SimulatedBroker) -> None:
        """Begin alive, with nothing to do."""
        super().__init__(name, number=number)
        self.clock = VirtualClock(loop)
        self.is_dead = False
        self.is_unharmed = True
        self.well_since_s = loop.time()
        self.error: BaseException | None = None
        self.ended = asyncio.Event()
        self._loop = loop
        self._broker = broker
        self._buses: list[SimulatedBus] = []
        self._is_cut = False
        self._context = contextvars.copy_context()
        self._context.run(process.set, self)

    def __repr__(self) -> str:
        """Return name and state."""
        state = "dead" if self.is_dead else "paused" if self.is_held else "cut off" if self._is_cut else "up"
        return f"<Host {self.name} {state}>"

    @property
    def is_up(self) -> bool:
        """Whether it is alive, running and linked."""
        return not (self.is_dead or self.is_held or self._is_cut)

    def main(self, program: Coroutine[Any, Any, None]) -> None:
        """Run ``program`` as what the process does; its end is the end of the process."""
        self.spawn(program, f"main-{self.name}").add_done_callback(self._end)

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a coroutine inside it."""
        return self._loop.create_task(coroutine, name=name, context=self._context.copy())

    async def connect(self, name: str) -> SimulatedBus:
        """Open a connection of its own."""
        bus: SimulatedBus = self._context.copy().run(lambda: self._broker.connect(name=name))
        self._buses.append(bus)
        if self._is_cut:
            bus.cut_by("partition")
        return bus

    # --- faults

    def crash(self) -> None:
        """End as by kill -9: none of its code runs any more. What it has sent may still arrive."""
        if self.is_dead:
            return
        self._note("crash")
        self._die()

    def pause(self) -> None:
        """Stand still as under SIGSTOP until ``resume``; its links stay."""
        if not self.is_dead and not self.is_held:
            self._note("pause")
            self.is_unharmed = False
            self._loop.hold(self)

    def resume(self) -> None:
        """Go on after ``pause``: what came due meanwhile runs now."""
        if not self.is_dead and self.is_held:
            self._note("resume")
            self.well_since_s = self._loop.time()
            self._loop.release(self)

    def cut(self) -> None:
        """Lose the link to the broker, both ways, and go on running."""
        if not self.is_dead and not self._is_cut:
            self._note("cut")
            self.is_unharmed = False
            self._is_cut = True
            for bus in self._buses:
                bus.cut_by("partition")

    def mend(self) -> None:
        """Have the link back."""
        if not self.is_dead and self._is_cut:
            self._note("mend")
            self.well_since_s = self._loop.time()
            self._is_cut = False
            for bus in self._buses:
                bus.mend_from("partition")

    def jump(self, seconds: float) -> None:
        """Set its wall clock forward, or back."""
        self._note("clock-jump", f"{seconds:+g} s")
        self.clock.skew_s += seconds

    def bury(self) -> None:
        """Let its tasks be cancelled and end, when the simulation is over."""
        self._die()
        self._loop.release(self)

    # --- inside

    def _die(self) -> None:
        self.is_dead = True
        self._loop.hold(self)
        for bus in self._buses:
            bus.sever()
        self.ended.set()

    def _end(self, task: asyncio.Task[None]) -> None:
        if self.is_dead:
            return
        self.error = None if task.cancelled() else task.exception()
        self._note("exit", "" if self.error is None else type(self.error).__name__)
        self._die()

    def _note(self, name: str, detail: str = "") -> None:
        self._broker.note(name, detail, host=self.name)
