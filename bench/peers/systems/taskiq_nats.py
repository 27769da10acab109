"""taskiq with its JetStream broker."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_RECOVERY = "ack_wait 30 s (the server's default); no heartbeat, so longer tasks run twice at once"


class TaskiqNats(Peer):
    """Pull consumer, results in JetStream's object store."""

    name = "taskiq-nats"
    packages = ("taskiq", "taskiq-nats", "nats-py")
    worker = "2 processes, 100 at once each (its defaults), fetches 64"
    result = "an object in JetStream's object store, with every task"
    variants = (
        Variant(
            key="default",
            durability="stream on disk, synced every 2 min (nats-server's default)",
            recovery=_RECOVERY,
            strength=1,
            options={"sync": "default"},
        ),
        Variant(
            key="always",
            durability="stream on disk, synced before every answer (sync_interval: always)",
            recovery=_RECOVERY,
            strength=2,
            options={"sync": "always"},
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a nats-server."""
        return servers.nats(variant.options["sync"], folder)

    def worker_command(self, python: str) -> list[str]:
        """Start its command-line worker."""
        return [python, "-m", "taskiq", "worker", f"{self.module}:broker", "--workers", "2", "--log-level", "WARNING"]

    def server_version(self) -> str:
        """Return the broker's."""
        return servers.nats_version()
