"""An agent whose model answers at once, in a worker of its own; ``python -m bench.side_agent '<options as JSON>'``.

Prints one line of JSON: the milliseconds of each step, from the moment where model or tool began to the moment where
the next one did. Nothing of that is the model's or the tool's: it is what a step costs with its journal.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal

import msgspec
from msgspec import Struct

from bench.job import run_on
from callboard import Agent, Task, tool
from callboard.agents.llm.base import Completion, Delta, ModelFacts, Prompt, ToolCall, Usage
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.worker import Worker

# What each round says, so that prompts grow as they do in life.
ROUNDS = 10


class Run(Struct, kw_only=True):
    """What to measure: so many tasks of ten rounds each, after some that are not counted, by one of the agents."""

    url: str
    tasks: int
    agent: str = "bench-looker"
    warm: int = 5
    loop: str = "uvloop"


_begun: list[float] = []


class Instant:
    """A model that calls the tool ten times and is done. Implements ``Model``."""

    name = "bench/instant"
    facts = ModelFacts(is_local=True, has_schema=True)

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:  # noqa: ARG002 - the port's
        """Answer at once."""
        _begun.append(time.perf_counter())
        asked = len([message for message in prompt.messages if message.role == "assistant"])
        call = ToolCall(id=str(asked), name="look", arguments=msgspec.json.encode({"number": asked}).decode())
        more = asked < ROUNDS
        return Completion(
            text="" if more else "done",
            tool_calls=(call,) if more else (),
            usage=Usage(input_tokens=100, output_tokens=10),
            model=self.name,
            finish="tool_calls" if more else "stop",
            cost_usd=Decimal(0),
        )

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncIterator[Delta | Completion]:
        """Answer at once, in one piece."""
        yield await self.complete(prompt, timeout_s=timeout_s, key=key)

    def count_tokens(self, prompt: Prompt) -> int:
        """Count words."""
        return sum(len(message.text.split()) for message in prompt.messages)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return nothing of use."""
        return [[0.0] for _ in texts]

    async def close(self) -> None:
        """Nothing is open."""


@tool
async def look(number: int) -> int:
    """Look at a number.

    Args:
        number: The number.
    """
    _begun.append(time.perf_counter())
    return number


class Looker(Agent, name="bench-looker", model=Instant(), tools=[look], max_turns=ROUNDS + 1):
    """You look at numbers."""


class Payer(
    Agent,
    name="bench-payer",
    model=Instant(),
    tools=[look],
    max_turns=ROUNDS + 1,
    budget={"tokens": 10**9},
):
    """You look at numbers, and pay for each look."""


async def main(run: Run) -> None:
    """Host it, ask it, print the figures."""

    async def connected(name: str) -> Bus:
        return await connect(run.url, name=name)

    worker = Worker((), connected, actors=[Looker, Payer])
    ready = asyncio.Event()
    serving = asyncio.create_task(worker.run(on_ready=ready.set))
    await ready.wait()
    bus = await connected("bench-asker")
    steps: list[float] = []
    for number in range(run.warm + run.tasks):
        _begun.clear()
        await ActorRef(bus, f"{run.agent}/{number % 4}").ask(Task("look at all numbers"), timeout_s=60)
        if number >= run.warm:
            steps += [(after - before) * 1000 for before, after in itertools.pairwise(_begun)]
    print(msgspec.json.encode(steps).decode(), flush=True)
    worker.stop(now=True)
    await serving
    await bus.close()


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.argv[1], type=Run)
    run_on(wanted.loop, main(wanted))
