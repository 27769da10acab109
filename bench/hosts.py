"""Worker processes that host the bench's actors, and what they say of themselves."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Any

import msgspec
from msgspec import structs

from bench.job import started
from bench.side_host import FACTS, Facts, Host
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.services import DEFAULT_PARTITIONS
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import BusError

_READY_S = 30.0
_END_S = 15.0
_numbers = count()


class Hosts:
    """Host processes that serve together."""

    def __init__(self, url: str, names: Sequence[str]) -> None:
        self.url = url
        self.names = names

    async def facts(self, bus: Bus) -> list[Facts]:
        """Return what each of them says."""
        answers = [await bus.request(f"{FACTS}.{name}") for name in self.names]
        return [msgspec.json.decode(answer.data, type=Facts) for answer in answers]

    async def cpu_s(self, bus: Bus) -> float:
        """Return the CPU seconds of all of them."""
        return sum(facts.cpu_s for facts in await self.facts(bus))

    async def settled(self, bus: Bus, *, types: int) -> None:
        """Wait until the partitions of so many types are shared out evenly."""
        share = types * DEFAULT_PARTITIONS
        while True:
            with contextlib.suppress(BusError):
                found = [facts.partitions for facts in await self.facts(bus)]
                if sum(found) == share and (len(found) == 1 or min(found) > 0):
                    return
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def hosting(url: str, number: int = 1, **options: Any) -> AsyncIterator[Hosts]:  # noqa: ANN401 - fields of Host
    """Start so many hosts; they end with the block."""
    async with contextlib.AsyncExitStack() as stack:
        names = []
        for _ in range(number):
            name = f"h{next(_numbers)}"
            host = Host(url=url, name=name)
            await stack.enter_async_context(_process(structs.replace(host, **options)))
            names.append(name)
        yield Hosts(url, names)


def _process(host: Host) -> AbstractAsyncContextManager[Process]:
    return started("bench.side_host", msgspec.json.encode(host).decode(), ready_s=_READY_S, end_s=_END_S)


def neighbours(kind: str, key: str, number: int) -> list[str]:
    """Return keys of other actors in the same partition."""
    place = Address(kind, key).partition(DEFAULT_PARTITIONS)
    found: list[str] = []
    tried = count()
    while len(found) < number:
        other = f"n{next(tried)}"
        if Address(kind, other).partition(DEFAULT_PARTITIONS) == place:
            found.append(other)
    return found
