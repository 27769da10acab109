"""What the pods of the rehearsal serve: the actors and the capability of the chaos tests, which write down each step.

It stands for the package of an image's owner; where the lines go is a variable of the image.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from callboard.runtime.capability import capability
from callboard.runtime.context import TaskContext
from tests.chaos import troupe
from tests.chaos.handlers import Job
from tests.chaos.journal import Journal

journal = Journal(Path(os.environ["REHEARSAL_JOURNAL"]))
long_actor, sink_actor = troupe.make(journal)


@capability("hello")
async def hello(job: Job, task: TaskContext) -> int:
    """Take as long as the job says. A second run writes two lines more and harms nothing."""
    with journal.run(task=task.id, attempt=task.attempt, n=job.n):
        await asyncio.sleep(job.sleep_s)
        return job.n
