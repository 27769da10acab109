"""A worker that serves until it is told to stop, and a plain responder beside it; for latencies and kills.

``python -m bench.side_serve URL CAPABILITY WORKERNAME``. Prints ``ready``. The handler says when it began.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import nats
from msgspec import Struct
from nats.aio.msg import Msg

from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.capability import Capability
from callboard.runtime.worker import Worker

ECHO = "bench.echo"
BEGAN = "bench.began"


class Input(Struct):
    """The payload."""

    text: str


async def stamp(_: Input) -> int:
    """Return when the handler began, in nanoseconds of the wall clock."""
    return time.time_ns()


async def main(url: str, capability: str) -> None:
    """Serve until SIGTERM."""
    client = await nats.connect(url)

    async def echo(message: Msg) -> None:
        await message.respond(message.data)

    async def linger(value: Input) -> None:
        """Say who runs the task, then stay until killed."""
        await client.publish(BEGAN, f"{value.text} {os.getpid()}".encode())
        await client.flush()
        await asyncio.sleep(600)

    async def connected(name: str) -> Bus:
        return await connect(url, name=name)

    _ = await client.subscribe(ECHO, cb=echo)
    worker = Worker(
        [Capability(stamp, name=capability), Capability(linger, name=f"{capability}-linger")],
        connected,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: worker.stop(now=True))
    await worker.run(on_ready=lambda: print("ready", flush=True))
    await client.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(*sys.argv[1:3]))
