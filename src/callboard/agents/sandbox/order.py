"""Look at what a sandbox is asked to run, before anything of it is run."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import structs

from callboard.agents.errors import SandboxError
from callboard.agents.sandbox import landlock
from callboard.agents.sandbox.base import Job, Limits
from callboard.agents.sandbox_settings import SandboxLimits, SandboxSettings

PATH = "/usr/local/bin:/usr/bin:/bin"
MAX_ARGUMENT_BYTES = 1 << 20
_SIGNALLED = 128
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOADER = ("LD_", "DYLD_", "GCONV_")
# Whoever may write here, or above, owns the machine or the engine that runs the containers.
_SYSTEM = tuple(
    Path(name)
    for name in [
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/lib",
        "/lib32",
        "/lib64",
        "/proc",
        "/run",
        "/sbin",
        "/sys",
        "/usr",
        "/var/run",
        "/var/lib/docker",
        "/var/lib/containerd",
    ]
)


def accept(job: Job, settings: SandboxSettings) -> Job:
    """Return the job with its folder resolved and its limits within the operator's.

    Raises:
        SandboxError: If there is no program, an argument or a variable cannot be handed on, the folder is not one that
            may be written, or it asks for hosts that the operator does not allow.
    """
    _check_argv(job.argv)
    _check_env(job.env)
    folder = _folder(job.folder, settings.folders)
    return structs.replace(job, folder=folder, limits=bounded(job.limits, settings.limits))


def bounded(asked: Limits, most: SandboxLimits) -> Limits:
    """Return the smaller of each limit.

    Raises:
        SandboxError: If a limit is not a positive number, or a host is asked for that is not allowed.
    """
    for name, value in structs.asdict(asked).items():
        if name != "network" and not value > 0:
            message = f"the limit {name} must be more than 0, and is {value}"
            raise SandboxError(message)
    strange = sorted(set(asked.network) - set(most.network))
    if strange:
        hosts = ", ".join(strange)
        message = f"network access to {hosts} is not allowed: the operator lists hosts in agents.sandbox.limits.network"
        raise SandboxError(message)
    return Limits(
        time_s=min(asked.time_s, most.time_s),
        cpu_s=min(asked.cpu_s, most.cpu_s),
        memory_bytes=min(asked.memory_bytes, most.memory_bytes),
        output_bytes=min(asked.output_bytes, most.output_bytes),
        file_bytes=min(asked.file_bytes, most.file_bytes),
        processes=min(asked.processes, most.processes),
        open_files=min(asked.open_files, most.open_files),
        network=asked.network,
    )


def environment(job: Job, inherited: Mapping[str, str], *, path: str = PATH) -> dict[str, str]:
    """Return what a program finds in its environment: the job's variables, and of this process's only LANG and TZ."""
    kept = {name: inherited[name] for name in ("LANG", "TZ") if name in inherited}
    return {"PATH": path, "LANG": "C.UTF-8", "HOME": str(job.folder), "TMPDIR": str(job.folder), **kept, **job.env}


def python_path() -> str:
    """Return where programs are looked for: the system's folders, and this Python's."""
    return f"{PATH}:{Path(sys.executable).parent}" if landlock.python() else PATH


def ended(code: int) -> tuple[int, str]:
    """Return the status and the limit that an exit status speaks of; 128 + n stands for signal n, as shells have it."""
    status = _SIGNALLED - code if _SIGNALLED < code <= _SIGNALLED + signal.NSIG else code
    return status, {-signal.SIGXCPU: "cpu", -signal.SIGXFSZ: "files"}.get(status, "")


def _check_argv(argv: Sequence[str]) -> None:
    if isinstance(argv, str) or not argv or not argv[0]:
        message = "argv must be a list that begins with a program: no shell reads it, so 'ls -l' is ['ls', '-l']"
        raise SandboxError(message)
    for each in argv:
        _check_text(each, "an argument")


def _check_env(env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if not _NAME.fullmatch(name):
            message = f"{name!r} cannot be the name of a variable: use letters, digits and _"
            raise SandboxError(message)
        if name.startswith(_LOADER):
            message = f"the variable {name} steers the loader of programs and cannot be set"
            raise SandboxError(message)
        _check_text(value, f"the variable {name}")


def _check_text(text: str, what: str) -> None:
    if "\0" in text:
        message = f"{what} holds a NUL byte, which no program can be given"
        raise SandboxError(message)
    try:
        size = len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        message = f"{what} holds half a surrogate pair, which cannot be written as bytes"
        raise SandboxError(message) from None
    if size > MAX_ARGUMENT_BYTES:
        message = f"{what} has {size} bytes; hand more than {MAX_ARGUMENT_BYTES} over on standard input or in a file"
        raise SandboxError(message)


def _folder(asked: Path, allowed: Sequence[Path]) -> Path:
    try:
        folder = asked.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        message = f"the folder {asked} cannot be used: {error}"
        raise SandboxError(message) from error
    if not folder.is_dir():
        message = f"{folder} is not a folder"
        raise SandboxError(message)
    system = [each for each in _SYSTEM if folder.is_relative_to(each) or each.is_relative_to(folder)]
    if system:
        message = (
            f"the folder {folder} lies in or around {system[0]}, which a sandbox must not write; use one of its own"
        )
        raise SandboxError(message)
    if ":" in str(folder):
        message = f"the folder {folder} has a colon in its name, which Docker reads as the end of the name"
        raise SandboxError(message)
    roots = [each.resolve() for each in allowed]
    if roots and not any(folder.is_relative_to(root) for root in roots):
        message = (
            f"the folder {folder} is in none of the folders that the operator allows ({', '.join(map(str, roots))})"
        )
        raise SandboxError(message)
    return folder
