"""Our own side: capabilities of a worker started by the command line, and a client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send
from callboard import capability
from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.client import Client
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import BusError


@capability("noop", concurrency=64)
async def noop(n: int, text: str) -> int:
    """Note that it ran."""
    note(n)
    return len(text)


@capability("slow")
async def slow(n: int, seconds: float) -> int:
    """Take its time."""
    note(n, BEGAN)
    await asyncio.sleep(seconds)
    note(n, ENDED)
    return n


class Sender:
    """Submits with the client."""

    def __init__(self) -> None:
        self._bus: Bus
        self._client: Client

    async def open(self) -> None:
        self._bus = await connect(TOLD["url"], name="peers")
        await provision.apply(self._bus, await provision.plan(self._bus, topology.declared(TopologySettings())))
        self._client = Client(self._bus)

    async def burst(self, numbers: Sequence[int]) -> None:
        for answer in await self._client.submit_many("noop", [{"n": n, "text": TEXT} for n in numbers]):
            if isinstance(answer, BusError):
                raise answer

    async def single(self, n: int) -> bool:
        await self._client.call("noop", {"n": n, "text": TEXT})
        return True

    async def slow(self, n: int, seconds: float) -> None:
        await self._client.submit("slow", {"n": n, "seconds": seconds})

    async def close(self) -> None:
        await self._client.close()
        await self._bus.close()


if __name__ == "__main__":
    send(Sender())
