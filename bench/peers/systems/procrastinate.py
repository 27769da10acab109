"""procrastinate on Postgres."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.peers import servers
from bench.peers.peer import Peer, Variant

_TEN_MINUTES = "its documentation's periodic task retries stalled jobs every 10 min (heartbeat older than 30 s)"


class Procrastinate(Peer):
    """One asyncio process; jobs are rows, locked while they run and marked when they have ended."""

    name = "procrastinate"
    packages = ("procrastinate", "psycopg")
    worker = "1 process, 64 at once, asyncio, woken by LISTEN/NOTIFY"
    result = "the job's row and its events stay; no returned value"
    cannot = {  # noqa: RUF012 - as declared by `Peer`
        "result_p50": "a task returns nothing to who submitted it",
        "result_p99": "a task returns nothing to who submitted it",
    }
    variants = (
        Variant(
            key="fsync-on",
            durability="Postgres, every commit synced (its default)",
            recovery=_TEN_MINUTES,
            strength=2,
        ),
        Variant(
            key="fsync-off",
            durability="Postgres, written but never synced by itself (fsync=off): the system's loss may ruin it",
            recovery=_TEN_MINUTES,
            strength=1,
            options={"settings": ["fsync=off"]},
        ),
        Variant(
            key="stalled-10s",
            durability="Postgres, every commit synced (its default)",
            recovery="the periodic task looks every 10 s (heartbeat older than 30 s, the default)",
            strength=2,
            options={"cron": "* * * * * */10"},
        ),
    )

    def server(self, variant: Variant, folder: Path) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Start a Postgres."""
        return servers.postgres(folder, settings=variant.options.get("settings", ()))

    def worker_command(self, python: str) -> list[str]:
        """Start it from its command line."""
        # its default says two lines for every job
        general = ["--app", f"{self.module}.app", "--log-level", "warning"]
        return [python, "-m", "procrastinate", *general, "worker", "--concurrency", "64"]

    def server_version(self) -> str:
        """Return Postgres's."""
        return servers.version("postgres", package="postgresql")
