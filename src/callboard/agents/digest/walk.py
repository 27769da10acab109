"""Which files of a folder to read, and which were left out and why."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file to read: its path below the folder, with ``/``, and its size."""

    path: str
    size_bytes: int


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder that is not read, and why."""

    path: str
    reason: str


class Walk(msgspec.Struct, frozen=True, kw_only=True):
    """The files in order of their paths, and at most 1,000 of the ``left_out_total`` things left out."""

    files: list[FileRef]
    left_out: list[LeftOut]
    left_out_total: int
    used_git: bool


MAX_FILES: Final = 5_000
MAX_BYTES: Final = 5_000_000
_MAX_LEFT_OUT: Final = 1_000
_GIT_TIMEOUT_S: Final = 20
_SKIPPED: Final = frozenset(
    (
        "__pycache__",
        "node_modules",
        "bower_components",
        "venv",
        "env",
        "build",
        "dist",
        "target",
        "vendor",
        "site-packages",
        "htmlcov",
        "coverage",
        "callboard-report",
    )
)
_SKIPPED_SUFFIXES: Final = (
    ".egg-info",
    ".dist-info",
    ".pyc",
    ".pyo",
    ".o",
    ".so",
    ".a",
    ".class",
    ".min.js",
    ".map",
    "~",
    ".swp",
)


def walk(
    folder: str | Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES, skip: Sequence[Path] = ()
) -> Walk:
    """List the files to read below ``folder``.

    In a git checkout these are the files that git tracks or would track. Elsewhere hidden files and the usual folders
    of build products are left out. Links are followed only to files inside the folder; nothing but regular files is
    read.

    Args:
        folder: An existing folder.
        max_files: Beyond this many files, the rest (in order of path) is left out.
        max_bytes: Larger files are left out.
        skip: Folders that are passed over without a word, such as the one the report goes to.

    Raises:
        NotADirectoryError: ``folder`` is no folder.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        message = f"{folder} is no folder; give the path of an existing one"
        raise NotADirectoryError(message)
    from_git = _git_files(root)
    left_out: list[LeftOut] = []
    paths = _plain_files(root, left_out) if from_git is None else iter(from_git)
    skipped = tuple(f"{each.relative_to(root).as_posix()}/" for each in map(Path.resolve, skip) if root in each.parents)
    files: list[FileRef] = []
    for path in sorted(set(paths)):
        if path.startswith(skipped):
            continue
        checked = _check(root, path, max_bytes)
        if isinstance(checked, LeftOut):
            left_out.append(checked)
        elif len(files) >= max_files:
            left_out.append(LeftOut(path=_printable(path), reason=f"over the limit of {max_files:,} files"))
        else:
            files.append(checked)
    return Walk(
        files=files, left_out=left_out[:_MAX_LEFT_OUT], left_out_total=len(left_out), used_git=from_git is not None
    )


def _git_files(root: Path) -> list[str] | None:
    """Return what git tracks or would track below ``root``; None without git, outside a checkout, or on its refusal."""
    git = shutil.which("git")
    if git is None or not any((parent / ".git").exists() for parent in (root, *root.parents)):
        return None
    # fsmonitor names a program in the checkout's own settings; a folder that is only read must not run it
    command = [git, "-C", os.fspath(root), "-c", "core.fsmonitor=false"]
    command += ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(  # noqa: S603 - git with our own arguments
            command, capture_output=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    # An ignored folder inside a checkout gives an empty list; whoever asks for it wants it read.
    return names if done.returncode == 0 and names else None


def _plain_files(root: Path, left_out: list[LeftOut]) -> Iterator[str]:
    for here, folders, files in os.walk(root, onerror=lambda error: left_out.append(_unreadable(root, error))):
        kept: list[str] = []
        for name in sorted(folders):
            path = _below(root, here, name)
            if Path(here, name).is_symlink():
                left_out.append(LeftOut(path=_printable(path), reason="a link to a folder"))
            elif _is_skipped(name):
                left_out.append(LeftOut(path=_printable(path), reason="hidden or a build product"))
            else:
                kept.append(name)
        folders[:] = kept
        for name in files:
            path = _below(root, here, name)
            if _is_skipped(name):
                left_out.append(LeftOut(path=_printable(path), reason="hidden or a build product"))
            else:
                yield path


def _below(root: Path, here: str, name: str) -> str:
    return Path(here, name).relative_to(root).as_posix()


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED or name.endswith(_SKIPPED_SUFFIXES)


def _unreadable(root: Path, error: OSError) -> LeftOut:
    path = os.path.relpath(error.filename or root, root)
    return LeftOut(path=_printable(path), reason=f"cannot be listed: {error.strerror}")


def _check(root: Path, path: str, max_bytes: int) -> FileRef | LeftOut:
    whole = root / path
    shown = _printable(path)
    try:
        if whole.is_symlink() and not whole.resolve().is_relative_to(root):
            return LeftOut(path=shown, reason="a link out of the folder")
        found = whole.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, in Python 3.11
        return LeftOut(path=shown, reason=f"cannot be read: {getattr(error, 'strerror', None) or 'a loop of links'}")
    if shown != path:
        return LeftOut(path=shown, reason="its name is not valid text")
    if not stat.S_ISREG(found.st_mode):
        return LeftOut(path=shown, reason="not a regular file")
    if found.st_size > max_bytes:
        return LeftOut(path=shown, reason=f"larger than {max_bytes:,} bytes")
    if not os.access(whole, os.R_OK):
        return LeftOut(path=shown, reason="cannot be read: Permission denied")
    return FileRef(path=path, size_bytes=found.st_size)


def _printable(path: str) -> str:
    return path.encode("utf-8", "replace").decode("utf-8")
