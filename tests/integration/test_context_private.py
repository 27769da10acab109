"""What agents keep for themselves, the server keeps from other pools' users."""

from __future__ import annotations

import asyncio
from pathlib import Path

from callboard.agents.context import Context
from callboard.runtime.bus.base import Bus
from callboard.runtime.errors import PermissionDeniedError
from tests.support.secured import planned, secured


async def passed(bus: Bus, scope: str) -> list[str]:
    """Try everything on a scope; return what the server let pass."""
    ctx = Context(bus, scope=scope, by="test")

    async def watch() -> None:
        async for _ in ctx.watch("s", from_start=True):
            return

    found = []
    for name, call in (
        ("get", ctx.get("secret")),
        ("set", ctx.set("secret", "new")),
        ("update", ctx.update({"secret": "new"})),
        ("ls", ctx.ls()),
        ("history", ctx.history("secret")),
        ("watch", watch()),
        ("clear", ctx.clear("other")),
        ("increment", ctx.increment("count")),
        ("delete", ctx.delete("secret")),
    ):
        try:
            await asyncio.wait_for(call, 20)
        except PermissionDeniedError:
            continue
        found.append(name)
    return found


ALL = ["get", "set", "update", "ls", "history", "watch", "clear", "increment", "delete"]


async def test_private_values_are_refused_to_other_pools(tmp_path: Path) -> None:
    plan = planned(pools=["gpu=search"], hosts=["front=clerk", "back=desk,clock"], has_tls=False)
    async with secured(tmp_path, plan, "search") as servers:
        front, back, pool = [await servers.bus(user) for user in ("host-front", "host-back", "worker-gpu")]
        for scope in ("global", "run/7"):
            for bus in (front, back, pool):
                assert await passed(bus, scope) == ALL
        await Context(front, scope="private/clerk/ann", by="clerk/ann").set("secret", "s3cret")
        assert await passed(back, "private/clerk/ann") == []
        assert await passed(pool, "private/clerk/ann") == []
        assert await passed(back, "private/clock/x") == ALL
        operator = await servers.bus("operator")
        assert await Context(operator, scope="private/clerk/ann", by="op").get("secret") == "s3cret"
        assert await passed(front, "private/clerk/ann") == ALL
        assert await passed(await servers.bus("submitter"), "private/clerk/ann") == []


async def test_the_trial_notices_a_host_of_both(tmp_path: Path) -> None:
    async with secured(tmp_path, planned(hosts=["both=clerk,desk"], has_tls=False)) as servers:
        assert await passed(await servers.bus("host-both"), "private/clerk/ann") == ALL
