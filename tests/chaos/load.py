"""The submitting side: what was offered, what was acknowledged, what was refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from callboard.runtime.bus.base import Bus
from callboard.runtime.client import Client
from callboard.runtime.errors import BackpressureError, BusError
from tests.chaos.handlers import NAME, Job

RETRY_S = 0.1
ATTEMPT_S = 2.0


class Load:
    """Submits jobs until each is acknowledged.

    Attributes:
        acked: Ids whose acknowledgement was seen.
        offered: Ids that were sent.
        unnamed_unknown: Tries without an id whose outcome is unknown: each may have stored a task of an unknown name.
        refusals: Answers that said the queue was full.
    """

    def __init__(self, bus: Bus, *, capability: str = NAME) -> None:
        self.acked: dict[str, Job] = {}
        self.offered: set[str] = set()
        self.unnamed_unknown = 0
        self.refusals = 0
        self._client = Client(bus)
        self._capability = capability

    async def submit(self, job: Job, *, task_id: str | None = None, attempt_s: float = ATTEMPT_S) -> str:
        """Submit one job, under the same id, until the broker says that it has it; return the id."""
        if task_id is not None:
            self.offered.add(task_id)
        while True:
            try:
                handle = await self._client.submit(self._capability, job, id=task_id, timeout_s=attempt_s)
            except BackpressureError:
                self.refusals += 1
                await asyncio.sleep(RETRY_S)
            except BusError as error:
                if not error.retryable:
                    raise
                self.unnamed_unknown += task_id is None
                await asyncio.sleep(RETRY_S)
            else:
                self.acked[handle.id] = job
                self.offered.add(handle.id)
                return handle.id

    async def submit_at_once(self, jobs: Sequence[Job]) -> None:
        """Submit all jobs in one atomic batch, named by the broker; once, so the broker must be well."""
        for job, handle in zip(jobs, await self._client.submit_many(self._capability, jobs), strict=True):
            if isinstance(handle, BusError):
                raise handle
            self.acked[handle.id] = job
            self.offered.add(handle.id)

    async def submit_all(
        self, jobs: Sequence[Job], *, named_share: float = 0.5, width: int = 32, seed: int = 0
    ) -> None:
        """Submit all jobs, ``width`` at a time; a share of them under ids of our own, the rest named by the broker."""
        dice = random.Random(seed)
        queue = [
            (job, f"{self._capability}/{job.n}" if dice.random() < named_share else None) for job in reversed(jobs)
        ]

        async def work() -> None:
            while queue:
                job, task_id = queue.pop()
                await self.submit(job, task_id=task_id)

        async with asyncio.TaskGroup() as group:
            for number in range(width):
                group.create_task(work(), name=f"submit-{number}")
