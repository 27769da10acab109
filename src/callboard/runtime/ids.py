"""Identifiers: who a worker is, and what a task is called."""

from __future__ import annotations

import os
import re
import secrets
import socket

_NOT_NAME = re.compile(r"[^a-z0-9_-]+")


def new_token(size_bytes: int = 8) -> str:
    """Return ``size_bytes`` random bytes as lower-case hex."""
    return secrets.token_hex(size_bytes)


def new_worker_id() -> str:
    """Return ``<host>-<pid>-<random>``: unique per process start, readable, a valid subject token."""
    host = _NOT_NAME.sub("-", socket.gethostname().lower()).strip("-")[:32] or "host"
    return f"{host}-{os.getpid()}-{new_token(3)}"


def task_id_of(seq: int, *, is_fired: bool = False, msg_id: str | None = None, task_id: str | None = None) -> str:
    """Return a task's id.

    ``Cb-Task-Id`` of a scheduled one, else the client's ``Nats-Msg-Id``, else ``~<seq>`` in the work queue; a firing of
    a recurring schedule is ``~d<seq>``, named by its own sequence in the stream of schedules.
    """
    return task_id or msg_id or (f"~d{seq}" if is_fired else f"~{seq}")
