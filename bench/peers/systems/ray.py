"""Ray: tasks of a driver, run on nodes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers, venvs
from bench.peers.peer import Peer, Variant

# Ray's least is 75 MB; it takes 30 % of the memory by default
STORE_BYTES = 80_000_000


class Ray(Peer):
    """A head without CPUs, the sender as driver, a worker as a node."""

    name = "ray"
    packages = ("ray",)
    worker = "1 node of 2 CPUs (2 processes at once), object store of 80 MB"
    result = "in the driver's memory"
    variants = (
        Variant(
            key="tasks",
            durability="none: tasks and results belong to the driver, in its memory, and end with it",
            recovery="max_retries 3 (default), when the head sees that the node is gone",
            strength=0,
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:  # noqa: ARG002 - one row
        """Start a head node that runs no tasks itself."""
        return _head(Path(venvs.python_of(self)).parent / "ray", folder)


@contextlib.asynccontextmanager
async def _head(ray: Path, folder: Path) -> AsyncIterator[dict[str, Any]]:
    port = servers.free_port()
    options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", f"--object-store-memory={STORE_BYTES}"]
    options += [f"--temp-dir={folder}", "--include-dashboard=false", "--disable-usage-stats", "--block"]
    command = [str(ray.with_name("python")), str(ray), "start", "--head", *options]
    async with servers.running(command, port, folder / "head.log"):
        yield {"address": f"127.0.0.1:{port}", "store_bytes": STORE_BYTES}
