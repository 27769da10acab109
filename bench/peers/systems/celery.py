"""Celery on Redis, set as its documentation advises for tasks that must survive their worker."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_HOUR = "visibility_timeout 1 h (default): a dead worker's tasks wait for it"


class Celery(Peer):
    """Prefork workers, late acks."""

    name = "celery"
    packages = ("celery", "kombu", "redis")
    worker = "2 processes (prefork), 1 at once each, acks_late, reject_on_worker_lost, prefetch 4 (1 for long tasks)"
    result = "in Redis, with every task, 1 day"
    variants = (
        Variant(
            key="everysec",
            durability="Redis AOF, synced every second (appendfsync everysec)",
            recovery=_HOUR,
            strength=1,
            options={"appendfsync": "everysec"},
        ),
        Variant(
            key="always",
            durability="Redis AOF, synced before every answer (appendfsync always)",
            recovery=_HOUR,
            strength=2,
            options={"appendfsync": "always"},
        ),
        Variant(
            key="visibility-10s",
            durability="Redis AOF, synced every second (appendfsync everysec)",
            recovery="visibility_timeout 10 s, looked at about every 100 s; longer tasks run twice at once",
            strength=1,
            options={"appendfsync": "everysec", "visibility_s": 10},
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a Redis."""
        return servers.redis(variant.options["appendfsync"], folder)

    def worker_command(self, python: str) -> list[str]:
        """Start a prefork worker of two processes, one for each core here."""
        # its name tells two workers on one machine apart
        return [python, "-m", "celery", "-A", self.module, "worker", "-c", "2", "-n", "w%i@%h", "--loglevel", "WARNING"]

    def environment(self, told: dict[str, Any]) -> dict[str, str]:  # noqa: ARG002 - the same for all
        """Celery asks root to insist."""
        return {"C_FORCE_ROOT": "1"}

    def server_version(self) -> str:
        """Return Redis's."""
        return servers.version("redis-server", package="redis-server")
