"""The same parts with one fault each, which their contract must find."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace

from callboard import on
from callboard.agents.agent import Agent
from callboard.agents.llm.base import Completion, Delta, Model, Prompt, user
from callboard.agents.message import AgentResult, Task
from callboard.agents.sandbox.base import Job, Ran, Sandbox
from callboard.agents.testing import AgentContract, BusContract, Connect, ModelContract, Part, SandboxContract
from callboard.runtime.bus.base import Bus, PubAck, Write
from callboard.runtime.bus.memory import MemoryBroker
from tests.support.third_party.sound import Counted, Noted, Parrot


class Stammering(Parrot):
    """Its stream is not what it says as a whole."""

    async def stream(
        self, prompt: Prompt, *, timeout_s: float | None = None, key: str = ""
    ) -> AsyncIterator[Delta | Completion]:
        async for part in super().stream(prompt):
            yield part
            if isinstance(part, Delta):
                yield part


class TestStammering(ModelContract):
    def make(self, parts: Sequence[Part]) -> Model:
        return Stammering()


class Hopeful(Noted):
    """Everything went well."""

    async def run(self, job: Job) -> Ran:
        return replace(await super().run(job), status=0)


class TestHopeful(SandboxContract):
    def make(self) -> Sandbox:
        return Hopeful()


class Careless(Counted):
    """Its writes have no conditions."""

    async def store(self, write: Write, **options: Any) -> PubAck:  # noqa: ANN401 - handed on
        headers = {name: value for name, value in (write.headers or {}).items() if "Expected" not in name}
        found: PubAck = await self._inner.store(replace(write, headers=headers or None), **options)
        return found


class TestCareless(BusContract):
    @asynccontextmanager
    async def make(self) -> AsyncIterator[Connect]:
        broker = MemoryBroker()

        async def connect(name: str) -> Bus:
            found: Any = Careless(broker.connect(name=name))
            return found  # type: ignore[no-any-return] # a bus by its behaviour

        yield connect


class Forgetful(Agent, name="forgetful"):
    """You answer without a record."""

    own: Model

    @on
    async def do_task(self, task: Task) -> AgentResult:
        said = [user(f"{type(self).instructions}\n{task.text}")]
        answer = await self.own.complete(Prompt(messages=tuple(said)))
        while answer.tool_calls:
            answer = await self.own.complete(Prompt(messages=tuple(said)))
        return AgentResult(status="done", text=answer.text, turns=1, usage=answer.usage)


class TestForgetful(AgentContract):
    def make(self, model: Model) -> type[Agent]:
        class Under(Forgetful, name="forgetful"):
            __doc__ = Forgetful.__doc__
            own = model

        return Under
