"""What a handler may know and say about the task it runs."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType

from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import Clock
from callboard.runtime.errors import TaskError
from callboard.runtime.subjects import Lane

PROGRESS_EVERY_S = 0.25


class Progress(Struct, frozen=True, kw_only=True):
    """One progress event on ``cb.event.task.<id>``; every field but the task and time may be absent."""

    task: str
    at: datetime
    attempt: int
    worker: str
    percent: float | UnsetType = UNSET
    stage: str | UnsetType = UNSET
    text: str | UnsetType = UNSET


class TaskContext:
    """The running task, as its handler sees it. Get it as a parameter of this type or by ``current_task()``.

    Attributes:
        id: The task's id; the same over all attempts, so it serves as idempotency key for outside effects.
        capability: What it was submitted for.
        attempt: Number of this run, 1-based.
        lane: The lane it came by.
        deadline: When it stops being wanted, or None.
        headers: Headers of the submission.
        bus: The worker's own connection, for asynchronous handlers: ``Client(context.bus)`` submits further tasks.
    """

    __slots__ = (
        "_clock",
        "_last_sent",
        "_last_stage",
        "_send",
        "_stopping",
        "attempt",
        "bus",
        "capability",
        "deadline",
        "headers",
        "id",
        "lane",
        "worker",
    )

    def __init__(
        self,
        *,
        task_id: str,
        capability: str,
        attempt: int,
        lane: Lane,
        deadline: datetime | None,
        headers: dict[str, str],
        worker: str,
        bus: Bus,
        clock: Clock,
        send: Callable[[str, bytes], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Workers make these."""
        self.id = task_id
        self.capability = capability
        self.attempt = attempt
        self.lane = lane
        self.deadline = deadline
        self.headers = headers
        self.worker = worker
        self.bus = bus
        self._clock = clock
        self._send = send
        self._stopping = stopping
        self._last_sent = float("-inf")
        self._last_stage: str | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether the worker drains: a long run does well to end soon, or it is cancelled and run again elsewhere."""
        return self._stopping()

    def progress(self, percent: float | None = None, *, stage: str | None = None, text: str | None = None) -> bool:
        """Tell watchers how far it is; costs nothing when nobody watches, and is safe from a thread.

        At most four events a second go out; one that changes the stage or says 100 always does.

        Args:
            percent: 0 to 100.
            stage: Name of the present stage.
            text: A line for people.

        Returns:
            Whether the event went out.
        """
        now_s = self._clock.monotonic()
        is_due = now_s - self._last_sent >= PROGRESS_EVERY_S
        is_turn = (stage is not None and stage != self._last_stage) or percent == 100  # noqa: PLR2004
        if not (is_due or is_turn):
            return False
        self._last_sent = now_s
        self._last_stage = stage or self._last_stage
        event = Progress(
            task=self.id,
            at=self._clock.now(),
            attempt=self.attempt,
            worker=self.worker,
            percent=UNSET if percent is None else max(0.0, min(100.0, float(percent))),
            stage=UNSET if stage is None else stage[:200],
            text=UNSET if text is None else text[:2000],
        )
        self._send(self.id, msgspec.json.encode(event))
        return True


class Holder(Protocol):
    """What carries the context of the running task; a slot does."""

    @property
    def context(self) -> TaskContext | None:
        """The context of the task that runs now."""
        ...

    @property
    def stop_reason(self) -> str | None:
        """Why the run is being stopped: cancel, timeout, deadline or drain; None when it is not."""
        ...


holder: contextvars.ContextVar[Holder | None] = contextvars.ContextVar("callboard_task", default=None)


def current_task() -> TaskContext:
    """Return the task that the calling handler runs, also from its thread and from tasks it started.

    Raises:
        TaskError: If no task runs here.
    """
    carrier = holder.get()
    context = carrier.context if carrier is not None else None
    if context is None:
        message = "no task runs here: current_task() works inside a capability that a worker runs"
        raise TaskError(message)
    return context


def stop_reason() -> str | None:
    """Return why the run that the calling handler belongs to is being stopped; None when it is not, or none runs."""
    carrier = holder.get()
    return carrier.stop_reason if carrier is not None else None
