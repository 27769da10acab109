"""AutoGen Core's side: an agent, a worker runtime that hosts it, and a sender with the host."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autogen_core import AgentId, MessageContext, RoutedAgent, rpc  # type: ignore[import-not-found]
from autogen_core._serialization import try_get_known_serializers_for_type  # type: ignore[import-not-found]
from autogen_ext.runtimes.grpc import (  # type: ignore[import-not-found]
    GrpcWorkerAgentRuntime,
    GrpcWorkerAgentRuntimeHost,
)

from bench.peers.apps import slot
from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send


@dataclass
class Noop:
    """Asks for a note."""

    n: int
    text: str


@dataclass
class Slow:
    """Asks for a note, a wait and a note."""

    n: int
    seconds: float


@dataclass
class Done:
    """The answer to both."""

    n: int


class Doer(RoutedAgent):  # type: ignore[misc, unused-ignore]
    """Runs what it is asked."""

    @rpc  # type: ignore[misc, untyped-decorator, unused-ignore]
    async def noop(self, message: Noop, ctx: MessageContext) -> Done:  # noqa: ARG002 - AutoGen hands it to all
        note(message.n)
        return Done(len(message.text))

    @rpc  # type: ignore[misc, untyped-decorator, unused-ignore]
    async def slow(self, message: Slow, ctx: MessageContext) -> Done:  # noqa: ARG002 - AutoGen hands it to all
        note(message.n, BEGAN)
        await asyncio.sleep(message.seconds)
        note(message.n, ENDED)
        return Done(message.n)


class Sender:
    """Calls the agents; nothing but its own memory holds what no worker has yet."""

    def __init__(self) -> None:
        self._host: GrpcWorkerAgentRuntimeHost
        self._runtime: GrpcWorkerAgentRuntime
        self._pending: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        # both belong to the loop that they are made in
        self._host = GrpcWorkerAgentRuntimeHost(address=TOLD["address"])
        self._host.start()
        self._runtime = GrpcWorkerAgentRuntime(host_address=TOLD["address"])
        await self._runtime.start()
        _learn(self._runtime)

    async def burst(self, numbers: Sequence[int]) -> None:
        self._later([Noop(n, TEXT) for n in numbers])

    async def single(self, n: int) -> bool:
        await self._call(Noop(n, TEXT))
        return True

    async def slow(self, n: int, seconds: float) -> None:
        self._later([Slow(n, seconds)])

    async def close(self) -> None:
        await self._runtime.stop()
        await self._host.stop()

    def _later(self, messages: Sequence[Noop | Slow]) -> None:
        task = asyncio.create_task(self._calls(messages))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _calls(self, messages: Sequence[Noop | Slow]) -> None:
        for start in range(0, len(messages), 64):
            await asyncio.gather(*(self._call(message) for message in messages[start : start + 64]))

    async def _call(self, message: Noop | Slow) -> None:
        # a call to an agent that nobody hosts would be dropped without a word
        while not (ready := sorted(Path(TOLD["folder"]).glob("*.ready"))):
            await asyncio.sleep(0.001)
        agent = ready[message.n % len(ready)].stem
        await self._runtime.send_message(message, recipient=AgentId(agent, "it"))


def _learn(runtime: GrpcWorkerAgentRuntime) -> None:
    for kind in (Noop, Slow, Done):
        runtime.add_message_serializer(try_get_known_serializers_for_type(kind))


async def work() -> None:
    """Host an agent until the process is told to end."""
    agent = f"doer{slot.take()}"
    runtime = GrpcWorkerAgentRuntime(host_address=TOLD["address"])
    await runtime.start()
    _learn(runtime)
    await Doer.register(runtime, agent, lambda: Doer("runs tasks"))
    (Path(TOLD["folder"]) / f"{agent}.ready").touch()
    await runtime.stop_when_signal()


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        asyncio.run(work())
    else:
        send(Sender())
