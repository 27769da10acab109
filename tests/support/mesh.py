"""The routes between the servers of a cluster, each through a door that can be shut: partitions without root.

A shut door holds what is on its way and takes no more, as packets that are dropped do: connections stand, nothing
arrives, and what was held arrives when the door opens. The doors have a thread of their own, because a harness that
is busy must not slow the cluster down.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import permutations
from typing import Protocol

_CHUNK = 1 << 16
_END_S = 5.0
_RETRANSMIT_S = 0.3


class Mesh(Protocol):
    """Can cut servers off from each other."""

    def isolate(self, number: int) -> None:
        """Cut a server off from all others, both ways; its clients stay."""

    def deafen(self, number: int) -> None:
        """Let nothing of the others reach a server, a one-way partition."""

    def heal(self) -> None:
        """Let everything pass again."""

    def close(self) -> None:
        """End it."""


class RouteMesh:
    """One door for each ordered pair of servers, numbered from 0.

    Server ``a`` dials server ``b`` at ``door(a, b)``. Servers dial each other from both sides and use what stands
    first, so a way from ``a`` to ``b`` leads through both doors of the pair.
    """

    def __init__(self, count: int) -> None:
        """Prepare doors before ``count`` servers, which shall take routes on the ports ``targets``."""
        self._ways = list(permutations(range(count), 2))
        self._listening = {way: _listen() for way in self._ways}
        # after the doors, which would else take one of these
        self.targets = list(free_ports(count))
        self._loop = asyncio.new_event_loop()
        self._gates = {way: asyncio.Event() for way in self._ways}
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._heals = 0
        for gate in self._gates.values():
            gate.set()
        self._thread = threading.Thread(target=self._run, name="route-mesh", daemon=True)
        self._thread.start()

    def door(self, origin: int, target: int) -> int:
        """Return the port at which ``origin`` reaches ``target``."""
        port: int = self._listening[origin, target].getsockname()[1]
        return port

    def cut(self, *ways: tuple[int, int]) -> None:
        """Let nothing more pass from the first to the second of each pair."""
        self._call(lambda: self._shut(ways))

    def isolate(self, number: int) -> None:
        """Cut a server off from all others, both ways."""
        self.cut(*(way for way in self._ways if number in way))

    def deafen(self, number: int) -> None:
        """Let nothing reach a server, a one-way partition.

        What it says still arrives, for as long as TCP goes on without acknowledgements: after the first retransmission
        a sender stands still.
        """
        self.cut(*(way for way in self._ways if way[1] == number))
        back = [way for way in self._ways if way[0] == number]
        self._loop.call_soon_threadsafe(self._loop.call_later, _RETRANSMIT_S, self._stall, back, self._heals)

    def heal(self) -> None:
        """Open every door."""
        self._heals += 1
        self._call(self._free)

    def close(self) -> None:
        """End every connection and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_END_S)

    def _stall(self, ways: list[tuple[int, int]], heals: int) -> None:
        if heals == self._heals:
            self._shut(ways)

    def _shut(self, ways: Iterable[tuple[int, int]]) -> None:
        for way in ways:
            self._gates[way].clear()

    def _free(self) -> None:
        for gate in self._gates.values():
            gate.set()

    def _call(self, change: Callable[[], None]) -> None:
        done = threading.Event()

        def apply() -> None:
            change()
            done.set()

        self._loop.call_soon_threadsafe(apply)
        assert done.wait(_END_S), "the doors do not move"

    def _run(self) -> None:
        self._loop.run_until_complete(self._open())
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _open(self) -> None:
        for way, listener in self._listening.items():
            self._servers.append(await asyncio.start_server(self._handler(way), sock=listener))

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _handler(self, way: tuple[int, int]) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        origin, target = way

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._forward(reader, writer, origin=origin, target=target)
            except asyncio.CancelledError:
                # the mesh is closed, and with it this connection
                return
            finally:
                self._tasks.discard(task)

        return take

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, origin: int, target: int
    ) -> None:
        out, back = self._gates[origin, target], self._gates[target, origin]
        ends = [writer]
        halves: list[asyncio.Task[None]] = []
        try:
            # a greeting needs both ways; until then nobody is there
            await out.wait()
            await back.wait()
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.targets[target])
            except OSError:
                return
            ends.append(far_writer)
            halves.append(asyncio.create_task(_copy(reader, far_writer, out)))
            halves.append(asyncio.create_task(_copy(far_reader, writer, back)))
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for half in halves:
                half.cancel()
            for end in ends:
                end.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            await gate.wait()
            writer.write(data)
            await writer.drain()


def _listen() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def free_ports(count: int) -> Iterator[int]:
    """Return ports that were free a moment ago, all different."""
    held = [_listen() for _ in range(count)]
    try:
        return iter([each.getsockname()[1] for each in held])
    finally:
        for each in held:
            each.close()
