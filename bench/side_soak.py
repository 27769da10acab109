"""A worker under soak: tasks and turns until it is told to stop; ``python -m bench.side_soak '<options as JSON>'``.

Prints ``ready``. Answers ``bench.soak.<name>`` with what it has done and what it holds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import msgspec
import nats
from msgspec import Struct
from nats.aio.msg import Msg

from bench.job import run_on
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.services import ActorRules
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.capability import Capability
from callboard.runtime.context import TaskContext
from callboard.runtime.errors import RetryableError, TerminalError
from callboard.runtime.host import settle_memory
from callboard.runtime.worker import Worker, WorkerOptions

CAPABILITY = "soak"
TYPE = "bench-soak"
READINGS = "bench.soak"
RETRY_AFTER_S = 0.2


class Side(Struct, kw_only=True):
    """How a worker is to be.

    Attributes:
        keep_s: How long what is done with stays in the streams.
        leak_bytes: Kept for ever of each task, for a control of the measurement.
    """

    url: str
    name: str
    keep_s: float
    concurrency: int = 64
    leak_bytes: int = 0
    loop: str = "uvloop"


class Reading(Struct, kw_only=True):
    """What a worker has done and holds.

    Attributes:
        ended: Tasks completed or failed for good.
        turns: Turns committed.
        open_files: Files and sockets.
        tasks: Of asyncio.
    """

    ended: int
    retried: int
    turns: int
    rss_bytes: int
    open_files: int
    tasks: int


class Input(Struct):
    """The payload: ``how`` is ``ok``, ``retry`` (fails once) or ``fail``."""

    how: str
    text: str


class Mail(Struct):
    """What an actor is told."""

    text: str


class Book(Actor, name=TYPE):
    """Counts, with a step in each turn."""

    class State(Struct):
        turns: int = 0

    @on
    async def enter(self, message: Mail) -> int:
        """Change the state."""
        found = await self.step("read", _read, message.text)
        self.state.turns += 1
        return int(self.state.turns) + len(found)


async def _read(text: str) -> str:
    return text[:16]


async def main(side: Side) -> None:
    """Serve until SIGTERM."""
    kept: list[bytearray] = []

    async def soak(value: Input, task: TaskContext) -> int:
        if side.leak_bytes:
            kept.append(bytearray(side.leak_bytes))
        if value.how == "retry" and task.attempt == 1:
            message = "once"
            raise RetryableError(message, after_s=RETRY_AFTER_S)
        if value.how == "fail":
            message = "for good"
            raise TerminalError(message)
        return len(value.text)

    async def connected(name: str) -> Bus:
        return await connect(side.url, name=name)

    rules = ActorRules(
        retention_s=side.keep_s,
        step_ttl_s=side.keep_s,
        event_ttl_s=side.keep_s,
        audit_settle_s=side.keep_s / 4,
        idle_s=side.keep_s / 4,
    )
    worker = Worker(
        [Capability(soak, name=CAPABILITY, concurrency=side.concurrency)],
        connected,
        actors=[Book],
        options=WorkerOptions(actor_rules=rules),
    )

    async def read(message: Msg) -> None:
        await message.respond(msgspec.json.encode(_reading(worker)))

    client = await nats.connect(side.url)
    _ = await client.subscribe(f"{READINGS}.{side.name}", cb=read)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)

    def ready() -> None:
        settle_memory()
        print("ready", flush=True)

    await worker.run(on_ready=ready)
    await client.close()


def _reading(worker: Worker) -> Reading:
    endings = worker.pools[CAPABILITY].stats.endings
    turns = worker.host.services.stats[TYPE].committed if worker.host is not None else 0
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return Reading(
        ended=endings["completed"] + endings["failed"],
        retried=endings["retried"],
        turns=turns,
        rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        open_files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        tasks=len(asyncio.all_tasks()),
    )


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.argv[1], type=Side)
    run_on(wanted.loop, main(wanted))
