"""Telling running servers to read their configuration again, and making sure that they did."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from datetime import datetime

import httpx
from msgspec import Struct

from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import ServerStartError
from callboard.runtime.security.folder import Folder
from callboard.runtime.security.plan import Server

RELOAD_S = 10.0
_LOOK_S = 0.05
_HTTP_S = 1.0
_PS_S = 5.0


class Reloaded(Struct, frozen=True, kw_only=True):
    """What became of one server.

    Attributes:
        is_running: Whether it runs on this machine; one that does not reads its files when it starts.
    """

    server: str
    is_running: bool


async def reload(folder: Folder, *, clock: Clock = SYSTEM_CLOCK) -> list[Reloaded]:
    """Signal every server of ``folder`` that runs here, and wait until each says that it has loaded anew.

    Open connections stay, but those whose user is gone are cut at once; certificates are used from the next one on.

    Raises:
        ServerStartError: If one goes on with its old configuration, with the end of its log.
        ConfigError: If the folder holds no configuration.
    """
    found = []
    async with httpx.AsyncClient(timeout=_HTTP_S) as http:
        for server in folder.plan().servers:
            pid = _pid(folder, server)
            if pid is not None:
                await _reload(http, folder, server, pid, clock)
            found.append(Reloaded(server=server.name, is_running=pid is not None))
    return found


async def _reload(http: httpx.AsyncClient, folder: Folder, server: Server, pid: int, clock: Clock) -> None:
    before = await _loaded_at(http, server)
    log = folder.path / server.name / "nats.log"
    start = log.stat().st_size if log.exists() else 0
    os.kill(pid, signal.SIGHUP)
    deadline = clock.monotonic() + RELOAD_S
    while clock.monotonic() < deadline:
        now = await _loaded_at(http, server)
        if now is not None and now != before:
            return
        await clock.sleep(_LOOK_S)
    with log.open("rb") as file:
        file.seek(start)
        said = file.read().decode("utf-8", "replace").strip()[-1500:]
    message = (
        f"server {server.name} (process {pid}) goes on with its old configuration; it said: {said or 'nothing'}. "
        "Mend that, or restart it"
    )
    raise ServerStartError(message)


async def _loaded_at(http: httpx.AsyncClient, server: Server) -> datetime | None:
    try:
        answer = await http.get(f"http://127.0.0.1:{server.http_port}/varz")
        body = answer.json()
    except (httpx.HTTPError, json.JSONDecodeError):
        return None
    if body.get("server_name") != server.name:
        return None
    # nanoseconds are more than Python's clock knows; what matters is whether it changed
    return datetime.fromisoformat(body["config_load_time"])


def _pid(folder: Folder, server: Server) -> int | None:
    """Return the process of a running server; a note that a crash left behind names none, or another program."""
    try:
        pid = int(folder.pid_file(server.name).read_text("utf-8"))
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    ps = shutil.which("ps")
    if ps is None:
        return pid
    done = subprocess.run(  # noqa: S603 - a fixed program and a number
        [ps, "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, timeout=_PS_S, check=False
    )
    return pid if "nats-server" in done.stdout else None
