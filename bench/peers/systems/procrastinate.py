"""procrastinate on Postgres."""

from __future__ import annotations

from bench.peers.peer import Variant
from bench.peers.stores import PostgresPeer, on_postgres

_TEN_MINUTES = "its documentation's periodic task retries stalled jobs every 10 min (heartbeat older than 30 s)"


class Procrastinate(PostgresPeer):
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
        *on_postgres(_TEN_MINUTES),
        Variant(
            key="stalled-10s",
            durability="Postgres, every commit synced (its default)",
            recovery="the periodic task looks every 10 s (heartbeat older than 30 s, the default)",
            strength=2,
            options={"cron": "* * * * * */10"},
        ),
    )

    def worker_command(self, python: str) -> list[str]:
        """Start it from its command line."""
        # its default says two lines for every job
        general = ["--app", f"{self.module}.app", "--log-level", "warning"]
        return [python, "-m", "procrastinate", *general, "worker", "--concurrency", "64"]
