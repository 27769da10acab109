"""A fence around files (Landlock), as data for the warden: what a program may read, and the one folder it may write."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

_CREATE_RULESET = 444  # the same number on every processor
_ASK_VERSION = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_WRITE_FILE, _REFER, _TRUNCATE, _IOCTL = 1 << 1, 1 << 13, 1 << 14, 1 << 15
_MAKE_CHAR, _MAKE_SOCKET, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_FIRST_RIGHTS = (1 << 13) - 1
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_WRITE = (_FIRST_RIGHTS | _REFER | _TRUNCATE) & ~(_MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCKET)
_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE
_REFER_SINCE, TRUNCATE_SINCE, _NET_SINCE, _IOCTL_SINCE, _SCOPES_SINCE = 2, 3, 4, 5, 6
_SYSTEM = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/nix/store",
]
_DEVICES = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]


def version() -> int:
    """Return which Landlock the kernel has: 1 (5.13) and up; 0 for none."""
    if sys.platform != "linux":
        return 0
    found = ctypes.CDLL(None).syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), _ASK_VERSION)
    return max(0, int(found))


def fence(folder: Path, readable: Iterable[Path], *, abi: int) -> Mapping[str, object]:
    """Return the order for a fence. Only ``folder`` may be written; no device, no socket may be made in it.

    It does not hold what is no reading or writing: changing mode, owner and times of one's own files, asking for sizes.
    """
    rights = _FIRST_RIGHTS
    rights |= _REFER if abi >= _REFER_SINCE else 0
    rights |= _TRUNCATE if abi >= TRUNCATE_SINCE else 0
    rights |= _IOCTL if abi >= _IOCTL_SINCE else 0
    rules: list[tuple[str, int]] = [(str(folder), _WRITE)]
    rules += [(name, _READ) for name in (*_SYSTEM, *python(), *map(str, readable))]
    rules += [(name, _DEVICE) for name in _DEVICES]
    has_net, has_scopes = abi >= _NET_SINCE, abi >= _SCOPES_SINCE
    return {
        "rights": rights,
        "net": 3 if has_net else 0,  # bind, connect
        "scoped": 3 if has_scopes else 0,  # abstract sockets, signals
        "size": 24 if has_scopes else 16 if has_net else 8,
        "rules": rules,
    }


def python() -> list[str]:
    """Return where this Python lives, so that a sandbox can run it; nothing that holds more than a Python."""
    found = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    return sorted(str(path) for path in found if len(path.parts) > 2 and not path.is_relative_to("/usr"))  # noqa: PLR2004
