"""One nats-server for a test, or three that are a cluster, behind the same few words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import BusError
from tests.support.eventually import eventually
from tests.support.mesh import Mesh, RouteMesh, free_ports
from tests.support.server import NatsServer

_LEADER_S = 30.0


class Servers:
    """The servers of a run, on loopback. ``more`` gives each one's further configuration, by its number from 0.

    Attributes:
        mesh: What can cut them off from each other, if it was asked for.
    """

    def __init__(
        self, folder: Path, *, count: int = 1, more: Callable[[int], str] = lambda _: "", has_mesh: bool = False
    ) -> None:
        doors = RouteMesh(count) if has_mesh and count > 1 else None
        self.mesh: Mesh | None = doors
        routes = doors.targets if doors is not None else list(free_ports(count)) if count > 1 else []
        self.all = [
            NatsServer(
                folder / (f"server-{number}" if number else "server"),
                jetstream=False,
                more=f"{more(number)}\n{_clustered(number, routes, doors)}",
            )
            for number in range(count)
        ]

    @property
    def first(self) -> NatsServer:
        """The only one, or any of them."""
        return self.all[0]

    @property
    def url(self) -> str:
        """The addresses of all, as a client takes them."""
        return ",".join(server.url for server in self.all)

    @property
    def role(self) -> str:
        """What to call the one that ``victim`` returns."""
        return "leader" if len(self.all) > 1 else "server"

    async def start(self) -> None:
        """Start all at once: alone a member of a cluster does not come up."""
        await asyncio.gather(*(server.start() for server in self.all))

    def kill(self) -> None:
        """End all, as a crash does."""
        for server in self.all:
            server.kill()
        if self.mesh is not None:
            self.mesh.close()

    async def victim(self, bus: Bus) -> NatsServer:
        """Return the server that hurts most: the one that leads the actors' stream."""
        if len(self.all) == 1:
            return self.first
        found: list[str] = []

        async def has_leader() -> bool:
            try:
                info = await bus.stream_info(subjects.ACTORS)
            except BusError:
                return False
            if info is not None and info.leader:
                found.append(info.leader)
            return bool(found)

        await eventually(has_leader, within_s=_LEADER_S, what="a leader of the actors' stream", every_s=0.1)
        return self.all[int(found[0].removeprefix("cb"))]


def _clustered(number: int, routes: Sequence[int], mesh: RouteMesh | None) -> str:
    if not routes:
        return ""
    ports = [port if mesh is None else mesh.door(number, n) for n, port in enumerate(routes) if n != number]
    urls = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
    # what servers tell each other of third ones must not lead past the doors: nobody listens on port 1
    advertised = 'advertise: "127.0.0.1:1"\n' if mesh is not None else ""
    listen = f'listen: "127.0.0.1:{routes[number]}"'
    return f"server_name: cb{number}\ncluster {{ name: cb, {listen}\n{advertised}  routes: [{urls}] }}"
