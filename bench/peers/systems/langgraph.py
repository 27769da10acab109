"""LangGraph with its Postgres checkpointer."""

from __future__ import annotations

from bench.peers.stores import PostgresPeer, on_postgres

_RECOVERY = "none of its own; our poller finds the thread unfinished, its lock free, and resumes it"


class LangGraph(PostgresPeer):
    """A graph of one node for a task, a thread of checkpoints for each."""

    name = "langgraph"
    packages = ("langgraph", "langgraph-checkpoint-postgres", "psycopg")
    worker = (
        "1 process, 64 at once, asyncio; it has neither queue nor worker: ours polls the checkpointer's list"
        " every 10 ms and claims a thread by a file's lock"
    )
    result = "checkpoints of input and result, with every task"
    variants = on_postgres(_RECOVERY, more=", durability=sync")
