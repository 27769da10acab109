"""DBOS on Postgres."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_RECOVERY = "when an executor of the dead one's id starts again (ids given as a StatefulSet does); no other executor's"


class Dbos(Peer):
    """A library that stores workflows, and a queue of them that every process polls."""

    name = "dbos"
    packages = ("dbos", "SQLAlchemy", "psycopg")
    worker = "1 process, asyncio, no limit at once, polls every 1 s (defaults; 0.01 s in the row poll-10ms)"
    result = "the workflow's row with its input and output, with every task"
    variants = (
        Variant(
            key="fsync-on",
            durability="Postgres, every commit synced (its default)",
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
        Variant(
            key="poll-10ms",
            durability="Postgres, every commit synced (its default)",
            recovery=_RECOVERY,
            strength=2,
            options={"poll_s": 0.01},
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a Postgres."""
        return servers.postgres(folder, settings=variant.options.get("settings", ()))

    def server_version(self) -> str:
        """Return Postgres's."""
        return servers.version("postgres", package="postgresql")
