"""What the demo's workers serve: ``digest`` reads one file, ``merge`` makes one picture of all, and the two agents."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
from msgspec import Struct

from callboard.agents.digest.crew import Planner, Writer
from callboard.agents.digest.digest import Digest, digest_bytes
from callboard.agents.digest.merge import Corpus, merge
from callboard.runtime.capability import capability
from callboard.runtime.client import Client
from callboard.runtime.context import current_task
from callboard.runtime.errors import RetryableError, TerminalError

__all__ = ["FileTask", "MergeTask", "Planner", "Writer", "digest", "merge_digests"]


class FileTask(Struct, frozen=True, kw_only=True):
    """A file to digest: ``path`` below the folder ``root``, which every worker must be able to read."""

    root: str
    path: str


class MergeTask(Struct, frozen=True, kw_only=True):
    """Which finished ``digest`` tasks to merge, by id; their results are read from the ledger."""

    tasks: list[str]


@capability("digest", timeout_s=300)
def digest(task: FileTask) -> Digest:
    """Digest one file. A second run reads the same bytes and gives the same digest.

    Raises:
        TerminalError: If the file cannot be read; another attempt would not help.
    """
    try:
        data = Path(task.root, task.path).read_bytes()
    except OSError as error:
        message = f"{task.path} cannot be read: {error.strerror or error}"
        raise TerminalError(message) from error
    return digest_bytes(task.path, data)


@capability("merge", concurrency=1, timeout_s=900)
async def merge_digests(task: MergeTask) -> Corpus:
    """Merge the digests of finished tasks; unreadable files have none and are left out.

    Raises:
        RetryableError: If a task has no record yet.
    """
    client = Client(current_task().bus)
    digests: list[Digest] = []
    for task_id in task.tasks:
        record = await client.record("digest", task_id)
        if record is None:
            message = f"task {task_id} is not finished"
            raise RetryableError(message, after_s=2.0)
        if record.status == "completed":
            digests.append(msgspec.convert(await client.value_of(record), Digest))
    return await asyncio.to_thread(merge, digests)
