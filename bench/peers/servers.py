"""The servers that peers need, each on a free loopback port with a folder of its own, ended with the block."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from bench.broker import Broker, Mode
from bench.peers.peer import PeerUnavailableError
from callboard.runtime import server_binary

_START_S = 20.0
_POSTGRES_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin")


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find(program: str, *, package: str) -> str:
    """Return the path of a program: the environment variable PROGRAM_NAME first, then PATH, then Postgres's folders.

    Raises:
        PeerUnavailableError: If there is none; with the package to install.
    """
    variable = program.upper().replace("-", "_")
    here = os.environ.get(variable) or shutil.which(program)
    for pattern in _POSTGRES_FOLDERS:
        found = sorted(Path("/").glob(f"{pattern[1:]}/{program}"))
        here = here or (str(found[-1]) if found else None)
    if here is None:
        message = f"no {program} on this machine: install the package {package}, or name the program with {variable}"
        raise PeerUnavailableError(message)
    return here


def version(program: str, *, package: str) -> str:
    """Return a program's name and the version in what ``--version`` says."""
    told = subprocess.run([find(program, package=package), "--version"], capture_output=True, text=True, check=True)
    number = re.search(r"\d+(\.\d+)+", told.stdout)
    return f"{program} {number.group() if number else told.stdout.strip()}"


@contextlib.asynccontextmanager
async def nats(mode: Mode, folder: Path, *, has_streams: bool = False) -> AsyncIterator[dict[str, Any]]:
    """Run a nats-server with JetStream; with our own streams on demand."""
    async with Broker(mode, folder, has_streams=has_streams) as broker:
        yield {"url": broker.url}


def nats_version() -> str:
    """Return what our broker calls itself."""
    return f"nats-server {server_binary.find().version_text}"


@contextlib.asynccontextmanager
async def redis(appendfsync: str, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """Run a Redis that appends every write to its file and syncs it ``everysec`` or ``always``."""
    port = free_port()
    command = [find("redis-server", package="redis-server"), "--bind", "127.0.0.1", "--port", str(port)]
    command += ["--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", appendfsync]
    async with running(command, port, folder / "redis.log"):
        yield {"url": f"redis://127.0.0.1:{port}/0"}


@contextlib.asynccontextmanager
async def postgres(folder: Path, *, settings: Sequence[str] = ()) -> AsyncIterator[dict[str, Any]]:
    """Run a Postgres with its own defaults, which sync every commit, and ``settings`` (``name=value``).

    It refuses to run as root; root runs it as the user ``postgres``, or as ``nobody``.
    """
    port = free_port()
    user = _server_user()
    data = folder / "postgres"
    data.mkdir()
    who = user.pw_name if user else "bench"
    if user is not None:
        os.chown(data, user.pw_uid, user.pw_gid)
        # the temporary folders above are ours alone
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o055 != 0o055:
                parent.chmod(parent.stat().st_mode | 0o055)
    log = folder / "postgres.log"
    initdb = [
        find("initdb", package="postgresql"),
        "-D",
        str(data),
        "-U",
        who,
        "--auth=trust",
        "-E",
        "UTF8",
        "--locale=C",
    ]
    done = subprocess.run(initdb, capture_output=True, text=True, check=False, cwd="/", **_as(user))
    if done.returncode:
        message = f"initdb failed: {done.stderr[-400:]}"
        raise PeerUnavailableError(message)
    command = [
        find("postgres", package="postgresql"),
        "-D",
        str(data),
        "-p",
        str(port),
        "-h",
        "127.0.0.1",
        "-k",
        str(data),
    ]
    for setting in settings:
        command += ["-c", setting]
    async with running(command, port, log, end=signal.SIGINT, **_as(user)):
        yield {"url": f"postgresql://{who}@127.0.0.1:{port}/postgres"}


@contextlib.asynccontextmanager
async def running(
    command: list[str],
    port: int,
    log: Path,
    *,
    end: signal.Signals = signal.SIGTERM,
    **more: Any,  # noqa: ANN401 - of Popen
) -> AsyncIterator[None]:
    """Run a server until the block ends; it is ready when it accepts connections."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd="/", **more)
    try:
        for _ in range(int(_START_S / 0.02)):
            if process.poll() is not None or _accepts(port):
                break
            await asyncio.sleep(0.02)
        if process.poll() is not None or not _accepts(port):
            message = f"{Path(command[0]).name} did not start: {log.read_text('utf-8', 'replace')[-400:]}"
            raise PeerUnavailableError(message)
        yield
    finally:
        process.send_signal(end)
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _server_user() -> pwd.struct_passwd | None:
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    message = "Postgres does not run as root, and there is neither a user postgres nor nobody"
    raise PeerUnavailableError(message)


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
