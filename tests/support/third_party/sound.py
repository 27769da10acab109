"""What the tests of somebody else's program look like: each of its parts keeps the contract of its port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from callboard.agents.agent import Agent
from callboard.agents.errors import ModelSetupError
from callboard.agents.llm.base import Completion, Delta, Model, ModelFacts, Prompt, Usage
from callboard.agents.message import AgentResult, Task
from callboard.agents.sandbox.base import Job, Ran, Sandbox
from callboard.agents.sandbox.subprocess import SubprocessSandbox
from callboard.agents.sandbox_settings import SandboxSettings
from callboard.agents.testing import AgentContract, BusContract, Connect, ModelContract, Part, SandboxContract
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.memory import MemoryBroker


class Parrot:
    """A model that repeats the last thing that was said."""

    name = "parrot/grey"
    facts = ModelFacts(context_tokens=1000, max_output_tokens=200, is_local=True)

    async def complete(self, prompt: Prompt, *, timeout_s: float | None = None, key: str = "") -> Completion:
        text = prompt.messages[-1].text
        usage = Usage(input_tokens=self.count_tokens(prompt), output_tokens=len(text.split()))
        return Completion(text=text, usage=usage, model=self.name, cost_usd=Decimal(0))

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncIterator[Delta | Completion]:
        whole = await self.complete(prompt)
        for place, word in enumerate(whole.text.split(" ")):
            yield Delta(text=f" {word}" if place else word)
        yield whole

    def count_tokens(self, prompt: Prompt) -> int:
        return sum(len(message.text.split()) for message in prompt.messages)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        message = "a parrot has no embeddings"
        raise ModelSetupError(message, model=self.name)

    async def close(self) -> None:
        return None


class TestParrot(ModelContract):
    def make(self, parts: Sequence[Part]) -> Model:
        return Parrot()


class Noted:
    """A sandbox that notes what it ran."""

    def __init__(self) -> None:
        self.name = "noted"
        self.ran: list[str] = []
        self._inner = SubprocessSandbox(SandboxSettings())

    async def check(self) -> None:
        await self._inner.check()

    async def run(self, job: Job) -> Ran:
        self.ran.append(job.label)
        return await self._inner.run(job)

    async def close(self) -> None:
        await self._inner.close()


class TestNoted(SandboxContract):
    def make(self) -> Sandbox:
        return Noted()


class Counted:
    """A bus that counts what is asked of it."""

    def __init__(self, bus: Bus) -> None:
        self.asked = 0
        self._inner = bus

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever it is
        self.asked += 1
        return getattr(self._inner, name)


class TestCounted(BusContract):
    @asynccontextmanager
    async def make(self) -> AsyncIterator[Connect]:
        broker = MemoryBroker()

        async def connect(name: str) -> Bus:
            found: Any = Counted(broker.connect(name=name))
            return found  # type: ignore[no-any-return] # a bus by its behaviour

        yield connect


class Reviewer(Agent, name="reviewer", memory=10):
    """You review texts, shortly."""

    async def prepare(self, task: Task) -> Task:
        return Task(text=task.text, context={"house style": "no adverbs"})

    async def finish(self, task: Task, result: AgentResult) -> AgentResult | None:
        self.emit("reviewed", {"status": result.status})
        return None


class TestReviewer(AgentContract):
    task = Task("Review this: all is well.")
    says = "It is short."

    def make(self, model: Model) -> type[Agent]:
        class Under(Reviewer, name="reviewer", model=model):
            __doc__ = Reviewer.__doc__

        return Under
