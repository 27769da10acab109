"""An ordered read of a whole stream, by our port or by the client library: ``python -m bench.side_replay '<JSON>'``."""

from __future__ import annotations

import asyncio

import nats
from msgspec import Struct
from nats.aio.msg import Msg

from bench.job import Meter, Report, main
from callboard.runtime.bus.jetstream import connect


class Replay(Struct, kw_only=True):
    """A read.

    Attributes:
        subject: What to read of the stream.
        count: Messages on it.
        is_raw: By the client library's ordered consumer, else by our port.
    """

    url: str
    stream: str
    subject: str
    count: int
    is_raw: bool = False
    loop: str = "uvloop"


async def work(replay: Replay) -> Report:
    """Read all of it."""
    return await (_raw(replay) if replay.is_raw else _ours(replay))


async def _ours(replay: Replay) -> Report:
    bus = await connect(replay.url, name="replay")
    meter = Meter()
    found = 0
    async for _ in bus.read(replay.stream, subjects=(replay.subject,)):
        found += 1
    report = meter.report(_all(found, replay))
    await bus.close()
    return report


async def _raw(replay: Replay) -> Report:
    client = await nats.connect(replay.url)
    done = asyncio.Event()
    found = 0

    async def take(_: Msg) -> None:
        nonlocal found
        found += 1
        if found == replay.count:
            done.set()

    meter = Meter()
    await client.jetstream().subscribe(replay.subject, stream=replay.stream, ordered_consumer=True, cb=take)
    await asyncio.wait_for(done.wait(), 60)
    report = meter.report(_all(found, replay))
    await client.close()
    return report


def _all(found: int, replay: Replay) -> int:
    if found != replay.count:
        message = f"{found} of {replay.count} messages were read"
        raise RuntimeError(message)
    return found


if __name__ == "__main__":
    main(work, Replay)
