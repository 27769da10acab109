"""A private copy of what rules a git repository, for one run of git.

Code in an agent's sandbox may write into the folder's ``.git`` while git runs outside of the sandbox. What was looked
at before would not be what git reads, and a setting can name a program. So git is given a directory of its own: its
settings are those that were checked, its index a copy, and only objects and references are shared.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from callboard.agents.errors import ToolError

MAX_COPIED_BYTES: Final = 256 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPIED: Final = (
    "config",
    "HEAD",
    "index",
    "packed-refs",
    "shallow",
    "info/exclude",
    "MERGE_HEAD",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
)
# Attributes, hooks, reflogs and alternates are not among them.
_SHARED: Final = ("objects", "refs")
_WRITTEN: Final = ("index", "HEAD")
_LEADS_AWAY: Final = ("commondir", "config.worktree", "objects/info/alternates")


@contextlib.contextmanager
def private_copy(inside: Path, *, is_written: bool) -> Iterator[Path]:
    """Give a directory that git can use in place of ``inside``, the folder's ``.git``. Blocks; copies the index.

    Args:
        inside: The folder's own.
        is_written: Whether index and HEAD go back when git has ended; meanwhile other gits are kept out, by the lock
            that they know.

    Raises:
        ToolError: If it is no repository of its own, leads elsewhere, or is locked by another git.
    """
    _look(inside)
    lock = inside / "index.lock"
    with tempfile.TemporaryDirectory(prefix="callboard-git-") as place:
        is_held = is_written and _locked(lock)
        try:
            made = _copied(inside, Path(place))
            before = {name: _seen(made / name) for name in _WRITTEN}
            yield made
            for name in _WRITTEN if is_written else ():
                if _seen(made / name) != before[name]:
                    _put_back(made / name, inside / name)
                    # its renaming has ended the lock: what stands there now is somebody else's
                    is_held = is_held and name != "index"
        finally:
            if is_held:
                with contextlib.suppress(OSError):
                    lock.unlink()


def _copied(inside: Path, made: Path) -> Path:
    (made / "info").mkdir()
    for name in _COPIED:
        _copy(inside / name, made / name)
    for name in _SHARED:
        (made / name).symlink_to(inside / name)
    return made


def _look(inside: Path) -> None:
    if inside.is_symlink() or not inside.is_dir():
        message = "the agent's folder is no git repository of its own: it has no folder .git"
        raise ToolError(message)
    away = [name for name in _LEADS_AWAY if os.path.lexists(inside / name)]
    away += [name for name in _SHARED if (inside / name).is_symlink()]
    if away:
        message = f"the repository has .git/{away[0]}, which leads to another place: this tool does not follow it"
        raise ToolError(message)


def _locked(lock: Path) -> bool:
    try:
        os.close(os.open(lock, _NEW, 0o644))
    except OSError as error:
        message = f"another git works in the folder, or one was killed there: .git/index.lock stands ({error.strerror})"
        raise ToolError(message) from error
    return True


def _copy(source: Path, target: Path) -> None:
    """Copy a file with its time, by which git knows what has changed since; nothing where there is none."""
    try:
        fd = os.open(source, _READ)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        message = f"the repository's {source.name} cannot be read, or is a link: {error.strerror}"
        raise ToolError(message) from error
    with os.fdopen(fd, "rb") as file, target.open("xb") as made:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_COPIED_BYTES:
            message = f"the repository's {source.name} is no file, or is over {MAX_COPIED_BYTES} bytes"
            raise ToolError(message)
        shutil.copyfileobj(file, made)
        made.flush()
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _seen(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _put_back(made: Path, target: Path) -> None:
    """Put a file in place whole; a link that stands there is replaced and not followed."""
    fresh = target.with_name(f"{target.name}.lock")
    try:
        # that of the index is our own, and empty
        if target.name == "index":
            fresh.unlink()
        fd = os.open(fresh, _NEW, 0o644)
        with made.open("rb") as file, os.fdopen(fd, "wb") as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            found = made.stat()
            os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
        fresh.rename(target)
    except OSError as error:
        message = f"the repository's {target.name} cannot be written: {error.strerror}"
        raise ToolError(message) from error
