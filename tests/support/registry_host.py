"""A worker process for tests of the registry: hosts the actor type ``clerk`` and notes each turn in a file."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from msgspec import Struct

from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.worker import Worker


class Note(Struct):
    """Note a name."""

    name: str


class Clerk(Actor, name="clerk", capabilities=["note"]):
    """Notes what it is told, in its state and in a file."""

    class State(Struct):
        names: list[str] = []

    @on
    async def note(self, m: Note) -> int:
        self.state.names.append(m.name)
        _write(m.name)
        return len(self.state.names)


def _write(name: str) -> None:
    with Path(sys.argv[2]).open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")


async def main() -> None:
    """Serve until killed."""

    async def connected(name: str) -> Bus:
        bus: Bus = await connect(sys.argv[1], name=name)
        return bus

    worker = Worker([], connected, actors=[Clerk], worker_id=f"host-{os.getpid()}")
    await worker.run(lambda: print("ready", flush=True))  # noqa: T201 - its parent waits for it


if __name__ == "__main__":
    asyncio.run(main())
