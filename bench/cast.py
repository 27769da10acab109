"""The actors that the benches ask: small handlers, so that what is measured is the engine."""

from __future__ import annotations

import asyncio
import time

from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on

# Sends of a turn that sends; with its state it commits one more.
SENDS = 3
# Actors that nobody hosts: what is told to them is stored and stays.
NOBODY = "bench-nobody"


class Add(Struct, frozen=True):
    """Change the state."""

    text: str


class Peek(Struct, frozen=True):
    """Look at the state."""

    text: str


class Spread(Struct, frozen=True):
    """Change the state and send."""

    text: str


class Walk(Struct, frozen=True):
    """Run so many steps."""

    steps: int


class Linger(Struct, frozen=True):
    """Stay in the turn for so many seconds."""

    seconds: float


class Sums(Struct, frozen=True, kw_only=True):
    """State of all of them."""

    turns: int = 0


class Counter(Actor, name="bench-counter"):
    """Counts what it is asked."""

    State = Sums

    @on
    async def add(self, message: Add) -> int:
        """Change the state."""
        self.state = Sums(turns=self.state.turns + bool(message.text))
        return int(self.state.turns)

    @on(read_only=True)
    async def peek(self, message: Peek) -> int:
        """Look at the state."""
        return int(self.state.turns) + bool(message.text)

    @on
    async def linger(self, message: Linger) -> int:
        """Hold up the mailbox."""
        await asyncio.sleep(message.seconds)
        return int(self.state.turns)


class Teller(Actor, name="bench-teller"):
    """Sends in each turn."""

    State = Sums

    @on
    async def spread(self, message: Spread) -> int:
        """Change the state, tell two others, emit an event."""
        self.state = Sums(turns=self.state.turns + 1)
        for number in range(SENDS - 1):
            self.tell(f"{NOBODY}/{number}", {"text": message.text})
        self.emit("spread", {"turns": self.state.turns})
        return int(self.state.turns)


class Stepper(Actor, name="bench-stepper"):
    """Runs steps that do nothing, as an agent whose model and tools cost nothing."""

    State = Sums

    @on
    async def walk(self, message: Walk) -> list[float]:
        """Return the microseconds of each step, journal included."""
        took = []
        for number in range(message.steps):
            began = time.perf_counter()
            await self.step("model", _answer, number, "x" * 200)
            took.append((time.perf_counter() - began) * 1e6)
        self.state = Sums(turns=self.state.turns + 1)
        return took


class Sleeper(Actor, name="bench-sleeper", idle_s=1.0):
    """Is forgotten soon after it was asked."""

    State = Sums

    @on
    async def add(self, message: Add) -> int:
        """Change the state."""
        self.state = Sums(turns=self.state.turns + bool(message.text))
        return int(self.state.turns)


CAST = (Counter, Teller, Stepper, Sleeper)


async def _answer(number: int, text: str) -> str:
    return f"{number} {text}"
