"""Dramatiq on Redis."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_MINUTE = "heartbeat_timeout 60 s (default), then by chance: one command in 1,000 looks for dead workers' tasks"


class Dramatiq(Peer):
    """Processes with threads, acked after the actor; results in Redis."""

    name = "dramatiq"
    packages = ("dramatiq", "redis")
    worker = "2 processes, 8 threads each (its defaults here), prefetch twice the threads"
    result = "in Redis, with every no-op task, 10 min"
    variants = (
        Variant(
            key="everysec",
            durability="Redis AOF, synced every second (appendfsync everysec)",
            recovery=_MINUTE,
            strength=1,
            options={"appendfsync": "everysec"},
        ),
        Variant(
            key="always",
            durability="Redis AOF, synced before every answer (appendfsync always)",
            recovery=_MINUTE,
            strength=2,
            options={"appendfsync": "always"},
        ),
        Variant(
            key="heartbeat-10s",
            durability="Redis AOF, synced every second (appendfsync everysec)",
            recovery="heartbeat_timeout 10 s, and one command in 20 looks (maintenance_chance 50,000 of a million)",
            strength=1,
            options={"appendfsync": "everysec", "heartbeat_ms": 10_000, "maintenance": 50_000},
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a Redis."""
        return servers.redis(variant.options["appendfsync"], folder)

    def worker_command(self, python: str) -> list[str]:
        """Start it from its command line."""
        return [python, "-m", "dramatiq", self.module, "--processes", "2", "--threads", "8"]

    def server_version(self) -> str:
        """Return Redis's."""
        return servers.version("redis-server", package="redis-server")
