"""How long ten tasks of one tenant take beside a flood of another: ``python -m tests.integration.fairness_ratio``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from callboard.runtime.bus.topology import due_consumer, task_consumers
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.config import Settings, WorkSettings
from callboard.runtime.host import connector
from callboard.runtime.security import tenancy
from callboard.runtime.security.plan import Tenant
from callboard.runtime.tenants import read, run_tenants
from callboard.runtime.worker import Worker
from tests.support.eventually import eventually
from tests.support.secured import planned, secured

FLOOD = 10_000
FEW = 10
TASK_S = 0.02
SLOTS = 8
ROUNDS = 5


@capability("work")
async def work(number: int) -> int:
    await asyncio.sleep(TASK_S)
    return number


async def _few(client: Client) -> float:
    started_s = time.monotonic()
    await asyncio.gather(*(client.call("work", number) for number in range(FEW)))
    return time.monotonic() - started_s


async def measure(folder: Path) -> tuple[float, float, int]:
    """Return the median of seconds alone and beside the flood, and how much of the flood was left at the end."""
    async with secured(folder, planned(has_tls=False)) as servers:
        for name in ("a", "b"):
            await tenancy.create(servers.folder, Tenant(name=name), connector=connector)
            operator = await servers.bus("operator", account=name)
            for config in task_consumers("work", WorkSettings()):
                await operator.create_consumer("CB_WORK", config)
            await operator.create_consumer("CB_LATER", due_consumer("work", WorkSettings()))
        served = read(servers.folder.path / "users/worker-default.tenants.json")
        ready: list[Worker] = []
        settings = Settings.load(file=[], env={}, flags={"worker.concurrency": SLOTS})
        running = asyncio.create_task(run_tenants(settings, served, [work], on_ready=ready.append))
        await eventually(lambda: len(ready) == len(served))
        flood, few = [Client(await servers.bus("submitter", account=name)) for name in ("a", "b")]
        alone_s = sorted([await _few(few) for _ in range(ROUNDS)])
        await flood.submit_many("work", list(range(FLOOD)))
        await asyncio.sleep(0.5)
        beside_s = sorted([await _few(few) for _ in range(ROUNDS)])
        info = await (await servers.bus("operator", account="a")).stream_info("CB_WORK")
        for worker in ready:
            worker.stop(now=True)
        running.cancel()
        await asyncio.wait([running])
        return alone_s[ROUNDS // 2], beside_s[ROUNDS // 2], info.messages if info is not None else 0


def main() -> int:
    """Print the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        alone_s, beside_s, left = asyncio.run(measure(Path(folder)))
    print(  # noqa: T201 - what it is for
        f"{FEW} tasks of {TASK_S:g} s on {SLOTS} shared slots: {alone_s:.3f} s alone, {beside_s:.3f} s beside a flood "
        f"of {FLOOD} ({left} of it left): {beside_s / alone_s:.2f}x"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
