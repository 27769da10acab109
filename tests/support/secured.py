"""Servers that run on what `callboard nats config` has written, and connections as each of its users."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.base import Bus
from callboard.runtime.config import Settings
from callboard.runtime.errors import BusError, TopologyError
from callboard.runtime.host import connector
from callboard.runtime.security.folder import Folder
from callboard.runtime.security.plan import MAIN, Plan, Server, unit
from tests.support.eventually import eventually
from tests.support.server import find_binary

_START_S = 30.0


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def planned(
    *,
    servers: int = 1,
    has_tls: bool = True,
    pools: Sequence[str] = (),
    hosts: Sequence[str] = (),
    agents: Sequence[str] = (),
    **more: object,
) -> Plan:
    """Return a plan on free ports of loopback."""
    ports = iter(free_ports(3 * servers))
    made = tuple(
        Server(
            name=f"cb-{number + 1}",
            host="127.0.0.1",
            port=next(ports),
            cluster_port=next(ports),
            http_port=next(ports),
        )
        for number in range(servers)
    )
    plan = Plan(
        servers=made,
        has_tls=has_tls,
        pools=tuple(unit(text, role="worker") for text in pools),
        hosts=tuple(unit(text, role="host") for text in hosts),
        agents=tuple(unit(text, role="agent") for text in agents),
        profile="fast",
    )
    return msgspec.structs.replace(plan, **more)


class Secured:
    """The servers of a folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._buses: list[Bus] = []

    async def start(self) -> Secured:
        """Start all, and wait until they let clients in."""
        binary = find_binary()
        assert binary is not None
        for server in self.folder.plan().servers:
            error_file = self.folder.path / server.name / "stderr"
            with error_file.open("ab") as errors:
                self._processes[server.name] = subprocess.Popen(  # noqa: ASYNC220 - milliseconds
                    [binary, "-c", str(self.folder.config_file(server.name))],
                    stdout=errors,
                    stderr=errors,
                    stdin=subprocess.DEVNULL,
                )
        deadline = time.monotonic() + _START_S
        for server in self.folder.plan().servers:
            while not self._listens(server):
                assert self._processes[server.name].poll() is None, self.log(server.name)
                assert time.monotonic() < deadline, self.log(server.name)
                await asyncio.sleep(0.01)
        return self

    def log(self, server: str = "cb-1") -> str:
        """Return what a server has said."""
        files = (self.folder.path / server / "stderr", self.folder.path / server / "nats.log")
        return "".join(file.read_text("utf-8", "replace") for file in files if file.exists())

    def settings(self, user: str, *, account: str = MAIN, **flags: object) -> Settings:
        """Return the settings of a user as its own file has them."""
        given = {key.replace("__", "."): value for key, value in flags.items()}
        return Settings.load(file=self.folder.settings_file(account, user), env={}, flags=given)

    async def bus(self, user: str, *, account: str = MAIN, **flags: object) -> Bus:
        """Connect as a user; closed with the servers."""
        bus = await connector(self.settings(user, account=account, **flags))(f"test-{user}")
        self._buses.append(bus)
        return bus

    async def provision(self, *capabilities: str) -> None:
        """Make the streams and consumers, as the operator."""
        settings = self.settings("operator")
        found: list[Bus] = []

        async def has_jetstream() -> bool:
            # servers of a cluster that is being formed let clients in before they answer
            try:
                bus = found[0] if found else await self.bus("operator", nats__connect_deadline_s=2.0)
                found[:] = [bus]
                await bus.stream_names()
            except BusError:
                return False
            return True

        await eventually(has_jetstream, within_s=40, what="JetStream of the servers")
        (bus,) = found
        fitting = topology.fit(settings.topology, store_bytes=4 << 30)
        wanted = topology.declared(fitting, capabilities=capabilities, work=settings.work)

        async def is_made() -> bool:
            # the servers of a cluster find each other one after the other
            try:
                await provision.apply(bus, await provision.plan(bus, wanted))
            except TopologyError as error:
                if "no suitable peers" in str(error):
                    return False
                raise
            return True

        await eventually(is_made, within_s=40, what="all servers of the cluster")

    async def close(self) -> None:
        """Close the connections and end the servers."""
        for bus in self._buses:
            await bus.close()
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def _listens(self, server: Server) -> bool:
        if not self.folder.pid_file(server.name).exists():
            return False
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex(("127.0.0.1", server.port)) == 0


@asynccontextmanager
async def secured(folder: Path, plan: Plan, *capabilities: str) -> AsyncIterator[Secured]:
    """Give provisioned servers that run on a folder written for ``plan``."""
    files = Folder(folder)
    files.write(plan)
    servers = await Secured(files).start()
    try:
        await servers.provision(*capabilities)
        yield servers
    finally:
        await servers.close()


def modes(folder: Path) -> dict[str, int]:
    """Return the permission bits of every file by its path inside the folder."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            found[str(path.relative_to(folder))] = path.stat().st_mode & 0o777
    return found
