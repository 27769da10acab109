"""A Celery worker's task: five steps of a second each, written down as they begin and return.

Runs in a virtual environment of its own, with Celery and the standard library; ``PEER`` holds the options as JSON.
"""

from __future__ import annotations

import json
import os
import time

from celery import Celery  # type: ignore[import-not-found]

OPTIONS = json.loads(os.environ["PEER"])
app = Celery("turns", broker=OPTIONS["broker"], backend=OPTIONS["broker"])
app.conf.update(
    # as the documentation advises for long tasks that must survive their worker
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    broker_transport_options=OPTIONS["transport"],
)


def note(kind: str, n: int, step: int = -1) -> None:
    """Write one event to this process's file, as the chaos tests' journals are written."""
    event = {"kind": kind, "pid": os.getpgrp(), "at_s": time.monotonic(), "task": f"turn-{n}", "n": n, "step": step}
    file = os.open(f"{OPTIONS['folder']}/{os.getpid()}.journal", os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(file, json.dumps(event).encode() + b"\n")
    os.fsync(file)
    os.close(file)


@app.task(name="turn")  # type: ignore[misc, untyped-decorator, unused-ignore]
def turn(n: int, steps: int, step_s: float) -> int:
    note("start", n)
    for step in range(steps):
        note("step", n, step)
        time.sleep(step_s)
        note("stepped", n, step)
    note("end", n)
    return n


def send(count: int, steps: int, step_s: float) -> None:
    for n in range(count):
        turn.apply_async((n, steps, step_s), task_id=f"turn-{n}")


if __name__ == "__main__":
    send(OPTIONS["turns"], OPTIONS["steps"], OPTIONS["step_s"])
