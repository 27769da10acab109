"""Worker and sender processes of a peer: start, CPU and memory of the whole tree, kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

_END_S = 15.0
# Lines of a log that a reason quotes.
_SAID = 3


class Tree:
    """A worker with all its descendants, in a session of its own."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        """Start it. What it says goes to ``worker.log``."""
        self._log = folder / "worker.log"
        with self._log.open("ab") as out:
            self.began_ns = time.monotonic_ns()
            self._process = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def pids(self) -> set[int]:
        """Return the living processes: of the session, and descendants that left it."""
        found = {self._process.pid}
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text("utf-8", "replace").rpartition(")")[2].split()
                pid = int(stat.parent.name)
                parents[pid] = int(fields[1])
                if int(fields[3]) == self._process.pid:
                    found.add(pid)
        grew = True
        while grew:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            found |= more
            grew = bool(more)
        return found

    def cpu_s(self) -> float:
        """Return the CPU seconds of all of them, and of their children that ended."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Return their memory, pages that several share counted once (PSS)."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024

    def kill(self) -> set[int]:
        """End all at once, as the loss of a machine does; return who they were."""
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        return pids

    async def stop(self) -> None:
        """Tell it to end, and kill what is left."""
        if self._process.returncode is not None:
            return
        pids = self.pids()
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, _END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        for pid in pids & self.pids() - {self._process.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def check(self) -> None:
        """Raise RuntimeError with its last words if it has ended by itself."""
        if self._process.poll() is not None:
            message = f"the worker ended with status {self._process.returncode}: {_last_words(self._log)}"
            raise RuntimeError(message)


class Sending:
    """The sender's process."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    async def order(self, do: str, first: int, count: int, *, within_s: float = 60.0, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Have it send, and return its answer.

        Raises:
            RuntimeError: If it failed; with its last words.
        """
        order = {"do": do, "first": first, "count": count, "within_s": within_s, **more}
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Return the next line of its answers."""
        line = await self._process.stdout.readline() if self._process.stdout is not None else b""
        if not line:
            message = f"the sender ended: {_last_words(self._log)}"
            raise RuntimeError(message)
        answer: dict[str, Any] = json.loads(line)
        return answer

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, command: list[str], environment: dict[str, str], folder: Path) -> AsyncIterator[Self]:
        """Run it for the block."""
        log = folder / "sender.log"
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out,
                limit=16 * 1024 * 1024,
            )  # fmt: skip
        try:
            sending = cls(process, log)
            await sending.answer()
            yield sending
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _last_words(log: Path) -> str:
    """Return what a process said last, without the lines that only point at code."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip(" ^~-")]
    return " ".join(lines[-_SAID:])
