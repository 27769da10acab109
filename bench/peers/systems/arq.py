"""arq on Redis."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_TIMEOUT = "job_timeout 300 s (default) and 10 s more: so long a dead worker's tasks stay marked as running"


class Arq(Peer):
    """One asyncio process that polls; jobs stay in Redis until they have ended."""

    name = "arq"
    packages = ("arq", "redis", "hiredis")
    worker = "1 process, 64 at once (max_jobs), asyncio, polls every 0.5 s (default; 0.01 s in the row tuned)"
    result = "in Redis, with every task, 1 hour"
    variants = (
        Variant(
            key="everysec",
            durability="Redis AOF, synced every second (appendfsync everysec)",
            recovery=_TIMEOUT,
            strength=1,
            options={"appendfsync": "everysec"},
        ),
        Variant(
            key="always",
            durability="Redis AOF, synced before every answer (appendfsync always)",
            recovery=_TIMEOUT,
            strength=2,
            options={"appendfsync": "always"},
        ),
        Variant(
            key="tuned",
            durability="Redis AOF, synced every second (appendfsync everysec)",
            recovery="job_timeout 10 s and 10 s more; longer tasks are cancelled",
            strength=1,
            options={"appendfsync": "everysec", "job_timeout_s": 10, "poll_s": 0.01},
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a Redis."""
        return servers.redis(variant.options["appendfsync"], folder)

    def worker_command(self, python: str) -> list[str]:
        """Start it from its command line."""
        return [python, "-m", "arq", f"{self.module}.WorkerSettings"]

    def server_version(self) -> str:
        """Return Redis's."""
        return servers.version("redis-server", package="redis-server")
