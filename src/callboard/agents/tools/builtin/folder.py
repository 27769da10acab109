"""A folder that paths cannot lead out of.

Every part of a path is opened from the one before it, and no link is followed. Nothing is looked up by a whole path, so
that a link put there between a look and a use leads nowhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from callboard.agents.errors import PathDeniedError, ToolError

MAX_PATH_BYTES: Final = 4096
MAX_PARTS: Final = 64
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# not blocked by a pipe that nobody writes to
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# whoever writes there has others run programs
_GUARDED = ".git"


class Entry(Struct, frozen=True, kw_only=True):
    """What stands in a folder: ``kind`` is ``file``, ``folder``, ``link`` or ``other``."""

    path: str
    kind: str
    size_bytes: int = 0


class Folder:
    """The one folder that a tool may use. Every path is relative to it, with ``/`` between its parts.

    Methods block; tools call them in a thread.
    """

    def __init__(self, root: Path) -> None:
        """Use a folder that exists; ``root`` itself comes from the operator and may be a link."""
        self._root = root

    def read(self, path: str, *, max_bytes: int) -> tuple[bytes, int]:
        """Return a file's first bytes and its size.

        Raises:
            PathDeniedError: If the path leads out of the folder, through a link, or to what is no file.
            ToolError: If there is no such file.
        """
        with self._parent(path) as (folder, name):
            fd = _opened(name, _OPEN_FILE, folder, path)
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                os.close(fd)
                raise _denied(path, "it is no file")
            with os.fdopen(fd, "rb", closefd=True) as file:
                return file.read(max_bytes), found.st_size

    def write(self, path: str, data: bytes) -> None:
        """Put a file in place, whole or not at all; missing folders are made.

        Raises:
            PathDeniedError: As ``read``, and for what lies in a ``.git`` folder.
            ToolError: If it cannot be written.
        """
        if any(part.casefold() == _GUARDED for part in _parts(path)):
            raise _denied(path, "git's own folder is not written")
        with self._parent(path, make=True) as (folder, name):
            mode = _mode(folder, name, path)
            fresh = f".{secrets.token_hex(8)}.part"
            try:
                fd = os.open(fresh, _NEW_FILE, mode, dir_fd=folder)
                with os.fdopen(fd, "wb", closefd=True) as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.unlink(fresh, dir_fd=folder)
                message = f"{path} cannot be written: {error.strerror}"
                raise ToolError(message) from error

    def walk(self, path: str = "", *, depth: int = 32, max_entries: int) -> Iterator[Entry]:
        """Yield what stands below a folder, by name; hidden folders and links are named and not entered.

        Raises:
            PathDeniedError: As ``read``.
            ToolError: If there is no such folder.
        """
        left = max_entries
        with self._opened_folder(_parts(path) if path not in ("", ".") else [], path) as fd:
            start = "/".join(_parts(path)) if path not in ("", ".") else ""
            for entry in _below(fd, start, depth):
                if left <= 0:
                    return
                left -= 1
                yield entry

    @contextlib.contextmanager
    def _parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        parts = _parts(path)
        with self._opened_folder(parts[:-1], path, make=make) as fd:
            yield fd, parts[-1]

    @contextlib.contextmanager
    def _opened_folder(self, parts: list[str], path: str, *, make: bool = False) -> Iterator[int]:
        fd = _opened(os.fspath(self._root.resolve()), _OPEN_FOLDER, None, path)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=fd)
                inner = _opened(part, _OPEN_FOLDER, fd, path)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)


def relative(path: str) -> str:
    """Return a path that stays inside a folder, in its plainest form; nothing is looked up.

    Raises:
        PathDeniedError: If it leads out, or is no path.
    """
    return "/".join(_parts(path)) if path not in ("", ".") else "."


def _parts(path: str) -> list[str]:
    """Return the parts of a path that stays inside.

    Raises:
        PathDeniedError: If it does not, or is no path.
    """
    try:
        size = len(path.encode())
    except UnicodeEncodeError as error:
        raise _denied(path, "it is no text") from error
    if "\0" in path or size > MAX_PATH_BYTES:
        raise _denied(path, "it holds a NUL or is too long")
    if path.startswith(("/", "~", "\\")):
        raise _denied(path, "it is absolute; write it from the folder on, such as notes/a.txt")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _denied(path, "it leads out of the folder")
    if not 0 < len(parts) <= MAX_PARTS:
        raise _denied(path, "it names no file")
    return parts


def _opened(name: str, flags: int, folder: int | None, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError as error:
        message = f"there is no {path}"
        raise ToolError(message) from error
    except OSError as error:
        # a link: ELOOP, or ENOTDIR where a folder was asked for
        if folder is not None and _is_link(name, folder):
            raise _denied(path, f"{name} is a link, and links are not followed") from error
        message = f"{path} cannot be opened: {error.strerror}"
        raise ToolError(message) from error


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _mode(folder: int, name: str, path: str) -> int:
    """Return the mode of the file that is to be replaced, that of a new one if there is none."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0o644
    if not stat.S_ISREG(found):
        raise _denied(path, "it is there, and no file")
    return stat.S_IMODE(found) & 0o777


def _below(fd: int, prefix: str, depth: int) -> Iterator[Entry]:
    with os.scandir(fd) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        path = f"{prefix}/{entry.name}" if prefix else entry.name
        if entry.is_symlink():
            yield Entry(path=path, kind="link")
        elif entry.is_dir(follow_symlinks=False):
            yield Entry(path=path, kind="folder")
            if depth > 1 and not entry.name.startswith("."):
                yield from _inside(fd, entry.name, path, depth - 1)
        else:
            yield _file(fd, entry.name, path)


def _inside(fd: int, name: str, path: str, depth: int) -> Iterator[Entry]:
    try:
        inner = os.open(name, _OPEN_FOLDER, dir_fd=fd)
    except OSError:
        # gone, turned into a link, or not ours to read
        return
    try:
        yield from _below(inner, path, depth)
    finally:
        os.close(inner)


def _file(fd: int, name: str, path: str) -> Entry:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return Entry(path=path, kind="other")
    is_file = stat.S_ISREG(found.st_mode)
    return Entry(path=path, kind="file" if is_file else "other", size_bytes=found.st_size if is_file else 0)


def _denied(path: str, why: str) -> PathDeniedError:
    return PathDeniedError(f"the path {path[:200]!r} is refused: {why}")
