"""Bad links: in some worlds every worker's connection stands behind a ``FaultyBus`` until the calm."""

from __future__ import annotations

import random
from functools import partial

from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.faulty import FaultRates, FaultyBus
from callboard.runtime.simulation.world import World

# Plain messages are not dropped here: on a link that stands none are, and questions to peers rely on it.
ROUGH = FaultRates(lose_ack=0.01, delay=0.1, duplicate=0.02, stale=0.02, refuse=0.01, reopen=0.01)


class Weather:
    """The links of one world.

    Attributes:
        rates: Nothing strikes in two of three worlds.
    """

    def __init__(self, world: World, dice: random.Random) -> None:
        self.rates = ROUGH if dice.random() < 1 / 3 else FaultRates()
        self._world = world
        self._dice = dice
        self._buses: list[FaultyBus] = []
        self._is_calm = False

    def wrap(self, bus: Bus) -> Bus:
        """Put a link behind faults; one made later than the calm is well."""
        if self.rates == FaultRates():
            return bus
        made = FaultyBus(bus, random.Random(self._dice.random()), clock=self._world.clock)
        self._buses.append(made)
        # a worker whose start meets a lost answer ends, and that is not what is tested here
        self._world.simulation.loop.call_later(1.0, partial(self._begin, made))
        return made

    def calm(self) -> None:
        """Let nothing strike any more."""
        self._is_calm = True
        for bus in self._buses:
            bus.faults.rates = FaultRates()

    @property
    def struck(self) -> dict[str, int]:
        """How often each fault has struck."""
        found: dict[str, int] = {}
        for bus in self._buses:
            for kind, count in bus.faults.injected.items():
                found[kind] = found.get(kind, 0) + count
        return found

    def _begin(self, bus: FaultyBus) -> None:
        if not self._is_calm:
            bus.faults.rates = self.rates
