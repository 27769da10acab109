"""Restate: its server, and services that it calls."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_PACKAGE = "@restatedev/restate-server (npm)"
_RECOVERY = "a broken connection is seen at once; tried again after 0.5 s, 1 s, 1 s ... (its default grows to 1 min)"


class Restate(Peer):
    """One server that stores invocations and calls the service over HTTP/2."""

    name = "restate"
    packages = ("restate-sdk", "hypercorn", "httpx")
    worker = "2 processes (hypercorn), asyncio, 1,000 at once at most (the server's default for a partition)"
    result = "in the server, for calls; a sent one's journal, 1 day"
    variants = (
        Variant(
            key="fsync-on",
            durability="its log on disk, synced before every answer (its default, one node)",
            recovery=_RECOVERY,
            strength=2,
        ),
        Variant(
            key="fsync-off",
            durability="its log written, never synced by itself (rocksdb-disable-wal-fsync)",
            recovery=_RECOVERY,
            strength=1,
            options={"environment": {"RESTATE_LOG_SERVER__ROCKSDB_DISABLE_WAL_FSYNC": "true"}},
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start one node of everything."""
        return _server(folder, variant.options.get("environment", {}))

    def server_version(self) -> str:
        """Return the server's."""
        return servers.version("restate-server", package=_PACKAGE)


@contextlib.asynccontextmanager
async def _server(folder: Path, more: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    ingress, admin, node, worker = (servers.free_port() for _ in range(4))
    settings = {
        "RESTATE_BASE_DIR": str(folder / "restate"),
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_BIND_PORT": str(node),
        "RESTATE_INGRESS__BIND_PORT": str(ingress),
        "RESTATE_ADMIN__BIND_PORT": str(admin),
        # it leaves folders there
        "TMPDIR": str(folder),
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_DEFAULT_RETRY_POLICY__MAX_INTERVAL": "1s",
        **more,
    }
    command = [servers.find("restate-server", package=_PACKAGE), "--no-logo"]
    async with servers.running(command, ingress, folder / "restate.log", env={**os.environ, **settings}):
        told = {"ingress": ingress, "admin": admin}
        yield {name: f"http://127.0.0.1:{port}" for name, port in told.items()} | {"worker": f"127.0.0.1:{worker}"}
