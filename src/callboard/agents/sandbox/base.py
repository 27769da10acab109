"""The sandbox port: run a program apart from this process, within limits that the operator set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """What one run may use. An operator's settings are the upper bound of what a caller asks for.

    Attributes:
        time_s: Wall time.
        cpu_s: Processor time.
        memory_bytes: Memory of all its processes.
        output_bytes: Of each of its two streams; what comes beyond is cut off.
        file_bytes: Largest file that it may write.
        processes: Processes and threads at a time.
        open_files: Open files of each process.
        network: Hosts that it may reach, ``()`` for none at all.
    """

    time_s: float = 60.0
    cpu_s: float = 60.0
    memory_bytes: int = 512 * 2**20
    output_bytes: int = 2**20
    file_bytes: int = 64 * 2**20
    processes: int = 64
    open_files: int = 256
    network: tuple[str, ...] = ()


class Job(Struct, frozen=True, kw_only=True):
    """A program to run.

    Attributes:
        argv: Program and arguments; no shell reads them.
        folder: The one folder that it may write; the program starts in it.
        input: Bytes on its standard input.
        env: Variables that it gets; nothing of this process's own environment but a short list (PATH, LANG, TZ).
        limits: What it may use.
        label: Who asked for it, for the reaper and for people.
    """

    argv: Sequence[str]
    folder: Path
    input: bytes = b""
    env: Mapping[str, str] = {}
    limits: Limits = Limits()
    label: str = ""


class Ran(Struct, frozen=True, kw_only=True):
    """How a run ended.

    Attributes:
        status: Exit status; minus the signal's number if a signal ended it.
        stdout: Standard output, cut at the limit.
        stderr: Standard error, cut at the limit.
        took_s: Wall time.
        limit: The limit that ended it, as in ``SandboxLimitError``; "" for none.
        is_cut: Whether output was cut off.
    """

    status: int
    stdout: bytes
    stderr: bytes
    took_s: float
    limit: str = ""
    is_cut: bool = False


class Sandbox(Protocol):
    """Runs programs. No process of a run outlives it, also when the caller is cancelled."""

    @property
    def name(self) -> str:
        """``subprocess``, ``bubblewrap`` or ``docker``."""
        ...

    async def check(self) -> None:
        """Return if it works on this machine; asked once before the first run.

        Raises:
            SandboxMissingError: If it does not, with what to install or to allow.
        """
        ...

    async def run(self, job: Job) -> Ran:
        """Run a program to its end, its limits or the caller's cancellation.

        Raises:
            SandboxMissingError: If the sandbox is not here; nothing was run.
            SandboxError: If the program could not be started.
        """
        ...

    async def close(self) -> None:
        """End what still runs and give back what is held."""
        ...
