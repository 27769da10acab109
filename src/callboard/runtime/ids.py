"""Identifiers: who a worker is, and what a task is called."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from callboard.runtime import subjects
from callboard.runtime.errors import InvalidNameError

# The name that its sequence gives a message of CB_WORK, or a firing of CB_LATER.
_SEQUENCE = re.compile(r"~(d?)([0-9]+)")
_MAX_SEQ = 2**63 - 1
_NOT_NAME = re.compile(r"[^a-z0-9_-]+")


_draw: Callable[[int], bytes] = secrets.token_bytes


def new_token(size_bytes: int = 8) -> str:
    """Return ``size_bytes`` random bytes as lower-case hex."""
    return _draw(size_bytes).hex()


@contextmanager
def drawn_from(draw: Callable[[int], bytes]) -> Iterator[None]:
    """Take every token from ``draw`` meanwhile, which returns so many bytes: a simulation must repeat."""
    global _draw  # noqa: PLW0603 - tokens are made deep inside, where nobody could hand a source in
    before, _draw = _draw, draw
    try:
        yield
    finally:
        _draw = before


def new_worker_id(user: str | None = None) -> str:
    """Return ``<host>-<pid>-<random>``: unique per process start, readable, a valid subject token.

    With ``user`` that stands before, as a token of its own: a server with users can then tell whose the worker is.
    """
    host = _NOT_NAME.sub("-", socket.gethostname().lower()).strip("-")[:32] or "host"
    name = f"{host}-{os.getpid()}-{new_token(3)}"
    return name if user is None else f"{user}.{name}"


def task_id_of(seq: int, *, is_fired: bool = False, msg_id: str | None = None, task_id: str | None = None) -> str:
    """Return a task's id.

    ``Cb-Task-Id`` of a scheduled one, else the client's ``Nats-Msg-Id``, else ``~<seq>`` in the work queue; a firing of
    a recurring schedule is ``~d<seq>``, named by its own sequence in the stream of schedules.
    """
    return task_id or msg_id or (f"~d{seq}" if is_fired else f"~{seq}")


def place_of(task_id: str) -> tuple[str, int] | None:
    """Return the stream and the sequence that a task's name is made of, None when it is a name of its own."""
    found = _SEQUENCE.fullmatch(task_id)
    if found is None:
        return None
    return (subjects.LATER if found[1] else subjects.WORK), min(int(found[2][:20]), _MAX_SEQ)


def check(task_id: str) -> None:
    """Refuse an id that a client may not choose.

    Raises:
        InvalidNameError: If it is empty, too long, no text, or the name that another message has by its sequence.
    """
    subjects.escape(task_id)
    if place_of(task_id) is not None:
        message = (
            f"the id {task_id[:80]} is the name of the message with this sequence: its record would be taken from it"
        )
        raise InvalidNameError(message, name=task_id)
    if "\ufffd" in task_id:
        message = "the id is not UTF-8: two such ids could not be told apart"
        raise InvalidNameError(message, name=task_id)
