"""A worker that hosts the bench's actors until it is told to stop; ``python -m bench.side_host '<options as JSON>'``.

Prints ``ready``. Answers ``bench.facts.<name>`` with what it has used and holds, and echoes on ``bench.echo`` for
comparison with plain request-reply.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from typing import cast

import msgspec
import nats
from msgspec import Struct
from nats.aio.msg import Msg

from bench.cast import CAST
from bench.job import run_on
from bench.sampler import Sampler
from bench.side_serve import ECHO
from callboard.runtime.actor.commit import Committed, Refused, Result, TurnCommitter
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.errors import CallboardError
from callboard.runtime.host import settle_memory
from callboard.runtime.worker import Worker

FACTS = "bench.facts"


class Host(Struct, kw_only=True):
    """How a host is to be.

    Attributes:
        name: Of its facts.
        is_alone: Store every turn that sends as a batch of its own, as without group commit.
        profile: Where to write a profile at the end; "" for none.
    """

    url: str
    name: str
    loop: str = "uvloop"
    is_alone: bool = False
    profile: str = ""


class Facts(Struct, kw_only=True):
    """What a host has used and holds."""

    cpu_s: float
    active: int
    partitions: int
    chose: str = ""


async def main(host: Host) -> None:
    """Serve until SIGTERM."""

    async def connected(name: str) -> Bus:
        return await connect(host.url, name=name)

    worker = Worker((), connected, actors=CAST)

    async def facts(message: Msg) -> None:
        await message.respond(msgspec.json.encode(_facts(worker)))

    async def echo(message: Msg) -> None:
        await message.respond(message.data)

    client = await nats.connect(host.url)
    _ = await client.subscribe(f"{FACTS}.{host.name}", cb=facts)
    _ = await client.subscribe(f"{ECHO}.{host.name}", cb=echo)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: worker.stop(now=True))
    sampler = Sampler()

    def ready() -> None:
        settle_memory()
        if host.is_alone and worker.host is not None:
            worker.host.services.committer = cast("TurnCommitter", Alone(worker.host.services.committer))
        if host.profile:
            sampler.start()
        print("ready", flush=True)

    await worker.run(on_ready=ready)
    if host.profile:
        sampler.write(host.profile, tasks=0)
    await client.close()


class Alone:
    """Stores each turn that sends on its own, at once; hands the rest to the committer that it stands for."""

    def __init__(self, committer: TurnCommitter) -> None:
        self._committer = committer
        self.add = committer.add

    async def commit(self, *writes: Write) -> Result:
        """Store them."""
        if len(writes) == 1:
            return await self._committer.commit(*writes)
        try:
            ack = await self._committer._bus.store_batch(writes, timeout_s=30)  # noqa: SLF001 - a stand-in
        except CallboardError as error:
            return Refused(error)
        return Committed(tuple(range(ack.seq - len(writes) + 1, ack.seq + 1)))


def _facts(worker: Worker) -> Facts:
    # the registry, which every worker hosts, is no part of what is measured
    load = [each for each in worker.host.load() if each.kind != "registry"] if worker.host is not None else []
    chose = ""
    if worker.host is not None:
        chooser = (
            worker.host.services.committer.chooser if not isinstance(worker.host.services.committer, Alone) else None
        )
        if chooser is not None and chooser.single_s is not None and chooser.batch_s is not None:
            chose = f"single {chooser.single_s * 1e6:.0f} µs a turn, batch {chooser.batch_s * 1e6:.0f} µs"
    return Facts(
        cpu_s=time.process_time(),
        active=sum(each.active for each in load),
        partitions=sum(len(each.partitions) for each in load),
        chose=chose,
    )


if __name__ == "__main__":
    wanted = msgspec.json.decode(sys.argv[1], type=Host)
    run_on(wanted.loop, main(wanted))
