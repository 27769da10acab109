"""A nats-server of its own for each sync mode, with the product's streams; both sides of a comparison use the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from callboard.runtime import server_binary
from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError

Mode = Literal["default", "always"]
MODES: tuple[Mode, ...] = ("default", "always")
PAYLOAD_BYTES = 256
PAYLOAD = b'{"text":"' + b"x" * (PAYLOAD_BYTES - 11) + b'"}'
IN_FLIGHT = 1000
_START_S = 20.0
_CONFIG = """
listen: "127.0.0.1:-1"
ports_file_dir: "{folder}"
server_name: bench
max_payload: 1MB
jetstream {{ store_dir: "{folder}/store"{sync} }}
"""


class Broker:
    """``async with Broker(mode, folder) as broker``: started, provisioned, and removed at the end."""

    def __init__(self, mode: Mode, parent: Path | None = None, *, more: str = "", has_streams: bool = True) -> None:
        """Prepare. ``more`` are further lines of its configuration; without streams it is anybody's server."""
        self.mode = mode
        self.url = ""
        self.ports: dict[str, list[str]] = {}
        self._more = more
        self._has_streams = has_streams
        self._folder = Path(tempfile.mkdtemp(prefix=f"cb-bench-{mode}-", dir=parent))
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            if self._has_streams:
                await self.provision()
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @contextlib.asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """Open a bus for as long as the block lasts."""
        bus = await connect(self.url, name="bench")
        try:
            yield bus
        finally:
            await bus.close()

    async def provision(self) -> None:
        """Make the product's streams."""
        wanted = topology.declared(TopologySettings())
        async with self.bus() as bus:
            await provision.apply(bus, await provision.plan(bus, wanted))

    async def reset(self) -> None:
        """Begin a round with an empty queue and an empty ledger."""
        async with self.bus() as bus:
            await bus.delete_stream(topology.WORK)
            await bus.delete_stream(topology.LEDGER)
        await self.provision()

    async def fill(self, subject: str, count: int, payload: bytes = PAYLOAD) -> None:
        """Put tasks into the queue, each a plain publish without headers, as any client would."""
        async with self.bus() as bus:
            for start in range(0, count, IN_FLIGHT):
                writes = [Write(subject, payload)] * min(IN_FLIGHT, count - start)
                answers = await bus.store_many(writes, timeout_s=30)
                for answer in answers:
                    if isinstance(answer, BusError):
                        raise answer

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the server has taken; 0 where the system does not tell."""
        try:
            text = Path(f"/proc/{self._pid}/stat").read_text("ascii")
        except OSError:
            return 0.0
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that the server occupies; 0 where the system does not tell."""
        try:
            return int(Path(f"/proc/{self._pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0

    @property
    def open_files(self) -> int:
        """Files and sockets that the server has open; 0 where the system does not tell."""
        try:
            return sum(1 for _ in Path(f"/proc/{self._pid}/fd").iterdir())
        except OSError:
            return 0

    @property
    def _pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def _start(self) -> None:
        binary = server_binary.find()
        sync = ", sync_interval: always" if self.mode == "always" else ""
        config = self._folder / "server.conf"
        config.write_text(_CONFIG.format(folder=self._folder, sync=sync) + self._more, encoding="utf-8")
        log = (self._folder / "server.log").open("wb")
        with log:
            self._process = subprocess.Popen([str(binary.path), "-c", str(config)], stdout=log, stderr=log)
        give_up_s = time.monotonic() + _START_S
        while time.monotonic() < give_up_s:
            for ports in self._folder.glob("nats-server_*.ports"):
                with contextlib.suppress(ValueError):
                    # half written, it is no JSON
                    self.ports = json.loads(ports.read_text("utf-8"))
                    self.url = self.ports["nats"][0]
                    return
            await asyncio.sleep(0.02)
        message = f"the server did not start:\n{(self._folder / 'server.log').read_text('utf-8')[-2000:]}"
        raise RuntimeError(message)

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
