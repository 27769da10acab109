"""DBOS on Postgres."""

from __future__ import annotations

from bench.peers.peer import Variant
from bench.peers.stores import PostgresPeer, on_postgres

_RECOVERY = "when an executor of the dead one's id starts again (ids given as a StatefulSet does); no other executor's"


class Dbos(PostgresPeer):
    """A library that stores workflows, and a queue of them that every process polls."""

    name = "dbos"
    packages = ("dbos", "SQLAlchemy", "psycopg")
    worker = "1 process, asyncio, no limit at once, polls every 1 s (defaults; 0.01 s in the row poll-10ms)"
    result = "the workflow's row with its input and output, with every task"
    variants = (
        *on_postgres(_RECOVERY),
        Variant(
            key="poll-10ms",
            durability="Postgres, every commit synced (its default)",
            recovery=_RECOVERY,
            strength=2,
            options={"poll_s": 0.01},
        ),
    )
