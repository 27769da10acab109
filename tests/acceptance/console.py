"""The real command line as processes in a folder of their own, for acceptance tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# Limits that end what hangs. None of them is a promise: on a busy machine a process takes seconds to start.
RUN_TIMEOUT_S = 120
START_WITHIN_S = 60.0
# the grace of a drain and the margin before children are killed, twice
STOP_WITHIN_S = 80.0
SRC = Path(__file__).parents[2] / "src"

SHOP = """
import asyncio, os, time
from callboard import RetryPolicy, TaskContext, TerminalError, capability

def mark(text):
    fd = os.open("marks.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text} {os.getpid()}\\n".encode())
    os.close(fd)

@capability("echo")
async def echo(value: object) -> object:
    return value

@capability("size")
def size(text: str) -> int:
    return len(text)

@capability("grow")
async def grow(count: int) -> str:
    return "x" * count

@capability("nap")
async def nap(name: str, seconds: float) -> str:
    mark(f"start {name}")
    await asyncio.sleep(seconds)
    mark(f"end {name}")
    return name

@capability("stuck")
def stuck(name: str) -> None:
    mark(f"start {name}")
    while True:
        time.sleep(1)

@capability("breaks", retry=RetryPolicy(attempts=1))
async def breaks(text: str) -> str:
    if text == "fine":
        return "mended"
    raise ValueError(f"cannot take {text}")

@capability("steps")
async def steps(count: int, task: TaskContext) -> int:
    for number in range(count):
        task.progress(100 * number / count, stage=f"step {number}")
        await asyncio.sleep(0.05)
    return count
"""


@dataclass(frozen=True)
class Run:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever it wrote
        """What it wrote, as JSON; it must be nothing else."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """What it wrote, as JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Background:
    """A command that goes on; its output is gathered while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((process.stdout, self.out), (process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[str] | None, lines: list[str]) -> None:
        assert stream is not None
        with stream:
            lines.extend(stream)

    @property
    def events(self) -> list[Any]:
        """What the command and its processes said, without the parent's own word."""
        return [event for event in self._said if event.get("event") != "group"]

    @property
    def group(self) -> str:
        """Id of the group that a parent keeps."""
        found: str = next(event["group"] for event in self._said if event.get("event") == "group")
        return found

    @property
    def _said(self) -> list[Any]:
        return [json.loads(line) for line in self.out if line.startswith("{")]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, *, timeout_s: float = STOP_WITHIN_S) -> int:
        """Send a signal unless it has ended, and return its status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout_s=timeout_s)

    def wait(self, *, timeout_s: float = STOP_WITHIN_S) -> int:
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        for reader in self._readers:
            reader.join(5)
        return status


class Console:
    """Runs ``callboard`` in ``folder``; ``close`` ends whatever still runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[Background] = []
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("CALLBOARD_")}
        self.env |= {"PYTHONPATH": str(SRC), "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}

    def run(self, *args: str, text: str | None = None, **env: str) -> Run:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "callboard", *args],
            cwd=self.folder,
            env=self.env | env,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str) -> Background:
        """Start a command that goes on."""
        process = subprocess.Popen(
            [sys.executable, "-m", "callboard", *args],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        background = Background(process)
        self.running.append(background)
        return background

    def up(self, *args: str) -> Background:
        """Start the embedded server on a free port and wait until it is ready."""
        server = self.start("up", "--port", "0", "--profile", "fast", "--json", *args)
        eventually(lambda: server.events or server.process.poll() is not None, server.err)
        assert server.events, "".join(server.err)
        return server

    def dev(self, *files: str) -> Background:
        """Serve files of the folder, with a server on a free port, and wait until they are served."""
        started = self.start("dev", *files, "--port", "0", "--profile", "fast", "--json")
        eventually(lambda: started.events or started.process.poll() is not None, started.err)
        assert started.events, "".join(started.err)
        return started

    def work(self, *args: str, processes: int = 1) -> Background:
        """Start a worker on ``shop.py`` and wait until every process of it is ready."""
        shop = self.folder / "shop.py"
        if not shop.exists():
            shop.write_text(SHOP)
        worker = self.start("worker", "start", "shop.py", "--json", "--processes", str(processes), *args)
        eventually(lambda: len(worker.events) >= processes or worker.process.poll() is not None, worker.err)
        assert worker.process.poll() is None, "".join(worker.err)
        return worker

    def marks(self, beginning: str) -> list[str]:
        """Return the lines that handlers wrote, those that begin so."""
        path = self.folder / "marks.txt"
        return [line for line in path.read_text().splitlines() if line.startswith(beginning)] if path.exists() else []

    def close(self) -> None:
        """End everything, the last started first."""
        for background in reversed(self.running):
            if background.process.poll() is None:
                try:
                    background.stop(timeout_s=10)
                except subprocess.TimeoutExpired:
                    continue


def eventually(condition: Callable[[], object], said: Sequence[str] = (), *, timeout_s: float = START_WITHIN_S) -> None:
    """Wait until ``condition`` holds; fail with what was said when it does not in time."""
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, f"it did not happen within {timeout_s} s\n{''.join(said)}"
        threading.Event().wait(0.03)


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
