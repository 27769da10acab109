"""A process that does nothing but show life.

``python -m tests.support.keeper_main <url,url> <worker> [<ready fd> [<echo timeout in seconds>]]``
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from callboard.runtime import lease
from callboard.runtime.beat import Beat, encode_beat
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.lease import LeaseKeeper
from callboard.runtime.processes import tell_ready
from callboard.runtime.version import VERSION


def keeper_of(worker: str) -> LeaseKeeper:
    """Return a keeper that beats for a worker without capabilities."""

    def beat() -> bytes:
        now = SYSTEM_CLOCK.now()
        return encode_beat(
            Beat(
                v=1,
                worker=worker,
                host=socket.gethostname(),
                pid=os.getpid(),
                version=VERSION,
                status="ready",
                started_at=now,
                at=now,
                fetched_at=None,
                labels={},
                capabilities=[],
                server=keeper.server,
            )
        )

    keeper = LeaseKeeper(worker, ack_wait_s=4.0, extend_every_s=1.0, max_block_s=60.0, beat=beat)
    return keeper


async def main(urls: str, worker: str, ready_fd: str = "", echo_timeout_s: str = "") -> None:
    if echo_timeout_s:
        lease.ECHO_TIMEOUT_S = float(echo_timeout_s)
    bus = await connect(urls.split(","), name=worker)
    if ready_fd:
        tell_ready(int(ready_fd))
    await keeper_of(worker).serve(bus, stop=lambda: False)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
