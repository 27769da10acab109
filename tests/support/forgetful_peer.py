"""A peer that must look bad: it forgets every tenth task, runs every seventh twice, and a dead worker's for good.

Its queue is a file, and its claims are files that only one process can make.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.peers.apps.side import BEGAN, ENDED, TOLD, note, send


class Sender:
    """Appends lines to the queue."""

    async def open(self) -> None:
        self._queue = (Path(TOLD["folder"]) / "queue").open("a", encoding="ascii")

    async def burst(self, numbers: Sequence[int]) -> None:
        self._queue.write("".join(f"{n} 0\n" for n in numbers))
        self._queue.flush()

    async def single(self, n: int) -> bool:
        await self.burst([-n])
        claim = Path(TOLD["folder"]) / f"{-n}.claim"
        while not claim.exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.001)
        return True

    async def slow(self, n: int, seconds: float) -> None:
        self._queue.write(f"{n} {seconds}\n")
        self._queue.flush()

    async def close(self) -> None:
        self._queue.close()


async def work() -> None:
    """Run whatever line nobody has claimed, until killed or left alone."""
    parent = os.getppid()
    folder = Path(TOLD["folder"])
    while os.getppid() == parent:
        for line in (folder / "queue").read_text("ascii").splitlines(keepends=True):
            n, seconds = line.split()
            try:
                (folder / f"{n}{'s' if float(seconds) else ''}.claim").touch(exist_ok=False)
            except FileExistsError:
                continue
            await run(int(n), float(seconds))
        await asyncio.sleep(0.001)


async def run(n: int, seconds: float) -> None:
    if seconds:
        note(n, BEGAN)
        await asyncio.sleep(seconds)
        note(n, ENDED)
    elif n < 0 or n % 10 != 9:
        note(abs(n))
        if n > 0 and n % 7 == 0:
            note(n)


if __name__ == "__main__":
    asyncio.run(work()) if sys.argv[1] == "work" else send(Sender())
