"""An embedded nats-server: one command, no Docker, data in a folder, never left behind by a dead owner."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

from callboard.runtime import server_binary
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import ServerSettings
from callboard.runtime.errors import DataFolderInUseError, PortInUseError, ServerStartError
from callboard.runtime.server_binary import ServerBinary
from callboard.runtime.server_folder import DataFolder, Membership, RunningServer, new_name

HOST = "127.0.0.1"

_POLL_S = 0.02
_FREE_PORT_ATTEMPTS = 3
_TAKEOVER_WAIT_S = 10.0
_CONNECT_TIMEOUT_S = 1.0

# Runs in place of the server, asks Linux for a SIGTERM when the owner dies, and becomes the server. A preexec_fn would
# do the same between fork and exec, where a second thread's lock can hang it for ever. The owner may have died before
# the request: then our parent is no longer the owner.
_LINUX_STARTER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
    sys.exit("prctl failed")
if os.getppid() != int(sys.argv[1]):
    sys.exit("the owner is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedServer:
    """A nats-server on the loopback address, owned by this process.

    Use it as ``async with EmbeddedServer(settings) as server: connect(server.url)``. It has a session of its own, so
    Ctrl-C in the terminal reaches the workers and not the server, which must outlive their draining. On Linux it stops
    when its owner dies in whatever way; elsewhere at the owner's normal exit only. Start it from a thread that lives
    as long as the server shall: Linux counts the death of the starting thread.
    """

    def __init__(
        self, settings: ServerSettings, *, clock: Clock = SYSTEM_CLOCK, membership: Membership | None = None
    ) -> None:
        """Prepare; with ``membership`` it is one of a cluster, and ``settings`` name its own folder and port."""
        self._settings = settings
        self._membership = membership
        self._clock = clock
        self._folder = DataFolder(settings.data_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._state: RunningServer | None = None

    @property
    def state(self) -> RunningServer:
        """Address, processes and version.

        Raises:
            ServerStartError: If it is not started.
        """
        if self._state is None:
            message = "the embedded server is not started; use `async with EmbeddedServer(settings)`"
            raise ServerStartError(message)
        return self._state

    @property
    def name(self) -> str:
        """Its name in a cluster, or "" for a single server."""
        return self._membership.name if self._membership is not None else ""

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self.state.url

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        await self.stop()

    async def start(self) -> RunningServer:
        """Start the server and wait until it takes clients; starting twice is harmless.

        Cancelling kills what was started. Streams in memory start empty, so provision after each start.

        Raises:
            ServerBinaryError: If there is no usable nats-server.
            DataFolderInUseError: If a server runs on the data folder already.
            PortInUseError: If the port is taken.
            ServerStartError: If it does not come up; the message ends with what it said.
        """
        if self._state is not None:
            return self._state
        binary = await asyncio.to_thread(server_binary.find, self._settings.binary)
        await self._lock()
        try:
            self._state = await self._start(binary)
            self._folder.write_state(self._state)
        except BaseException:
            await self._end()
            raise
        atexit.register(self._kill)
        return self._state

    async def stop(self) -> None:
        """Ask it to stop, kill it after ``stop_grace_s``, and give the folder back; stopping twice is harmless."""
        atexit.unregister(self._kill)
        await self._end()

    async def wait(self) -> int:
        """Wait until the server ends, for whatever reason, and return its exit status (negative: the signal).

        Cancelling ends the wait, not the server.
        """
        process = self._process
        if process is None:
            return 0
        while process.poll() is None:
            await self._clock.sleep(_POLL_S * 5)
        return process.returncode

    async def _lock(self) -> None:
        """Take the folder; a server whose owner died is on its way out, so wait for it."""
        deadline = self._clock.monotonic() + _TAKEOVER_WAIT_S
        while True:
            try:
                self._folder.lock()
            except DataFolderInUseError:
                holder = self._folder.read_state()
                if holder is None or _is_alive(holder.owner_pid) or self._clock.monotonic() > deadline:
                    raise
                await self._clock.sleep(_POLL_S)
            else:
                return

    async def _start(self, binary: ServerBinary) -> RunningServer:
        settings = self._settings
        if settings.http_port:
            check_port(settings.http_port, setting="server.http_port")
        for attempt in range(_FREE_PORT_ATTEMPTS):
            port = settings.port or free_port()
            check_port(port, setting="server.port")
            name = self._membership.name if self._membership is not None else new_name(settings.profile)
            self._folder.write_config(
                settings, port=port, http_port=settings.http_port, server_name=name, membership=self._membership
            )
            process = self._process = _spawn(binary, self._folder)
            try:
                await self._ready(port, name)
            except PortInUseError:
                # A free port was taken between our look and the server's bind: take another one.
                if settings.port or attempt + 1 == _FREE_PORT_ATTEMPTS:
                    raise
                await self._terminate()
                continue
            break
        return RunningServer(
            url=f"nats://{HOST}:{port}",
            pid=process.pid,
            owner_pid=os.getpid(),
            version=binary.version_text,
            profile=settings.profile,
            http_url=f"http://{HOST}:{settings.http_port}" if settings.http_port else "",
        )

    async def _ready(self, port: int, name: str) -> None:
        """Wait until the server with our name answers on its port."""
        process = self._process
        deadline = self._clock.monotonic() + self._settings.start_deadline_s
        while process is not None and process.poll() is None:
            answer = await _read_info(port)
            if answer is not None and answer.get("server_name") == name:
                return
            if answer is not None or self._clock.monotonic() > deadline:
                break
            await self._clock.sleep(_POLL_S)
        else:
            answer = None
        said = self._folder.tail()
        if answer is not None or "address already in use" in said:
            raise _port_in_use(port, setting="server.port")
        how = f"ended with status {process.poll()}" if process and process.poll() is not None else "did not get ready"
        message = f"the embedded nats-server {how} within {self._settings.start_deadline_s:g} s; it said:\n{said}"
        raise ServerStartError(message)

    async def _terminate(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
        deadline = self._clock.monotonic() + self._settings.stop_grace_s
        try:
            while process.poll() is None and self._clock.monotonic() < deadline:
                await self._clock.sleep(_POLL_S)
        finally:  # also when cancelled: nothing may be left behind
            if process.poll() is None:
                process.kill()
            process.wait()

    async def _end(self) -> None:
        try:
            await self._terminate()
        finally:
            self._state = None
            self._folder.unlock()

    def _kill(self) -> None:
        """End the server at the interpreter's exit, when nobody called ``stop``."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(self._settings.stop_grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.unlock()


def _spawn(binary: ServerBinary, folder: DataFolder) -> subprocess.Popen[bytes]:
    command = [str(binary.path), "-c", str(folder.config_file)]
    if sys.platform == "linux" and sys.executable:
        command = [sys.executable, "-I", "-S", "-c", _LINUX_STARTER, str(os.getpid()), *command]
    folder.log_file.unlink(missing_ok=True)  # ``tail`` must not show the last run's end
    with folder.error_file.open("wb") as errors:
        return subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
            pass_fds=(folder.lock_fd,) if os.name == "posix" else (),
        )


async def _read_info(port: int) -> dict[str, object] | None:
    """Return what a server on the port says of itself; {} for something else, None when nobody listens yet."""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError):
        return None
    if not line.startswith(b"INFO "):
        return {}
    info: dict[str, object] = json.loads(line.removeprefix(b"INFO "))
    return info


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(port: int, *, setting: str) -> None:
    """Make sure that nobody listens on a port.

    Raises:
        PortInUseError: If somebody does; it names ``setting``.
    """
    with socket.socket() as probe:
        # As the server itself binds: a port whose last connections are only waiting to time out is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise _port_in_use(port, setting=setting) from error


def _port_in_use(port: int, *, setting: str) -> PortInUseError:
    message = f"port {port} on {HOST} is taken by another program; stop that one, or set {setting} to another port"
    return PortInUseError(message, port=port)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # signal 0 would end the process on Windows; the lock decides alone
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
