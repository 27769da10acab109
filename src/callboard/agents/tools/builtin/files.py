"""Tools for the files of one folder: list, read, write, edit."""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from callboard.agents.errors import ToolArgumentError, ToolError
from callboard.agents.tools.builtin.folder import Folder
from callboard.agents.tools.context import ToolContext
from callboard.agents.tools.decorator import tool

MAX_READ_BYTES: Final = 8 << 20
MAX_WRITE_BYTES: Final = 4 << 20
MAX_ENTRIES: Final = 1000
MAX_LINES: Final = 2000


class Edit(Struct, frozen=True, kw_only=True):
    """An edit as it was decided on: digests of the file before and after it."""

    before: str
    after: str


@tool(category="files", action="read", timeout_s=30)
def list_files(context: ToolContext, folder: str = "", depth: int = 1) -> str:
    """List the files and folders in a folder, one a line; folders end with a slash, links with @.

    Args:
        folder: Path within the agent's folder; empty for the whole of it.
        depth: How many folders deep, 1 to 32.
    """
    found = list(Folder(context.need_folder()).walk(folder, depth=max(1, min(depth, 32)), max_entries=MAX_ENTRIES + 1))
    signs = {"folder": "/", "link": "@", "other": "?"}
    lines = [entry.path + signs.get(entry.kind, f"  {entry.size_bytes} bytes") for entry in found[:MAX_ENTRIES]]
    if len(found) > MAX_ENTRIES:
        lines.append(f"[cut: more than {MAX_ENTRIES} entries; list a folder of these]")
    return "\n".join(lines) or "[empty]"


@tool(category="files", action="read", timeout_s=30)
def read_file(path: str, context: ToolContext, first_line: int = 1, lines: int = MAX_LINES) -> str:
    """Read a text file, or some lines of it.

    Args:
        path: Path within the agent's folder.
        first_line: The first line to return, from 1.
        lines: How many lines, at most 2000.
    """
    data, size = Folder(context.need_folder()).read(path, max_bytes=MAX_READ_BYTES)
    every = _text(data, path, is_cut=size > len(data)).splitlines()
    start = max(1, first_line)
    end = start - 1 + max(0, min(lines, MAX_LINES))
    text = "\n".join(every[start - 1 : end])
    left = len(every) - end
    return f"{text}\n[{left} more lines]" if left > 0 else text


@tool(category="files", action="write", repeatable=True, timeout_s=30)
def write_file(path: str, text: str, context: ToolContext) -> str:
    """Write a text file, replacing what was there; folders on the way are made.

    Args:
        path: Path within the agent's folder.
        text: The whole new content.
    """
    data = _data(text)
    Folder(context.need_folder()).write(path, data)
    return f"wrote {len(data)} bytes to {path}"


@tool(category="files", action="write", repeatable=True, timeout_s=30)
async def edit_file(path: str, old: str, new: str, context: ToolContext) -> str:
    """Replace a piece of a text file. The piece must be in the file exactly once.

    Args:
        path: Path within the agent's folder.
        old: The piece to replace, to the letter.
        new: What stands there afterwards.
    """
    folder = Folder(context.need_folder())

    def decide() -> Edit:
        before, after = _edited(folder, path, old, new)
        return Edit(before=_digest(before), after=_digest(after))

    # a run that is begun again must know whether the file it finds is the old one or its own work
    edit = await context.remember("edit", decide)
    return await asyncio.to_thread(_apply, folder, path, old, new, edit)


FILES: Final = (list_files, read_file, write_file, edit_file)


def _apply(folder: Folder, path: str, old: str, new: str, edit: Edit) -> str:
    data, _ = folder.read(path, max_bytes=MAX_READ_BYTES)
    now = _digest(data)
    if now != edit.after:
        if now != edit.before:
            message = f"{path} was changed by somebody else meanwhile; read it again"
            raise ToolError(message)
        folder.write(path, _edited(folder, path, old, new)[1])
    return f"edited {path}"


def _edited(folder: Folder, path: str, old: str, new: str) -> tuple[bytes, bytes]:
    data, size = folder.read(path, max_bytes=MAX_READ_BYTES)
    text = _text(data, path, is_cut=size > len(data))
    count = text.count(old) if old else 0
    if count != 1:
        message = f"the old text is in {path} {count} times, and must be there once: give more of what is around it"
        raise ToolArgumentError(message)
    return data, _data(text.replace(old, new))


def _text(data: bytes, path: str, *, is_cut: bool) -> str:
    if is_cut:
        message = f"{path} is over {MAX_READ_BYTES} bytes: too large for this tool"
        raise ToolError(message)
    if b"\0" in data:
        message = f"{path} is no text: it holds NUL bytes"
        raise ToolError(message)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{path} is no UTF-8 text: {error}"
        raise ToolError(message) from error


def _data(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if len(data) > MAX_WRITE_BYTES:
        message = f"{len(data)} bytes are too many for one file: at most {MAX_WRITE_BYTES}"
        raise ToolArgumentError(message)
    return data


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
