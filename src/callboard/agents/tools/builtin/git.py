"""Tools for the git repository in the agent's folder: looking, and committing. No program but git itself is run.

A repository can name programs for git to run: hooks, filters, drivers, helpers, transports, pagers. None of them runs:
hooks, attributes and configuration from outside the folder are switched off, transports are forbidden, and a repository
whose own configuration has any setting beyond a list of harmless ones is refused. Arguments go to git one by one, with
no shell, and what a model gives comes after ``--`` or ``--end-of-options``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

from callboard.agents.errors import ToolArgumentError, ToolError
from callboard.agents.tools.builtin.folder import relative
from callboard.agents.tools.builtin.repository import private_copy
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool

MAX_OUTPUT_BYTES: Final = 256 << 10
MAX_MESSAGE_BYTES: Final = 64 << 10
MAX_COMMITS: Final = 200
_GITLINK = "160000 "
_TRAILER = "Callboard-Call"
_READ_BYTES = 64 << 10
_WRITING = frozenset({"add", "commit"})
_PATH = "/usr/local/bin:/usr/bin:/bin"
_REVISION = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9_./@^~{}:+-]{0,255}")
# Settings that name no program, no file outside and no other place for the work tree; the last part of a key is in
# small letters there.
_HARMLESS = re.compile(
    r"core\.(repositoryformatversion|filemode|bare|logallrefupdates|ignorecase|precomposeunicode|symlinks|autocrlf|eol"
    r"|safecrlf|untrackedcache|abbrev|compression|quotepath|preloadindex|longpaths|sharedrepository|bigfilethreshold)"
    r"|remote\..*\.(url|pushurl|fetch|push|tagopt|prune)"
    r"|branch\..*\.(remote|merge|rebase|pushremote|description)"
    r"|user\.(name|email)|author\.(name|email)|committer\.(name|email)"
    r"|init\.defaultbranch|submodule\.active|submodule\..*\.(url|active)|extensions\.objectformat"
    r"|pull\.(rebase|ff)|push\.(default|autosetupremote)|fetch\.prune|gc\.[a-z]+|pack\.[a-z]+|index\.[a-z]+"
    r"|advice\.[a-z]+|color\..*|rerere\.enabled|merge\.conflictstyle|diff\.(algorithm|renames|renamelimit)",
    re.DOTALL,
)
# Given on the command line, which comes before every file.
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.logAllRefUpdates": "false",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.pager": "cat",
    "core.editor": "false",
    "core.askPass": "false",
    "core.sshCommand": "false",
    "credential.helper": "",
    "protocol.allow": "never",
    "commit.gpgSign": "false",
    "log.showSignature": "false",
    "submodule.recurse": "false",
    "diff.ignoreSubmodules": "all",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "safe.bareRepository": "explicit",
}


@tool(category="git", action="read", timeout_s=60)
async def git_status(context: ToolContext) -> str:
    """Show the branch and the changed files of the repository, as `git status --short --branch` does."""
    return await _git(context, "status", "--short", "--branch", "--ignore-submodules=all")


@tool(category="git", action="read", timeout_s=60)
async def git_log(context: ToolContext, path: str = "", revision: str = "HEAD", commits: int = 20) -> str:
    """List commits, the newest first: hash, date, author and subject.

    Args:
        path: Only those that changed this file or folder; empty for all.
        revision: Where to begin: a branch, a tag or a hash.
        commits: How many, at most 200.
    """
    count = max(1, min(commits, MAX_COMMITS))
    shown = ("--no-color", "--no-show-signature", "--format=%h %as %an: %s", f"--max-count={count}")
    return await _git(context, "log", *shown, *_at(revision), "--", *_paths([path] if path else []))


@tool(category="git", action="read", timeout_s=60)
async def git_diff(context: ToolContext, revision: str = "HEAD", path: str = "") -> str:
    """Show what the files of the folder have that a revision has not, as a diff.

    Args:
        revision: What to compare with: a branch, a tag, a hash, or two of them as a..b.
        path: Only this file or folder; empty for all.
    """
    shown = ("--no-color", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
    return await _git(context, "diff", *shown, *_at(revision), "--", *_paths([path] if path else []))


@tool(category="git", action="read", timeout_s=60)
async def git_show(revision: str, context: ToolContext) -> str:
    """Show a commit with its diff, or a file as it was: `<revision>:<path>`.

    Args:
        revision: A branch, a tag, a hash, or `<revision>:<path>`.
    """
    shown = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-show-signature")
    return await _git(context, "show", *shown, *_at(revision), "--")


@tool(category="git", action="write", repeatable=True, timeout_s=120)
async def git_commit(message: str, paths: list[str], context: ToolContext) -> str:
    """Commit files as they are now. No hook runs and nothing is signed.

    Args:
        message: The commit's message.
        paths: Files and folders to commit, within the agent's folder.
    """
    if not paths or not message.strip():
        text = "a commit takes a message and at least one path"
        raise ToolArgumentError(text)
    if len(message.encode("utf-8", "replace")) > MAX_MESSAGE_BYTES or "\0" in message:
        text = f"the message is over {MAX_MESSAGE_BYTES} bytes, or holds a NUL"
        raise ToolArgumentError(text)
    places = _paths(paths)
    # a run that is begun again finds its own commit by the call's key
    mark = f"{_TRAILER}: {blake2b(context.key.encode(), digest_size=16).hexdigest()}"
    if mark in (await _git(context, "log", "--max-count=50", "--format=%B", is_empty_fine=True)).splitlines():
        return await _git(context, "log", "--max-count=1", "--format=%h %s", "--fixed-strings", f"--grep={mark}")
    await _git(context, "add", "--", *places)
    await _check_staged(context, places)
    text = f"{message.rstrip()}\n\n{mark}\n"
    flags = ("--no-verify", "--no-gpg-sign", "--cleanup=verbatim", "--quiet", "--file=-")
    await _git(context, "commit", *flags, "--", *places, data=text.encode("utf-8", "replace"))
    return await _git(context, "log", "--max-count=1", "--format=%h %s")


GIT: Final = (git_status, git_log, git_diff, git_show, git_commit)


async def _check_staged(context: ToolContext, places: Sequence[str]) -> None:
    """Return if there is something to commit, and no repository in it: git would look into it with its own settings.

    Raises:
        ToolError: If not.
    """
    staged = await _git(context, "ls-files", "--stage", "--", *places, is_empty_fine=True)
    if any(line.startswith(_GITLINK) for line in staged.splitlines()):
        message = "the paths hold a repository of its own, which this tool does not commit: name the files around it"
        raise ToolError(message)
    changed = ("--name-only", "--ignore-submodules=all")
    if not (await _git(context, "diff", "--cached", *changed, "--", *places, is_empty_fine=True)).strip():
        message = "nothing to commit: the paths are as they were committed last"
        raise ToolError(message)


def _at(revision: str) -> tuple[str, str]:
    if not _REVISION.fullmatch(revision) or revision.startswith("-"):
        message = f"{revision[:100]!r} is no revision: take a branch, a tag, a hash, a..b, or <revision>:<path>"
        raise ToolArgumentError(message)
    return "--end-of-options", revision


def _paths(paths: Sequence[str]) -> list[str]:
    return [relative(path) for path in paths]


async def _git(context: ToolContext, *args: str, data: bytes = b"", is_empty_fine: bool = False) -> str:
    folder = context.need_folder().resolve()
    program = shutil.which("git", path=_PATH)
    if program is None:
        message = "git is not on this machine: install it"
        raise ToolError(message)
    given = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
    async with _own_copy(folder / ".git", is_written=args[0] in _WRITING) as own:
        await _check(program, folder, own)
        status, out, err = await _run([program, *given, "--no-pager", *args], folder, own, data)
    if status and not is_empty_fine:
        message = f"git {args[0]} failed: {_text(err).strip()[:2000] or _text(out).strip()[:2000]}"
        raise ToolError(message)
    text = _text(out)
    if len(out) >= MAX_OUTPUT_BYTES:
        text += f"\n[cut: more than {MAX_OUTPUT_BYTES} bytes]"
    return text if text.strip() or is_empty_fine else "[nothing]"


@contextlib.asynccontextmanager
async def _own_copy(inside: Path, *, is_written: bool) -> AsyncIterator[Path]:
    """Give a private copy, made and put back in threads. What has begun comes to its end, whoever is cancelled."""
    copies = private_copy(inside, is_written=is_written)
    opening = asyncio.ensure_future(asyncio.to_thread(copies.__enter__))

    def close(done: asyncio.Future[Path]) -> None:
        if not done.cancelled() and done.exception() is None:
            _ = copies.__exit__(None, None, None)

    try:
        own = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(close)
        raise
    try:
        yield own
    finally:
        await asyncio.shield(asyncio.to_thread(copies.__exit__, None, None, None))


async def _check(program: str, folder: Path, own: Path) -> None:
    """Return if the repository names no program and no other place.

    Raises:
        ToolError: If it does, or is none.
    """
    # no section of another file is read: ``include`` is itself refused
    show = [program, "config", "--file", str(own / "config"), "--no-includes", "--null", "--name-only", "--list"]
    status, out, err = await _run(show, folder, own, b"")
    if status:
        message = f"the repository's configuration cannot be read: {_text(err).strip()[:500]}"
        raise ToolError(message)
    for key in _text(out).split("\0"):
        if key and not _HARMLESS.fullmatch(key):
            message = (
                f"the repository's configuration sets {key[:100]}, which may run a program: remove it to use git here"
            )
            raise ToolError(message)


async def _run(argv: Sequence[str], folder: Path, own: Path, data: bytes) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env=_environment(folder, own),
        start_new_session=True,
    )
    try:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 - asked for above
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            process.stdin.write(data)
            await process.stdin.drain()
        process.stdin.close()
        out, err = await asyncio.gather(_first(process.stdout), _first(process.stderr))
        return await process.wait(), out, err
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _first(stream: asyncio.StreamReader) -> bytes:
    found = bytearray()
    # to its end, or git would wait for somebody to read the rest
    while piece := await stream.read(_READ_BYTES):
        found += piece[: MAX_OUTPUT_BYTES - len(found)]
    return bytes(found)


def _environment(folder: Path, own: Path) -> dict[str, str]:
    """Return all that git sees of its environment; nothing of ours."""
    return {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOME": "/nonexistent",
        "GIT_DIR": str(own),
        "GIT_WORK_TREE": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_AUTHOR_NAME": "Callboard",
        "GIT_AUTHOR_EMAIL": "agent@callboard.invalid",
        "GIT_COMMITTER_NAME": "Callboard",
        "GIT_COMMITTER_EMAIL": "agent@callboard.invalid",
    }


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
