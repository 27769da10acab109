"""Ray's side: two remote functions, the driver that sends, and a node that runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray  # type: ignore[import-not-found]

from bench.peers.apps.side import BEGAN, ENDED, TEXT, TOLD, note, send


@ray.remote  # type: ignore[misc, untyped-decorator, unused-ignore]
def noop(n: int, text: str) -> int:
    note(n)
    return len(text)


@ray.remote  # type: ignore[misc, untyped-decorator, unused-ignore]
def slow(n: int, seconds: float) -> int:
    note(n, BEGAN)
    time.sleep(seconds)
    note(n, ENDED)
    return n


class Sender:
    """The driver."""

    def __init__(self) -> None:
        self._results: list[Any] = []

    async def open(self) -> None:
        ray.init(address=TOLD["address"], log_to_driver=False, logging_level="WARNING")

    async def burst(self, numbers: Sequence[int]) -> None:
        self._results += [noop.remote(n, TEXT) for n in numbers]

    async def single(self, n: int) -> bool:
        ray.get(noop.remote(n, TEXT))
        return True

    async def slow(self, n: int, seconds: float) -> None:
        self._results.append(slow.remote(n, seconds))

    async def close(self) -> None:
        ray.shutdown()


def work() -> None:
    """Become a node."""
    program = str(Path(sys.executable).with_name("ray"))
    options = ["--node-ip-address=127.0.0.1", "--num-cpus=2", f"--object-store-memory={TOLD['store_bytes']}", "--block"]
    # two nodes of one machine must not share a range of ports
    options += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    os.execv(sys.executable, [sys.executable, program, "start", f"--address={TOLD['address']}", *options])


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        work()
    else:
        send(Sender())
