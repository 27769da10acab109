"""Run a program under a warden: hand over its input, bound its output while reading, and leave nothing behind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from callboard.agents.errors import SandboxError
from callboard.agents.sandbox.base import Job, Ran
from callboard.agents.sandbox.ending import settled
from callboard.agents.sandbox.seccomp import WARDEN_MARK
from callboard.runtime.clock import Clock

_WARDEN = Path(__file__).with_name("warden.py")
_CHUNK_BYTES = 1 << 16
_GRACE_S = 30.0  # for a warden that is held up; longer than it tries to kill
_STREAMS_END_S = 5.0


class Confinement(Struct, frozen=True, kw_only=True):
    """How a program is started.

    Attributes:
        argv: What the warden starts: the program, or what encloses it.
        env: Its whole environment.
        rlimits: By name of the constant in ``resource``.
        filter: Filter of system calls.
        hand_filter_fd: Where to leave the filter for what encloses the program; 0 to put it in force at once.
        landlock: Rules of the fence around files; None for none.
        user: User and group to become; None to stay. Root's powers are taken away.
        capabilities: Root's powers that are left to what encloses the program, which has to drop them.
        spare_processes: Of what encloses the program; they do not count.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    rlimits: Mapping[str, int]
    filter: bytes
    hand_filter_fd: int = 0
    landlock: Mapping[str, object] | None = None
    user: tuple[int, int] | None = None
    capabilities: Sequence[int] = ()
    spare_processes: int = 0


def rlimits(job: Job, user: tuple[int, int] | None) -> dict[str, int]:
    """Return the limits that hold for each single process of a job; the warden watches their sums."""
    limits = job.limits
    uid = os.geteuid() if user is None else user[0]
    return {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CPU": max(1, round(limits.cpu_s)),
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        # The kernel counts all that the user runs, wherever; and never refuses root.
        "RLIMIT_NPROC": _tasks_of(uid) + limits.processes,
    }


def user_of(folder: Path) -> tuple[int, int] | None:
    """Return whom a program has to run as: where this process is root and the folder is not root's, its owner."""
    found = folder.stat()
    return (found.st_uid, found.st_gid) if os.geteuid() == 0 and found.st_uid != 0 else None


async def run(job: Job, confinement: Confinement, *, clock: Clock) -> Ran:
    """Run a job to its end. Costs a Python process besides the program: some 30 ms.

    Cancelling kills all its processes before this returns.

    Raises:
        SandboxError: If it could not be started, or its warden was killed from outside.
    """
    began_s = clock.monotonic()
    order_fd = _written(job, confinement)
    control, control_end = os.pipe()
    report, report_end = os.pipe()
    handed = (order_fd, control, report_end)
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                str(_WARDEN),
                *map(str, handed),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=handed,
                env={},
                start_new_session=True,
            )
        except OSError as error:
            message = f"no warden could be started: {error}"
            raise SandboxError(message) from error
        finally:
            for fd in handed:
                os.close(fd)
        streams = _Streams(process, job)
        finishing = asyncio.create_task(streams.until_the_end(), name="sandbox")
        try:
            async with asyncio.timeout(job.limits.time_s + _GRACE_S):
                await asyncio.shield(finishing)
        except TimeoutError:
            process.kill()
        finally:
            # The end of this pipe tells the warden to kill everything; a worker that dies closes it too.
            os.close(control_end)
            control_end = -1
            await settled(finishing)
        said = _read_all(report)
    finally:
        os.close(report)
        if control_end >= 0:
            os.close(control_end)
    return _ran(said, streams, took_s=clock.monotonic() - began_s)


class _Streams:
    """The three streams of one program."""

    def __init__(self, process: asyncio.subprocess.Process, job: Job) -> None:
        self.is_cut = False
        self.stdout = b""
        self.stderr = b""
        self._process = process
        self._job = job

    async def until_the_end(self) -> None:
        """Feed and drain until the warden has ended. Raises nothing that the program causes."""
        out, err = bytearray(), bytearray()
        tasks = [
            asyncio.create_task(self._feed(), name="sandbox input"),
            asyncio.create_task(self._drain(self._process.stdout, out), name="sandbox output"),
            asyncio.create_task(self._drain(self._process.stderr, err), name="sandbox errors"),
        ]
        await self._process.wait()
        # Streams end with the last process that holds them. Should a warden be killed from outside, one may be left.
        _, late = await asyncio.wait(tasks, timeout=_STREAMS_END_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.stdout, self.stderr = bytes(out), bytes(err)

    async def _feed(self) -> None:
        stdin = self._process.stdin
        if stdin is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(self._job.input)
            await stdin.drain()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.close()
            await stdin.wait_closed()

    async def _drain(self, stream: asyncio.StreamReader | None, kept: bytearray) -> None:
        """Read to the end; keep the first bytes and let the rest fall, so that the program never waits for us."""
        while stream is not None and (chunk := await stream.read(_CHUNK_BYTES)):
            room = self._job.limits.output_bytes - len(kept)
            kept += chunk[:room]
            self.is_cut = self.is_cut or len(chunk) > room


def _written(job: Job, confinement: Confinement) -> int:
    """Return a descriptor from which the warden reads its order."""
    limits = job.limits
    order = {
        "argv": list(confinement.argv),
        "env": dict(confinement.env),
        "folder": str(job.folder),
        "user": confinement.user,
        "capabilities": list(confinement.capabilities),
        "rlimits": dict(confinement.rlimits),
        "filter": base64.b64encode(confinement.filter).decode(),
        "hand_filter_fd": confinement.hand_filter_fd,
        "warden_mark": WARDEN_MARK,
        "landlock": confinement.landlock,
        "limits": {
            "time_s": limits.time_s,
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes,
            "processes": limits.processes + confinement.spare_processes,
        },
    }
    fd = os.memfd_create("callboard-order")
    os.write(fd, json.dumps(order).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _read_all(fd: int) -> bytes:
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, _CHUNK_BYTES)
    return b""


def _ran(said: bytes, streams: _Streams, *, took_s: float) -> Ran:
    if not said:
        message = f"the warden of a sandbox was killed from outside, or failed: {streams.stderr[-500:]!r}"
        raise SandboxError(message)
    report = json.loads(said)
    if report["error"]:
        message = f"the program could not be started: {report['error']}"
        raise SandboxError(message)
    if report["left"]:
        message = f"{report['left']} processes of a sandbox cannot be killed; look for processes that wait for a disk"
        raise SandboxError(message)
    return Ran(
        status=report["status"],
        stdout=streams.stdout,
        stderr=streams.stderr,
        took_s=took_s,
        limit=report["limit"],
        is_cut=streams.is_cut,
    )


def _tasks_of(uid: int) -> int:
    """Count the threads that a user runs on this machine; some milliseconds on a busy one."""
    if uid == 0:
        return 0
    found = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == uid:
                    found += len(list(os.scandir(f"{entry.path}/task")))
    return found
