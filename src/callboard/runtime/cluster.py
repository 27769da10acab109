"""Three embedded servers that are one cluster: each a process of its own, started again when it dies."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Protocol, Self

from callboard.runtime import events
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import ServerSettings
from callboard.runtime.embedded import HOST, EmbeddedServer, check_port, free_port
from callboard.runtime.errors import CallboardError, ServerStartError
from callboard.runtime.logs import get_logger
from callboard.runtime.processes import RestartPolicy
from callboard.runtime.server_folder import MEMBER, DataFolder, Membership, RunningMember, RunningServer

# Where NATS puts its routes by convention: 4222 and 6222.
ROUTE_OFFSET = 2000
SERVER_RESTARTS = RestartPolicy(base_s=0.5, max_s=10.0, budget=20)

_log = get_logger(__name__)


class Told(Protocol):
    """Who hears what becomes of the servers."""

    def server_ended(self, member: RunningMember, *, status: int, delay_s: float | None) -> None:
        """It ended by itself; it is started again after ``delay_s``, or left as it is (None)."""
        ...

    def server_started(self, member: RunningMember) -> None:
        """It runs again, as another process."""
        ...


class EmbeddedCluster:
    """Servers on the loopback address, owned by this process, on one data folder.

    Use it as ``async with EmbeddedCluster(settings) as cluster: connect(cluster.state.url)``. Each server has a folder
    of its own below the data folder, with its configuration, log and store. Like ``EmbeddedServer`` they do not outlive
    their owner on Linux, and take no Ctrl-C of the terminal.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        count: int = 3,
        restarts: bool = True,
        policy: RestartPolicy = SERVER_RESTARTS,
        told: Told | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Prepare.

        Args:
            settings: Of all of them: ``port`` is the first one's and the others follow, 0 takes free ones.
            count: How many; odd, so that a half is never a majority.
            restarts: Whether one that dies is started again.
            policy: After which wait, and how often.
            told: Who hears of deaths and starts.
            clock: Time.
        """
        self._settings = settings
        self._count = count
        self._restarts = restarts
        self._policy = policy
        self._told = told
        self._clock = clock
        self._folder = DataFolder(settings.data_dir)
        self._members: list[_Member] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._version = ""

    @property
    def state(self) -> RunningServer:
        """Addresses, processes and version; ``pid`` is ours."""
        members = tuple(member.running for member in self._members)
        return RunningServer(
            url=",".join(member.url for member in members),
            pid=os.getpid(),
            owner_pid=os.getpid(),
            version=self._version,
            profile=self._settings.profile,
            members=members,
        )

    @property
    def store_bytes(self) -> int:
        """What the servers may store together."""
        return self._count * self._room()

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        await self.stop()

    async def start(self) -> RunningServer:
        """Start all servers and wait until each takes clients; their first leader comes a moment later.

        Cancelling stops what was started.

        Raises:
            ServerBinaryError: If there is no usable nats-server.
            DataFolderInUseError: If a server runs on the data folder already.
            PortInUseError: If a port is taken.
            ServerStartError: If one does not come up, or the folder holds data of another number of servers.
        """
        self._folder.lock()
        try:
            self._check_data()
            self._members = [_Member(server, url) for server, url in self._prepared()]
            started = await asyncio.gather(*(member.server.start() for member in self._members))
            for member, found in zip(self._members, started, strict=True):
                member.pid = found.pid
                self._version = found.version
            self._folder.write_state(self.state)
        except BaseException:
            await self.stop()
            raise
        self._keepers = [
            asyncio.create_task(self._keep(member), name=f"server-{member.server.name}") for member in self._members
        ]
        return self.state

    async def stop(self) -> None:
        """Stop all servers, at once and in good order; stopping twice is harmless."""
        keepers, self._keepers = self._keepers, []
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        try:
            await asyncio.gather(*(member.server.stop() for member in self._members))
        finally:
            self._folder.unlock()

    def _check_data(self) -> None:
        there = self._folder.member_names()
        if (self._folder.path / "jetstream").exists():
            message = (
                f"{self._folder.path} holds the data of a single server: `callboard up` goes on with it; a cluster "
                "begins in another folder (--data)"
            )
            raise ServerStartError(message)
        if there and len(there) != self._count:
            message = (
                f"{self._folder.path} holds the data of {len(there)} servers: start them with --cluster {len(there)}"
            )
            raise ServerStartError(message)

    def _prepared(self) -> list[tuple[EmbeddedServer, str]]:
        settings = self._settings
        ports = [settings.port + number if settings.port else free_port() for number in range(self._count)]
        routes = [settings.port + ROUTE_OFFSET + n if settings.port else free_port() for n in range(self._count)]
        room = self._room()
        found = []
        if settings.port:
            for port in routes:
                check_port(port, setting="server.port")
        for number, port in enumerate(ports):
            name = f"{MEMBER}{number + 1}"
            own = {
                "data_dir": settings.data_dir / name,
                "port": port,
                "http_port": settings.http_port + number if settings.http_port else 0,
                "max_file_bytes": room,
            }
            membership = Membership(name=name, route_port=routes[number], routes=tuple(routes))
            server = EmbeddedServer(settings.model_copy(update=own), clock=self._clock, membership=membership)
            found.append((server, f"nats://{HOST}:{port}"))
        return found

    def _room(self) -> int:
        """Return what each server may store: they share the disk."""
        if self._settings.max_file_bytes:
            return int(self._settings.max_file_bytes)
        return self._folder.max_file_bytes(self._settings) // self._count

    async def _keep(self, member: _Member) -> None:
        """Start a server again whenever it ends."""
        while True:
            status = await member.server.wait()
            ended, member.pid = member.running, 0
            # what its owner still holds of the dead one: the lock of its folder
            await member.server.stop()
            self._folder.write_state(self.state)
            delay_s = self._delay(member)
            _log.warning(events.SERVER_ENDED, server=member.server.name, pid=ended.pid, status=status, delay_s=delay_s)
            if self._told is not None:
                self._told.server_ended(ended, status=status, delay_s=delay_s)
            if delay_s is None or not await self._start_again(member, delay_s):
                return
            self._folder.write_state(self.state)
            _log.info(events.SERVER_STARTED, server=member.server.name, pid=member.pid)
            if self._told is not None:
                self._told.server_started(member.running)

    async def _start_again(self, member: _Member, delay_s: float | None) -> bool:
        while delay_s is not None:
            await self._clock.sleep(delay_s)
            try:
                member.pid = (await member.server.start()).pid
            except CallboardError as error:
                _log.warning(events.SERVER_UNSTARTED, server=member.server.name, code=error.code, message=str(error))
                delay_s = self._delay(member)
            else:
                return True
        return False

    def _delay(self, member: _Member) -> float | None:
        now_s = self._clock.monotonic()
        member.deaths_s.append(now_s)
        return self._policy.decide(member.deaths_s, now_s) if self._restarts else None


class _Member:
    """One place in the cluster and the process that fills it now."""

    def __init__(self, server: EmbeddedServer, url: str) -> None:
        self.server = server
        self.url = url
        self.pid = 0
        self.deaths_s: list[float] = []

    @property
    def running(self) -> RunningMember:
        return RunningMember(name=self.server.name, url=self.url, pid=self.pid)
