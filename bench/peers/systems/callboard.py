"""Ourselves, as `callboard worker start` runs a worker."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_RECOVERY = "lease of 4 s (default), extended while the worker lives, so that long tasks run once"


class Callboard(Peer):
    """This project."""

    name = "callboard"
    packages = ("callboard", "nats-py")
    worker = "1 process, 64 at once, one event loop"
    result = "a record in a stream, with every task"
    has_venv = False
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
        """Start a nats-server; the sender makes the streams."""
        return servers.nats(variant.options["sync"], folder)

    def worker_command(self, python: str) -> list[str]:
        """Start one from the command line."""
        return [python, "-m", "callboard", "worker", "start", self.module, "--log-level", "error"]

    def environment(self, told: dict[str, Any]) -> dict[str, str]:
        """Tell the command line where the server is."""
        return {"CALLBOARD_NATS__URL": told["url"]}

    def server_version(self) -> str:
        """Return the broker's."""
        return servers.nats_version()
