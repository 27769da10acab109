"""The actors that chaos workers host: long turns of steps, and a sink that notes what came out of them."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from tests.chaos.journal import Journal

LONG = "long"
SINK = "sink"


class Long(Struct, frozen=True, kw_only=True):
    """What a turn shall do: ``steps`` steps of ``step_s`` seconds each, then say ``n`` to the sink.

    Attributes:
        n: Its number in the load.
        order: Its number in the mailbox of its actor.
    """

    n: int
    order: int
    steps: int = 5
    step_s: float = 1.0


class Said(Struct, frozen=True, kw_only=True):
    """What a turn says to the sink."""

    n: int
    order: int


class Heard(Struct, frozen=True, kw_only=True):
    """State of both actors: the numbers handled, in order."""

    orders: list[int] = []
    numbers: list[int] = []


def task_of(n: int) -> str:
    """Return what a turn is called in the journals."""
    return f"turn-{n}"


def make(journal: Journal) -> list[type[Actor]]:
    """Return the actor classes, writing to ``journal``."""

    class LongActor(Actor, name=LONG, idle_s=5.0, restart_budget=1000):
        State = Heard

        @on
        async def work(self, message: Long) -> int:
            task = task_of(message.n)
            with journal.run(task=task, attempt=self.attempt, n=message.n):
                for number in range(message.steps):
                    await self.step(f"step {number}", self.one, message.n, number, message.step_s)
                self.state = Heard(orders=[*self.state.orders, message.order], numbers=[*self.state.numbers, message.n])
                self.tell(f"{SINK}/{self.key}", Said(n=message.n, order=message.order))
                return message.n

        async def one(self, n: int, number: int, step_s: float) -> int:
            journal.write("step", task=task_of(n), n=n, step=number)
            await asyncio.sleep(step_s)
            journal.write("stepped", task=task_of(n), n=n, step=number)
            return number

    class SinkActor(Actor, name=SINK, idle_s=5.0):
        State = Heard

        @on
        def hear(self, message: Said) -> None:
            self.state = Heard(orders=[*self.state.orders, message.order], numbers=[*self.state.numbers, message.n])

    return [LongActor, SinkActor]
