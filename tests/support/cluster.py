"""One nats-server for a test, or three that are a cluster, behind the same few words."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import BusError
from tests.support.eventually import eventually
from tests.support.server import NatsServer

_LEADER_S = 30.0


class Servers:
    """The servers of a run, on loopback. ``more`` gives each one's further configuration, by its number from 0."""

    def __init__(self, folder: Path, *, count: int = 1, more: Callable[[int], str]) -> None:
        routes = _routes(count)
        self.all = [
            NatsServer(
                folder / (f"server-{number}" if number else "server"),
                jetstream=False,
                more=f"{more(number)}\n{_clustered(number, routes)}",
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


def _routes(count: int) -> Sequence[int]:
    """Return free ports for the links between the servers, none for a single one."""
    if count == 1:
        return []
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _clustered(number: int, routes: Sequence[int]) -> str:
    if not routes:
        return ""
    urls = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
    return f'server_name: cb{number}\ncluster {{ name: cb, listen: "127.0.0.1:{routes[number]}"\n  routes: [{urls}] }}'
