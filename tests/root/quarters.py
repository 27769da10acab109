"""Network and mounts of this test process's own: what the root suite does cannot reach the machine's.

``enter`` moves the process into a fresh network namespace (loopback only) and a private mount namespace. Bridges,
firewalls, mounts and loop devices made afterwards are seen by nobody else and end with the last process inside, also
when the tests are killed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_RUN_S = 30.0


class Refused(Exception):  # noqa: N818 - what a probe reports, not a failure
    """Raised when the machine does not let the root suite do something; the text says what."""


def run(*command: str) -> str:
    """Run a command and return what it printed; ``Refused`` with its words when it fails."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_RUN_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{command[0]}: {error}"
        raise Refused(message) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise Refused(said if said.startswith(f"{command[0]}:") else f"{command[0]}: {said}")
    return done.stdout


def need(*tools: str) -> None:
    """Refuse when a command is not installed, or when this is not root."""
    if os.geteuid():
        message = "needs root"
        raise Refused(message)
    for tool in tools:
        if shutil.which(tool) is None:
            message = f"{tool} is not installed"
            raise Refused(message)


@functools.cache
def enter() -> str | None:
    """Move this process into quarters of its own, once; return why that is refused, None when it is done.

    Threads that exist already stay outside, so it is called before any is started.
    """
    try:
        need("mount", "ip", "nsenter")
        unshare(_CLONE_NEWNET | _CLONE_NEWNS)
        run("mount", "--make-rprivate", "/")
        run("ip", "link", "set", "lo", "up")
    except (Refused, OSError) as error:
        return f"namespaces: {error}"
    return None


def unshare(flags: int = _CLONE_NEWNET) -> None:
    """Give the calling thread namespaces of its own: of the network, if nothing else is said."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        code = ctypes.get_errno()
        raise OSError(code, f"unshare: {os.strerror(code)}")
