"""Everything Callboard does runs with the users of the written configuration, over TLS, each with the least it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.capability import Capability, capability
from callboard.runtime.client import Client
from callboard.runtime.host import run_worker
from callboard.runtime.roster import live_workers, order
from callboard.runtime.control import Order
from callboard.runtime.security.folder import Folder
from callboard.runtime.security.plan import Plan
from callboard.runtime.worker import Worker
from tests.support.eventually import eventually
from tests.support.secured import Secured, planned


class Hello(Struct):
    name: str


@capability("search")
async def search(text: str) -> str:
    return text.upper()


class Greeter(Actor, name="greeter"):
    class State(Struct):
        greeted: int = 0

    @on
    async def hello(self, message: Hello) -> str:
        found = await self.step("look", str.title, message.name)
        self.state.greeted += 1
        return f"{found} {self.state.greeted}"


@asynccontextmanager
async def secured(folder: Path, plan: Plan, *capabilities: str) -> AsyncIterator[Secured]:
    files = Folder(folder)
    files.write(plan)
    servers = await Secured(files).start()
    try:
        await servers.provision(*capabilities)
        yield servers
    finally:
        await servers.close()


@asynccontextmanager
async def worker(
    servers: Secured, user: str, parts: Sequence[Capability[..., Any]] = (), actors: Sequence[type[Actor]] = ()
) -> AsyncIterator[Worker]:
    ready: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_worker(servers.settings(user), parts, actors=actors, on_ready=ready.set_result, health_port=0)
    )
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    running = ready.result()
    try:
        yield running
    finally:
        running.stop(now=True)
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_each_role_does_its_work(tmp_path: Path) -> None:
    plan = planned(pools=["gpu=search"], hosts=["desk=greeter"])
    async with (
        secured(tmp_path, plan, "search") as servers,
        worker(servers, "worker-gpu", [search]) as pool,
        worker(servers, "host-desk", actors=[Greeter]) as host,
    ):
        assert pool.id.startswith("worker-gpu.")
        submitter = await servers.bus("submitter")
        client = Client(submitter)
        assert await client.call("search", "abc", timeout_s=20) == "ABC"
        big = "x" * 700_000
        assert await client.call("search", big, timeout_s=20) == big.upper()
        greeter = client.actor("greeter/front")
        assert await greeter.ask(Hello("ann"), timeout_s=20) == "Ann 1"
        await greeter.tell(Hello("bo"))
        assert await greeter.ask(Hello("cy"), timeout_s=20) == "Cy 3"
        auditor = await servers.bus("auditor")
        assert len([each async for each in auditor.read(subjects.LEDGER)]) == 2
        assert [each.subject async for each in auditor.read(subjects.ACTORS, subjects=("cb.mbox.greeter.>",))]
        operator = await servers.bus("operator")
        heard = await live_workers(operator, until=lambda roster: len(roster.beats) == 2)
        assert {beat.worker for beat in heard} == {pool.id, host.id}
        await order(operator, pool.id, Order(op="drain"))
        await eventually(lambda: pool.status == "stopped")
        for name in ("cb-1",):
            assert "Violation" not in servers.log(name), servers.log(name)[-3000:]
