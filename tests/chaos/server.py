"""A real nats-server for chaos: started, killed, stopped and started again on the same store and port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from callboard.runtime import server_binary
from tests.chaos.waiting import eventually

START_WITHIN_S = 20.0


class Server:
    """One nats-server on loopback, ``sync_interval: always`` as in production. Every method is safe to repeat."""

    def __init__(self, folder: Path, *, max_file_bytes: int = 4 << 30) -> None:
        self.port = _free_port()
        self.max_file_bytes = max_file_bytes
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start it and wait until it greets."""
        if self.is_running:
            return
        config = self._folder / "server.conf"
        config.write_text(self._config())
        binary = await asyncio.to_thread(server_binary.find)
        log = (self._folder / "server.err").open("ab")
        try:
            self._process = subprocess.Popen(
                [str(binary.path), "-c", str(config)], stdout=log, stderr=log, start_new_session=True
            )
        finally:
            log.close()
        await eventually(self._greets, within_s=START_WITHIN_S, what="the server's greeting")

    def kill(self) -> float:
        """End it with SIGKILL; return when. What it had not written is gone."""
        at_s = time.monotonic()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        return at_s

    async def restart(self) -> float:
        """Kill it and start it on the same store; return when it was killed."""
        at_s = self.kill()
        await self.start()
        return at_s

    def _config(self) -> str:
        store = json.dumps(str(self._folder / "store"))
        return (
            f'listen: "127.0.0.1:{self.port}"\n'
            f"jetstream {{ store_dir: {store}, max_mem: 256MB, max_file: {self.max_file_bytes}, sync_interval: always\n"
            "  limits { batch { max_inflight_per_stream: 50, max_inflight_total: 1000 } } }\n"
        )

    async def _greets(self) -> bool:
        if not self.is_running:
            said = (self._folder / "server.err").read_text()[-2000:]
            message = f"the server ended; it said: {said}"
            raise RuntimeError(message)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        line = await reader.readline()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        # until streams are recovered it greets without taking requests; the harness asks for a stream before it loads
        return line.startswith(b"INFO ")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
