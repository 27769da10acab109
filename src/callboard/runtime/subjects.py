"""Every subject Callboard uses, built and taken apart in one place.

Names (capabilities, actor types, workers) are single tokens ``[a-z0-9_-]+``. Keys and task ids are any text and are
escaped into one token: every UTF-8 byte other than ``A-Z a-z 0-9 - _ ~ ! ' ( )`` becomes ``%XX``, which is
``encodeURIComponent`` with ``.`` and ``*`` escaped as well.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, unquote

from callboard.runtime.errors import InvalidNameError

Lane = Literal["high", "normal", "low"]
LANES: tuple[Lane, ...] = ("high", "normal", "low")
MAX_NAME_BYTES = 64
MAX_KEY_BYTES = 256

_NAME = re.compile(r"[a-z0-9_-]+")
# One or more tokens of visible ASCII; no wildcard can be published to.
_ANSWERABLE = re.compile(r"(?!\$|cb\.(?!task\.))[!-)+-\-/-=?-~]+(\.[!-)+-\-/-=?-~]+)*")
# Keys whose tokens are remembered: an actor's key is needed several times a turn. At most a few megabytes.
_KEYS_KEPT = 4096
_UNESCAPED = "-_~!'()"  # urllib leaves the dot alone whatever it is told; escape() sees to it

WORK = "CB_WORK"
LATER = "CB_LATER"
LEDGER = "CB_LEDGER"
DEAD = "CB_DEAD"
# a worker of a server with users is called <user>.<id>, so that the server can see whose beat it is
BEAT_ALL = "cb.beat.>"
GROUP_ALL = "cb.group.>"
CTL_POOLS = "cb.ctl.pools"
ASK_GROUP = "hosts"
CTL_HOLDS = "cb.ctl.holds"
CTL_CANCEL = "cb.ctl.cancel"
CTL_DEAD = "cb.ctl.dead"
ACTORS = "CB_ACTORS"
AUDIT = "CB_AUDIT"
GAPS = "CB_AUDIT_GAPS"
POST = "CB_POST"

# What of CB_ACTORS is copied to CB_AUDIT: all but cursors and timers, which say nothing about what an actor did.
AUDITED = ("cb.mbox.>", "cb.step.>", "cb.event.>", "cb.state.>")


def check_name(name: str, *, what: str = "name") -> str:
    """Return ``name`` if it can be a single subject token.

    Raises:
        InvalidNameError: If it is empty, over 64 bytes, or has a character outside ``[a-z0-9_-]``.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES:
        message = f"{what} {name[:80]!r} is not usable: take 1 to {MAX_NAME_BYTES} of a-z, 0-9, '_' and '-'"
        raise InvalidNameError(message, name=name)
    return name


def may_answer_on(subject: str) -> bool:
    """Return whether a worker sends an answer to a subject that a caller named.

    A worker may write records and call the broker's API: nobody shall do that through it, only give a further task.
    """
    return _ANSWERABLE.fullmatch(subject) is not None


def escape(key: str) -> str:
    """Return ``key`` as one subject token; ``unescape`` gives it back.

    Raises:
        InvalidNameError: If it is empty, over 256 bytes in UTF-8, or not encodable.
    """
    return _escaped(key)


@lru_cache(maxsize=_KEYS_KEPT)
def _escaped(key: str) -> str:
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        message = "the key holds a lone surrogate and cannot be encoded as UTF-8"
        raise InvalidNameError(message, name=repr(key)) from error
    if not 0 < size <= MAX_KEY_BYTES:
        message = f"a key or task id takes 1 to {MAX_KEY_BYTES} bytes of UTF-8, this one has {size}"
        raise InvalidNameError(message, name=key[:80])
    return quote(key, safe=_UNESCAPED).replace(".", "%2E")


def unescape(token: str) -> str:
    """Return the key that ``escape`` made this token from."""
    return _unescaped(token)


@lru_cache(maxsize=_KEYS_KEPT)
def _unescaped(token: str) -> str:
    return unquote(token)


def task(capability: str, lane: Lane = "normal") -> str:
    """Return the subject on which a task for ``capability`` is submitted."""
    return f"cb.task.{capability}" if lane == "normal" else f"cb.task.{capability}.{lane}"


def split_task(subject: str) -> tuple[str, Lane]:
    """Return capability and lane of a task subject, submitted (``cb.task``) or fired by a schedule (``cb.due``)."""
    parts = subject.split(".")
    lane: Lane = "normal"
    if len(parts) == 4:  # noqa: PLR2004 - cb.task.<capability>.<lane>
        lane = "high" if parts[3] == "high" else "low"
    return parts[2], lane


def consumer(capability: str, lane: Lane) -> str:
    """Return the name of the durable consumer that serves one lane of a capability."""
    return f"{capability}-{lane}"


def due(capability: str) -> str:
    """Return the subject that a server-held schedule fires a task onto."""
    return f"cb.due.{capability}"


def due_consumer(capability: str) -> str:
    """Return the name of the durable consumer, on ``CB_LATER``, of scheduled tasks that have fallen due."""
    return f"{capability}-due"


def later(task_id: str) -> str:
    """Return the subject that holds a task's server-held schedule."""
    return f"cb.later.{escape(task_id)}"


def result(capability: str, task_id: str) -> str:
    """Return the subject of a finished task's ledger record."""
    return f"cb.result.{capability}.{escape(task_id)}"


def attempt(capability: str, task_id: str, number: int) -> str:
    """Return the subject of the ``number``-th attempt record of a task (1-based)."""
    return f"cb.attempt.{capability}.{escape(task_id)}.{number}"


def attempts(capability: str, task_id: str) -> str:
    """Return the wildcard over all attempt records of a task."""
    return f"cb.attempt.{capability}.{escape(task_id)}.*"


def dead(capability: str, task_id: str) -> str:
    """Return the subject of a task's dead letter."""
    return f"cb.dead.task.{capability}.{escape(task_id)}"


def task_event(task_id: str) -> str:
    """Return the subject of a task's progress events."""
    return f"cb.event.task.{escape(task_id)}"


def ticket_event(ticket: str) -> str:
    """Return the subject of a ticket's history."""
    return f"cb.event.ticket.{escape(ticket)}"


def beat(worker: str) -> str:
    """Return the subject of a worker's heartbeat."""
    return f"cb.beat.{worker}"


def group(name: str) -> str:
    """Return the subject on which the parent of a group of workers says how it is."""
    return f"cb.group.{name}"


def ctl_worker(worker: str) -> str:
    """Return the subject on which one worker, or the parent of a group, takes orders."""
    return f"cb.ctl.worker.{worker}"


def ping(worker: str) -> str:
    """Return the subject on which a worker's keeper thread answers pings; nobody there is how a death shows."""
    return f"cb.ping.{worker}"


# --- actors ------------------------------------------------------------------------------------------------------


def mail(kind: str, key: str) -> str:
    """Return the subject that mail to an actor is published on."""
    return f"cb.mail.{kind}.{escape(key)}"


def tell(kind: str, key: str | None = None) -> str:
    """Return the subject on which those who may not write mail hand it in, to one actor or to all of a type."""
    return f"cb.tell.{kind}.{'*' if key is None else escape(key)}"


def mailbox(kind: str, partition: int | str, key: str | None = None) -> str:
    """Return the subject that mail is stored under: of one actor, or of all in the partition; ``*`` for any one."""
    return f"cb.mbox.{kind}.{partition}.{'*' if key is None else escape(key)}"


def ask(kind: str, key: str | None = None) -> str:
    """Return the subject of asks to one actor, or to all of a type."""
    return f"cb.ask.{kind}.{'*' if key is None else escape(key)}"


def call(kind: str, key: str | None = None) -> str:
    """Return the subject of asks by turns, who say what led to them: to one actor, or to all of a type."""
    return f"cb.call.{kind}.{'*' if key is None else escape(key)}"


def state(kind: str, key: str) -> str:
    """Return the subject of an actor's state record."""
    return f"cb.state.{kind}.{escape(key)}"


def parked(kind: str, key: str, seq: int) -> str:
    """Return the subject of a parked turn's input and journal."""
    return f"cb.state.{kind}.{escape(key)}.parked.{seq}"


def step(kind: str, key: str, seq: int, name: str) -> str:
    """Return the subject of one journaled step; ``name`` is ``<escaped name>.<digest>.<ordinal>``."""
    return f"cb.step.{kind}.{escape(key)}.{seq}.{name}"


def steps(kind: str, key: str, seq: int) -> str:
    """Return the wildcard over all steps of a turn."""
    return f"cb.step.{kind}.{escape(key)}.{seq}.>"


def event(kind: str, key: str) -> str:
    """Return the subject of the events that an actor's turns emit."""
    return f"cb.event.{kind}.{escape(key)}"


def timer(kind: str, key: str, name: str) -> str:
    """Return the subject that holds one timer of an actor."""
    return f"cb.timer.{kind}.{escape(key)}.{escape(name)}"


def cursor(kind: str, partition: int) -> str:
    """Return the subject of a partition's cursor record."""
    return f"cb.cursor.{kind}.{partition}"


def posted(kind: str) -> str:
    """Return the subject of the record that says how far a type's post has become mail."""
    return f"cb.cursor.{kind}.post.upto"


def ctl_actor(kind: str, key: str | None = None) -> str:
    """Return the subject on which an actor's owner takes orders about it, or all of a type's."""
    return f"cb.ctl.actor.{kind}.{'*' if key is None else escape(key)}"


def dead_mail(kind: str, key: str, seq: int) -> str:
    """Return the subject of a mail's dead letter."""
    return f"cb.dead.mail.{kind}.{escape(key)}.{seq}"


def gap(subject: str, seq: int) -> str:
    """Return where the late copy stands of a message that ``CB_AUDIT`` missed, by its subject and sequence."""
    return f"cb.gap.{subject.removeprefix('cb.')}.{seq}"


def actor_of(subject: str) -> tuple[str, str]:
    """Return type and key of ``cb.<what>.<type>.<key>…`` (not of a stored mail, which has its partition between)."""
    parts = subject.split(".")
    return parts[2], unescape(parts[3])
