"""The data folder of an embedded server: its lock, its configuration file, and the note of who runs on it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from callboard.runtime.config import ServerSettings
from callboard.runtime.errors import DataFolderInUseError, ServerStartError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

MAX_PAYLOAD_BYTES = 1 << 20
MIN_FILE_BYTES = 64 << 20
CLUSTER = "callboard"
MEMBER = "cb"

_OUR_NAME = re.compile(r"callboard-(durable|fast)-[0-9a-f]{12}")
_RESERVE_BYTES = 512 << 20
_RESERVE_SHARE = 10
# Quoted: a bare 2m is two million in this format, and seconds here.
_SYNC = {"durable": "always", "fast": '"2m"'}


class Membership(Struct, frozen=True, kw_only=True):
    """What makes a server one of a cluster.

    Attributes:
        name: Its name, ``cb1`` and so on; its data stands in a folder of that name.
        route_port: Where it takes routes.
        routes: The route ports of all members.
    """

    name: str
    route_port: int
    routes: tuple[int, ...]


class RunningMember(Struct, frozen=True, kw_only=True):
    """One server of a cluster; ``pid`` is 0 while it does not run."""

    name: str
    url: str
    pid: int


class RunningServer(Struct, frozen=True, kw_only=True):
    """What ``server.json`` says while a server, or a cluster of them, runs.

    Attributes:
        url: Where clients connect; of a cluster all addresses, with commas.
        pid: Process of the server; of a cluster the one that looks after the servers.
        owner_pid: Process that started it and stops it.
        http_url: Monitoring address, or "".
        members: The servers of a cluster; empty for a single one.
    """

    url: str
    pid: int
    owner_pid: int
    version: str
    profile: str
    http_url: str = ""
    members: tuple[RunningMember, ...] = ()


class DataFolder:
    """Paths inside a data folder, and the lock that one server at a time holds."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config_file = self.path / "nats.conf"
        self.log_file = self.path / "server.log"
        self.error_file = self.path / "server.err"
        self.state_file = self.path / "server.json"
        self.lock_file = self.path / "server.lock"
        self.store_dir = self.path / "jetstream"
        self._lock: BinaryIO | None = None

    @property
    def lock_fd(self) -> int:
        """The lock's file descriptor.

        The server inherits it: the lock then stands until both the owner and the server are gone, so nobody starts a
        second server on the folder while the first is still writing after its owner's death.
        """
        if self._lock is None:
            message = "the data folder is not locked"
            raise ServerStartError(message)
        return self._lock.fileno()

    def lock(self) -> None:
        """Take the lock, without waiting. A dead process holds none, so nothing stale can stand in the way.

        Raises:
            DataFolderInUseError: If a server runs on the folder; names its process and URL.
            ServerStartError: If the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = self.lock_file.open("a+b")
        except OSError as error:
            message = (
                f"the data folder {self.path} cannot be used: {error.strerror}; set server.data_dir to another one"
            )
            raise ServerStartError(message) from error
        if not _try_lock(handle):
            handle.close()
            raise DataFolderInUseError(self._in_use())
        self._lock = handle

    def unlock(self) -> None:
        """Give the lock back and remove the note. Harmless when it is not held."""
        if self._lock is None:
            return
        self.state_file.unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def is_locked(self) -> bool:
        """Whether some process holds the lock now."""
        if self._lock is not None:
            return True
        try:
            handle = self.lock_file.open("r+b")
        except OSError:
            return False
        with handle:
            return not _try_lock(handle)

    def write_state(self, state: RunningServer) -> None:
        """Note who runs here, in one rename, so that a reader never sees half of it."""
        temporary = self.state_file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(state))
        temporary.replace(self.state_file)

    def read_state(self) -> RunningServer | None:
        """Return the note as it stands, of a living or a dead server, or None."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=RunningServer)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def member_names(self) -> list[str]:
        """Return the members of the cluster whose data stands here, in order; none for a single server or no data."""
        return sorted(found.parent.name for found in self.path.glob(f"{MEMBER}[1-9]/jetstream"))

    def write_config(
        self,
        settings: ServerSettings,
        *,
        port: int,
        http_port: int,
        server_name: str,
        membership: Membership | None = None,
    ) -> None:
        """Write the server's configuration file anew.

        Raises:
            ServerStartError: If the disk has no room for streams.
        """
        text = render_config(
            settings,
            folder=self,
            port=port,
            http_port=http_port,
            server_name=server_name,
            max_file_bytes=self.max_file_bytes(settings),
            membership=membership,
        )
        self.config_file.write_text(text, encoding="utf-8")

    def tail(self, lines: int = 8) -> str:
        """Return the last lines that the server logged or wrote to standard error."""
        said: list[str] = []
        for path in (self.error_file, self.log_file):
            with contextlib.suppress(OSError):
                said += path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-lines:]
        return "\n".join(said) or "(it said nothing)"

    def max_file_bytes(self, settings: ServerSettings) -> int:
        """Return how much streams may take on disk: the setting, or what the disk has room for.

        Raises:
            ServerStartError: If that is too little for streams.
        """
        if settings.max_file_bytes:
            return settings.max_file_bytes
        disk = shutil.disk_usage(self.path)
        stored = sum(file.stat().st_size for file in self.store_dir.rglob("*") if file.is_file())
        room = store_limit(free_bytes=disk.free, total_bytes=disk.total, stored_bytes=stored)
        if room < MIN_FILE_BYTES:
            message = (
                f"the disk of {self.path} has {disk.free >> 20} MiB free, too little for streams; "
                "free some space or set server.data_dir to another disk"
            )
            raise ServerStartError(message)
        return room

    def flush(self) -> None:
        """Have the disk take all that the servers of this folder have written.

        A server that syncs by an interval, and any server where it declares a stream written without waiting for the
        disk, leaves declarations in memory: a power cut would take whole streams, not only their last messages.
        Blocks until it is done; what is on the disk already costs microseconds a file.
        """
        if os.name != "posix":
            return
        for path in (self.path.parent, self.path, *self.path.rglob("*")):
            # what has gone meanwhile needs no flush
            with contextlib.suppress(FileNotFoundError):
                if path.is_dir() or path.is_file():
                    _sync(path)

    def _in_use(self) -> str:
        state = self.read_state()
        who = f"process {state.owner_pid} at {state.url} (server process {state.pid})" if state else "another process"
        return (
            f"the data folder {self.path} is in use by {who}; connect to that one, stop it, or set server.data_dir "
            "to another folder"
        )


def running(data_dir: Path) -> RunningServer | None:
    """Return the server that runs on a data folder now, or None. Costs two small file reads."""
    folder = DataFolder(data_dir)
    return folder.read_state() if folder.is_locked() else None


def new_name(profile: str) -> str:
    """Return a name for a single server that no other one has; clients read from it how it syncs."""
    return f"callboard-{profile}-{secrets.token_hex(6)}"


def profile_of(server_name: str) -> str:
    """Return the profile of a server with a name of ``new_name``, "" for any other."""
    found = _OUR_NAME.fullmatch(server_name)
    return found[1] if found is not None else ""


def store_limit(*, free_bytes: int, total_bytes: int, stored_bytes: int) -> int:
    """Return how much streams may take in all: what is stored and free, less a reserve of 512 MiB or a tenth.

    A server that meets a full disk before its own limit stops taking writes until it is restarted; at its own limit
    it refuses writes and recovers.
    """
    reserve = min(_RESERVE_BYTES, total_bytes // _RESERVE_SHARE)
    return max(0, free_bytes + stored_bytes - reserve)


def render_config(
    settings: ServerSettings,
    *,
    folder: DataFolder,
    port: int,
    http_port: int,
    server_name: str,
    max_file_bytes: int,
    membership: Membership | None = None,
) -> str:
    """Return the text of the server's configuration file."""
    lines = [
        "# Written by callboard at every start; changes are lost.",
        f"server_name: {json.dumps(server_name)}",
        f'listen: "127.0.0.1:{port}"',
        *([f'http: "127.0.0.1:{http_port}"'] if http_port else []),
        f"max_payload: {MAX_PAYLOAD_BYTES}",
        f"log_file: {_quoted(folder.log_file)}",
        "logfile_size_limit: 10MB",
        "logfile_max_num: 3",
        "jetstream {",
        f"  store_dir: {_quoted(folder.path)}",
        f"  max_mem: {settings.max_memory_bytes}",
        f"  max_file: {max_file_bytes}",
        f"  sync_interval: {_SYNC[settings.profile]}",
        "  limits {",
        '    batch { max_inflight_per_stream: 50, max_inflight_total: 1000, max_msgs: 1000, timeout: "10s" }',
        "  }",
        "}",
        *(_cluster(membership) if membership is not None else []),
    ]
    return "\n".join(lines) + "\n"


def _cluster(membership: Membership) -> list[str]:
    others = [port for port in membership.routes if port != membership.route_port]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in others)
    return [
        "cluster {",
        f"  name: {CLUSTER}",
        f'  listen: "127.0.0.1:{membership.route_port}"',
        f"  routes: [{routes}]",
        "}",
    ]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _quoted(path: Path) -> str:
    """Quote a path for the server's format: inside double quotes a backslash escapes, other text stands as it is."""
    return json.dumps(str(path), ensure_ascii=False)


def _try_lock(handle: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    if os.name == "posix":
        os.set_inheritable(handle.fileno(), False)  # noqa: FBT003 - positional only; the server gets it by pass_fds
    return True
