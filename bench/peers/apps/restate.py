"""Restate's side: a service of two handlers, its HTTP server, and a sender with the SDK's client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import httpx  # type: ignore[import-not-found, unused-ignore]
import restate  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send

_START_S = 60.0
tasks = restate.Service("tasks")


@tasks.handler()  # type: ignore[misc, untyped-decorator, unused-ignore]
async def noop(ctx: restate.Context, task: dict[str, Any]) -> int:  # noqa: ARG001 - Restate hands it to all
    note(task["n"])
    return len(task["text"])


@tasks.handler()  # type: ignore[misc, untyped-decorator, unused-ignore]
async def slow(ctx: restate.Context, task: dict[str, Any]) -> int:  # noqa: ARG001 - Restate hands it to all
    note(task["n"], BEGAN)
    await asyncio.sleep(task["seconds"])
    note(task["n"], ENDED)
    return int(task["n"])


app = restate.app([tasks])


class Sender:
    """Sends with the SDK's client, 64 at once."""

    def __init__(self) -> None:
        self._open = contextlib.AsyncExitStack()
        self._client: Any

    async def open(self) -> None:
        await _register()
        self._client = await self._open.enter_async_context(restate.create_client(TOLD["ingress"]))

    async def burst(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 64):
            part = numbers[start : start + 64]
            await asyncio.gather(*(self._client.service_send(noop, {"n": n, "text": TEXT}) for n in part))

    async def single(self, n: int) -> bool:
        await self._client.service_call(noop, {"n": n, "text": TEXT})
        return True

    async def slow(self, n: int, seconds: float) -> None:
        await self._client.service_send(slow, {"n": n, "seconds": seconds})

    async def close(self) -> None:
        await self._open.aclose()


async def _register() -> None:
    """Tell the server of the service; it asks a running worker what that offers, so one runs for so long."""
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.peers.apps.restate", "work")
    try:
        until = time.monotonic() + _START_S
        async with httpx.AsyncClient(timeout=10) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.post(f"{TOLD['admin']}/deployments", json={"uri": f"http://{TOLD['worker']}"})
                    if answer.is_success:
                        return
                    if time.monotonic() > until:
                        answer.raise_for_status()
                await asyncio.sleep(0.1)
    finally:
        worker.terminate()
        await worker.wait()


def work() -> None:
    """Serve, as its documentation advises for production."""
    options = ["--bind", TOLD["worker"], "--workers", "2", "--log-level", "WARNING"]
    os.execv(sys.executable, [sys.executable, "-m", "hypercorn", *options, "bench.peers.apps.restate:app"])


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        work()
    else:
        send(Sender())
