"""Three nats-servers on this machine, with every stream three times: the broker of the rows about replicas."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.broker import Mode
from callboard.runtime import server_binary
from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import CallboardError

SERVERS = 3
_START_S = 60.0
_CONFIG = """
listen: "127.0.0.1:{port}"
server_name: bench{number}
max_payload: 1MB
jetstream {{ store_dir: "{folder}/store{number}"{sync} }}
cluster {{ name: bench, listen: "127.0.0.1:{route}", routes: [{routes}] }}
"""


class Cluster:
    """``async with Cluster(mode, folder) as cluster``: started, provisioned, and removed at the end."""

    def __init__(self, mode: Mode, parent: Path | None = None) -> None:
        self.mode = mode
        self.url = ""
        self._folder = Path(tempfile.mkdtemp(prefix=f"cb-bench-r3-{mode}-", dir=parent))
        self._processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        try:
            self._start()
            await self._provision()
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> None:
        ports = _free_ports(2 * SERVERS)
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[SERVERS:])
        sync = ", sync_interval: always" if self.mode == "always" else ""
        binary = server_binary.find()
        for number in range(SERVERS):
            config = self._folder / f"server{number}.conf"
            config.write_text(
                _CONFIG.format(
                    port=ports[number],
                    route=ports[SERVERS + number],
                    number=number,
                    folder=self._folder,
                    sync=sync,
                    routes=routes,
                ),
                encoding="utf-8",
            )
            with (self._folder / f"server{number}.log").open("wb") as log:
                self._processes.append(subprocess.Popen([str(binary.path), "-c", str(config)], stdout=log, stderr=log))
        self.url = ",".join(f"nats://127.0.0.1:{port}" for port in ports[:SERVERS])

    async def _provision(self) -> None:
        wanted = topology.declared(TopologySettings(replicas=3))
        give_up_s = time.monotonic() + _START_S
        while True:
            try:
                bus = await connect(self.url.split(","), name="bench", connect_deadline_s=5)
                try:
                    await provision.apply(bus, await provision.plan(bus, wanted))
                finally:
                    await bus.close()
            except CallboardError:
                # no leader yet
                if time.monotonic() > give_up_s:
                    raise
                await asyncio.sleep(0.5)
            else:
                return

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
