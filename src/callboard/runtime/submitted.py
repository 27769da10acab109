"""What a submission and a cancellation come to, for the submitter."""

from __future__ import annotations

from msgspec import Struct

from callboard.runtime.record import TaskRecord


class TaskHandle(Struct, frozen=True, kw_only=True):
    """A submitted task.

    Attributes:
        seq: Its sequence in the stream that took it.
        is_duplicate: True when a task with this id had been submitted before and nothing new was stored.
    """

    id: str
    capability: str
    seq: int
    is_duplicate: bool = False


class Cancellation(Struct, frozen=True, kw_only=True):
    """What a cancellation met: the task was ``running`` on a worker, was ``waiting``, or had ``finished`` before."""

    task: str
    found: str
    record: TaskRecord | None = None
