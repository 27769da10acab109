"""Dramatiq's side: two actors, and a sender."""

from __future__ import annotations

import time
from collections.abc import Sequence

import dramatiq  # type: ignore[import-not-found]
from dramatiq.brokers.redis import RedisBroker  # type: ignore[import-not-found]
from dramatiq.results import Results  # type: ignore[import-not-found]
from dramatiq.results.backends import RedisBackend  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

_recovery = {}
if "heartbeat_ms" in TOLD:
    _recovery = {"heartbeat_timeout": TOLD["heartbeat_ms"], "maintenance_chance": TOLD["maintenance"]}
broker = RedisBroker(url=TOLD["url"], **_recovery)
broker.add_middleware(Results(backend=RedisBackend(url=TOLD["url"])))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="noop", store_results=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def noop(n: int, text: str) -> int:
    note(n)
    return len(text)


@dramatiq.actor(actor_name="slow")  # type: ignore[misc, untyped-decorator, unused-ignore]
def slow(n: int, seconds: float) -> None:
    note(n, BEGAN)
    time.sleep(seconds)
    note(n, ENDED)


class Sender:
    """Sends with ``send``, as everybody does; there is no call for many at once."""

    async def open(self) -> None:
        broker.client.ping()

    async def burst(self, numbers: Sequence[int]) -> None:
        for n in numbers:
            noop.send(n, TEXT)

    async def single(self, n: int) -> bool:
        # waits in Redis itself (a blocking pop), it does not poll
        noop.send(n, TEXT).get_result(block=True, timeout=30_000)
        return True

    async def slow(self, n: int, seconds: float) -> None:
        slow.send(n, seconds)

    async def close(self) -> None:
        broker.close()


if __name__ == "__main__":
    send(Sender())
