"""A worker whose agent calls tools, and that dies at a chosen point: ``python -m tests.chaos.tool_main``."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.agents.llm.base import ToolCall
from callboard.agents.tools.approver import ToolAnswer, ToolQuestion
from callboard.agents.tools.base import Tool, ToolResult
from callboard.agents.tools.batch import invoke_all
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool
from callboard.agents.tools.permission import Permissions
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.turn_api import TurnApi
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.capability import Capability
from callboard.runtime.worker import Worker, WorkerOptions

PR_SET_PDEATHSIG = 1
AGENT = "tool-agent"


class Options(Struct, frozen=True, kw_only=True):
    """How the worker is to be.

    Attributes:
        folder: Where the tools write that they ran.
        die_at: ``<number>-before`` or ``<number>-after`` a write of a step or a state; or the name of a line of a tool.
        is_unsafe_repeated: The control: say of the unsafe tools that they may be repeated.
        has_agent: Host the agent.
        has_pool: Serve the pooled tools.
    """

    url: str
    folder: str
    die_at: str = ""
    is_unsafe_repeated: bool = False
    has_agent: bool = True
    has_pool: bool = False


class Work(Struct, frozen=True, kw_only=True):
    """What to call: names of tools in rounds."""

    rounds: list[list[str]]


class Said(Struct, frozen=True, kw_only=True):
    """What a person says."""

    choice: str
    text: str = ""


class Results(Struct, frozen=True, kw_only=True):
    """State of the agent."""

    texts: list[str] = []
    asked: int = 0


def die(options: Options, point: str) -> None:
    """End this process as kill -9 does, if this is the point."""
    if options.die_at == point:
        os.kill(os.getpid(), signal.SIGKILL)


def make(options: Options) -> tuple[list[Tool], type[Actor]]:
    """Return the tools and the agent."""

    def note(name: str, key: str) -> str:
        die(options, f"begin-{name}")
        with (Path(options.folder) / "ran").open("a") as file:
            file.write(f"{name} {key} {os.getpid()}\n")
        die(options, f"end-{name}")
        return f"{name} ran"

    @tool(name="send", action="write")
    def send(context: ToolContext) -> str:
        """Change something outside that must not change twice."""
        return note("send", context.key)

    @tool(name="look", action="read")
    async def look(context: ToolContext) -> str:
        """Read something."""
        return note("look", context.key)

    @tool(name="post", action="write", pool="tool", timeout_s=30)
    async def post(context: ToolContext) -> str:
        """Change something outside, from a worker pool."""
        return note("post", context.key)

    @tool(name="fetch", action="read", pool="tool", timeout_s=30)
    def fetch(context: ToolContext) -> str:
        """Read something, from a worker pool."""
        return note("fetch", context.key)

    tools = [send, look, post, fetch]
    if options.is_unsafe_repeated:
        tools = [replace(each, is_repeatable=True) for each in tools]

    async def ask_person(turn: TurnApi | Actor, question: ToolQuestion, /) -> ToolAnswer:
        said = await turn.wait_for(Said)
        return msgspec.convert({"choice": said.choice, "text": said.text}, ToolAnswer)

    class ToolAgent(Actor, name=AGENT, restart_budget=1000):
        State = Results

        @on
        async def work(self, message: Work) -> None:
            found: list[ToolResult] = []
            for number, names in enumerate(message.rounds):
                calls = [ToolCall(id=f"c{number}.{n}", name=name) for n, name in enumerate(names)]
                found += await invoke_all(self, calls, tools=tools, permissions=Permissions(), approve=ask_person)
            self.state = Results(texts=[result.error or result.text for result in found])

    return tools, ToolAgent


class Deadly:
    """A bus that kills its process before or after its n-th write of a step or a state."""

    def __init__(self, bus: Bus, options: Options) -> None:
        self._bus = bus
        self._options = options
        self._count = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the bus has
        return getattr(self._bus, name)

    async def store(self, write: Write, **how: Any) -> Any:  # noqa: ANN401 - as the bus
        return await self._around([write], lambda: self._bus.store(write, **how))

    async def store_batch(self, writes: Sequence[Write], **how: Any) -> Any:  # noqa: ANN401 - as the bus
        return await self._around(writes, lambda: self._bus.store_batch(writes, **how))

    async def store_many(self, writes: Sequence[Write], **how: Any) -> Any:  # noqa: ANN401 - as the bus
        return await self._around(writes, lambda: self._bus.store_many(writes, **how))

    async def _around(self, writes: Sequence[Write], act: Callable[[], Coroutine[Any, Any, Any]]) -> Any:  # noqa: ANN401
        counts = any(write.subject.startswith((f"cb.step.{AGENT}.", f"cb.state.{AGENT}.")) for write in writes)
        self._count += counts
        number = self._count
        if counts:
            die(self._options, f"{number}-before")
        found = await act()
        if counts:
            die(self._options, f"{number}-after")
        return found


async def main(options: Options) -> None:
    """Serve until SIGTERM."""
    tools, agent = make(options)

    async def open_bus(name: str) -> Bus:
        return cast("Bus", Deadly(await connect(options.url, name=name), options))

    served: list[Capability[..., Any]] = [each.capability for each in tools if each.capability is not None]
    worker = Worker(
        served if options.has_pool else [],
        open_bus,
        actors=[agent] if options.has_agent else [],
        options=WorkerOptions(ack_wait_s=1.2, extend_every_s=0.3, holds_wait_s=0.2, hosts_registry=False),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    ready = Path(options.folder) / f"ready-{os.getpid()}"
    await worker.run(ready.touch)


if __name__ == "__main__":
    # a harness that is killed itself must not leave workers behind
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Options)))
