"""LangGraph with its Postgres checkpointer."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_RECOVERY = "none of its own; our poller finds the thread unfinished, its lock free, and resumes it"


class LangGraph(Peer):
    """A graph of one node for a task, a thread of checkpoints for each."""

    name = "langgraph"
    packages = ("langgraph", "langgraph-checkpoint-postgres", "psycopg")
    worker = (
        "1 process, 64 at once, asyncio; it has neither queue nor worker: ours polls the checkpointer's list"
        " every 10 ms and claims a thread by a file's lock"
    )
    result = "checkpoints of input and result, with every task"
    variants = (
        Variant(
            key="fsync-on",
            durability="Postgres, every commit synced (its default), durability=sync",
            recovery=_RECOVERY,
            strength=2,
        ),
        Variant(
            key="fsync-off",
            durability="Postgres, written but never synced by itself (fsync=off): the system's loss may ruin it",
            recovery=_RECOVERY,
            strength=1,
            options={"settings": ["fsync=off"]},
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a Postgres."""
        return servers.postgres(folder, settings=variant.options.get("settings", ()))

    def server_version(self) -> str:
        """Return Postgres's."""
        return servers.version("postgres", package="postgresql")
