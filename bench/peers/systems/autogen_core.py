"""AutoGen Core, its distributed runtime."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant


class AutogenCore(Peer):
    """Agents in worker runtimes, joined by its gRPC host; the sender calls them."""

    name = "autogen-core"
    packages = ("autogen-core", "autogen-ext", "grpcio")
    worker = (
        "1 process (gRPC worker runtime), asyncio, no limit at once; two workers cannot share a type of agent,"
        " so each has its own and the sender takes turns"
    )
    result = "nothing; the call's reply"
    cannot = {  # noqa: RUF012 - as declared by `Peer`
        "submit": "it hands a call over only when a worker hosts the agent; until then the sender keeps it itself",
    }
    variants = (
        Variant(
            key="grpc",
            durability="none: calls wait in the memory of sender and host (gRPC host in the sender's process)",
            recovery="none: a call to a dead worker is never answered, one to no worker is dropped",
            strength=0,
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:  # noqa: ARG002 - one row
        """Choose the host's address; it runs in the sender, since it keeps nothing."""
        return _address()


@contextlib.asynccontextmanager
async def _address() -> AsyncIterator[dict[str, Any]]:
    yield {"address": f"127.0.0.1:{servers.free_port()}"}
