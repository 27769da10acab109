"""DBOS's side: two workflows, a process that runs them, and a client.

A task is a workflow without steps: its input and its output are stored, and it runs again if its process dies.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence

from dbos import DBOS, DBOSClient, run_dbos_database_migrations  # type: ignore[import-not-found]

from bench.peers.apps import slot
from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

_VERSION = "1"


@DBOS.workflow(name="noop")  # type: ignore[misc, untyped-decorator, unused-ignore]
async def noop(n: int, text: str) -> int:
    note(n)
    return len(text)


@DBOS.workflow(name="slow")  # type: ignore[misc, untyped-decorator, unused-ignore]
async def slow(n: int, seconds: float) -> int:
    note(n, BEGAN)
    await asyncio.sleep(seconds)
    note(n, ENDED)
    return n


class Sender:
    """Enqueues with the client, as many at once as its pool has connections."""

    def __init__(self) -> None:
        self._client: DBOSClient

    async def open(self) -> None:
        # a worker makes tables and queue when it starts; here the sender comes first
        run_dbos_database_migrations(TOLD["url"])
        self._client = DBOSClient(
            system_database_url=TOLD["url"], application_name="peers", system_database_pool_size=16
        )
        self._client.register_queue("tasks", polling_interval_sec=TOLD.get("poll_s", 1.0))

    async def burst(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 64):
            part = numbers[start : start + 64]
            await asyncio.gather(*(self._client.enqueue_async(_named("noop"), n, TEXT) for n in part))

    async def single(self, n: int) -> bool:
        handle = await self._client.enqueue_async(_named("noop"), n, TEXT)
        # its default looks every second
        await handle.get_result(polling_interval_sec=0.001)
        return True

    async def slow(self, n: int, seconds: float) -> None:
        await self._client.enqueue_async(_named("slow"), n, seconds)

    async def close(self) -> None:
        self._client.destroy()


def _named(workflow: str) -> dict[str, str]:
    return {"workflow_name": workflow, "queue_name": "tasks"}


def work() -> None:
    """Run workflows until the process is ended."""
    DBOS(
        config={
            "name": "peers",
            "system_database_url": TOLD["url"],
            "application_version": _VERSION,
            "executor_id": f"peers-{slot.take()}",
            "log_level": "WARNING",
        }
    )
    DBOS.launch()
    threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        work()
    else:
        send(Sender())
