"""What a submitter holds of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from callboard.runtime.bus.base import PubAck
from callboard.runtime.errors import BusError, NoRespondersError
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


def handles(
    capability: str, acks: Sequence[PubAck | BusError], task_ids: Sequence[str] | None
) -> list[TaskHandle | BusError]:
    """Return the handle of each task that was stored, and the refusal of each that was not.

    Raises:
        NoRespondersError: If no stream takes tasks.
    """
    results: list[TaskHandle | BusError] = []
    for index, ack in enumerate(acks):
        if isinstance(ack, NoRespondersError):
            raise no_stream() from ack
        if isinstance(ack, BusError):
            results.append(ack)
            continue
        own = task_ids[index] if task_ids is not None else f"~{ack.seq}"
        results.append(TaskHandle(id=own, capability=capability, seq=ack.seq, is_duplicate=ack.is_duplicate))
    return results


def no_stream() -> NoRespondersError:
    """Return what is said when no stream takes tasks."""
    return NoRespondersError("no stream takes tasks: run 'callboard provision', or 'callboard up' for a local server")
