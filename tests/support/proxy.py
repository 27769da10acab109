"""A proxy that can keep a server's messages to itself while the link stays healthy: a node cut off from its peers."""

from __future__ import annotations

import asyncio
import contextlib


class MuteProxy:
    """Stands before a server. Connections that are open when ``mute`` is called get pongs, and no message any more."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._muted = 0
        self.connections = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> MuteProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def mute(self) -> None:
        self._muted = self.connections

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        to_server = await asyncio.open_connection("127.0.0.1", self._target)
        ways = (self._pass(reader, to_server[1]), self._filter(to_server[0], writer, number))
        tasks = [asyncio.create_task(way) for way in ways]
        self._tasks.update(tasks)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for end in (writer, to_server[1]):
            end.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    async def _filter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                body = b""
                if line.startswith((b"MSG ", b"HMSG ")):
                    body = await reader.readexactly(int(line.split()[-1]) + 2)
                    if number <= self._muted:
                        continue
                writer.write(line + body)
                await writer.drain()
