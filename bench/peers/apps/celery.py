"""Celery's side: two tasks, and a sender."""

from __future__ import annotations

import time
from collections.abc import Sequence

from celery import Celery  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

app = Celery("peers", broker=TOLD["url"], backend=TOLD["url"])
app.conf.update(
    # as the documentation advises for tasks that must survive their worker
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # it advises 1 for long tasks, and its default of 4 for short ones
    worker_prefetch_multiplier=1 if TOLD["tasks"] == "slow" else 4,
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": TOLD["visibility_s"]} if "visibility_s" in TOLD else {},
)


@app.task(name="noop")  # type: ignore[misc, untyped-decorator, unused-ignore]
def noop(n: int, text: str) -> int:
    note(n)
    return len(text)


@app.task(name="slow")  # type: ignore[misc, untyped-decorator, unused-ignore]
def slow(n: int, seconds: float) -> int:
    note(n, BEGAN)
    time.sleep(seconds)
    note(n, ENDED)
    return n


class Sender:
    """Sends with ``delay``, as everybody does; there is no call for many at once."""

    async def open(self) -> None:
        app.connection_for_write().ensure_connection(timeout=10)

    async def burst(self, numbers: Sequence[int]) -> None:
        for n in numbers:
            noop.delay(n, TEXT)

    async def single(self, n: int) -> bool:
        noop.delay(n, TEXT).get(timeout=30)
        return True

    async def slow(self, n: int, seconds: float) -> None:
        slow.delay(n, seconds)

    async def close(self) -> None:
        app.close()


if __name__ == "__main__":
    send(Sender())
