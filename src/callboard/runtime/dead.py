"""Dead letters: look at them, give their tasks another life under a new id, or throw them away."""

from __future__ import annotations

import re
from datetime import datetime

from msgspec import UNSET, Struct

from callboard.runtime import record, subjects
from callboard.runtime.audit import newest_stored
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.client import Client, TaskHandle
from callboard.runtime.errors import DecodeError, NotFoundError
from callboard.runtime.record import DeadLetter

REQUEUE_OF = "Cb-Requeue-Of"
_LIVES = re.compile(r"^(.*)\+r(\d+)$", re.DOTALL)
# What belonged to the old life: the broker's own headers, its attempts, its deadline, its waiting client.
_DROPPED = {header.ATTEMPT.lower(), header.TASK_ID.lower(), header.DEADLINE.lower(), header.REPLY_TO.lower()}
_MAX_LIVES = 1000


class Letter(Struct, frozen=True, kw_only=True):
    """A dead letter and where it lies."""

    seq: int
    stored_at: datetime
    letter: DeadLetter


async def letters(
    bus: Bus,
    *,
    capability: str | None = None,
    cause: str | None = None,
    since: datetime | None = None,
    limit: int = 100,
) -> list[Letter]:
    """Return dead letters, newest first.

    Args:
        bus: Where.
        capability: Only of this one.
        cause: Only with this error code, or this class of a handler's exception.
        since: Only those written since.
        limit: How many at most.

    Raises:
        NotFoundError: If the stream does not exist.
    """

    def keeps(stored: Stored) -> bool:
        found = _decode(stored)
        return found is not None and (cause is None or cause in (found.letter.cause.code, found.letter.cause.type))

    found = await newest_stored(
        bus, subjects.DEAD, filters=(f"cb.dead.task.{capability or '*'}.*",), limit=limit, since=since, keeps=keeps
    )
    return [letter for stored in found if (letter := _decode(stored)) is not None]


async def find(bus: Bus, task_id: str, *, capability: str | None = None) -> Letter:
    """Return the dead letter of a task.

    Raises:
        NotFoundError: If there is none.
    """
    wildcard = f"cb.dead.task.{capability or '*'}.{subjects.escape(task_id)}"
    for stored in reversed(await bus.get_many(subjects.DEAD, [wildcard])):
        found = _decode(stored)
        if found is not None:
            return found
    message = f"there is no dead letter of task {task_id!r}; see `callboard dead ls`"
    raise NotFoundError(message)


async def requeue(
    bus: Bus, client: Client, dead: Letter, *, payload: bytes | None = None, keep: bool = False
) -> TaskHandle:
    """Submit a dead task again under ``<task>+r<k>``, then remove its letter; the old record stays in the ledger.

    The new id follows from the ledger, so a second call after a crash in between gives the same task, not another one.

    Args:
        bus: Where.
        client: Who submits.
        dead: The letter.
        payload: What to submit in place of the old payload, as it is on the wire.
        keep: Leave the letter where it is.
    """
    letter = dead.letter
    headers = {name: value for name, value in _headers(letter).items() if _may_stay(name)}
    headers[REQUEUE_OF] = letter.task
    value: object = UNSET
    if payload is not None:
        headers.pop(header.CLAIM_CHECK, None)
        headers.pop(header.CONTENT_TYPE, None)
        value = payload
    elif letter.submitted.claim_check is not UNSET:
        headers[header.CLAIM_CHECK] = letter.submitted.claim_check
    else:
        value = record.payload_of(letter.submitted) or UNSET
    handle = await client.submit(
        letter.capability,
        value,
        id=await _next_life(client, letter),
        lane=letter.submitted.lane,
        headers=headers,
    )
    if not keep:
        await discard(bus, dead)
    return handle


async def discard(bus: Bus, dead: Letter) -> bool:
    """Delete a dead letter; False when it was gone. The task's record stays in the ledger."""
    return await bus.delete_message(subjects.DEAD, dead.seq)


async def _next_life(client: Client, letter: DeadLetter) -> str:
    lives = _LIVES.match(letter.task)
    base, number = (lives[1], int(lives[2])) if lives else (letter.task, 0)
    for life in range(number + 1, number + _MAX_LIVES):
        task_id = f"{base}+r{life}"
        if await client.record(letter.capability, task_id) is None:
            return task_id
    message = f"task {base!r} was requeued {_MAX_LIVES} times; submit it anew"
    raise NotFoundError(message)


def _headers(letter: DeadLetter) -> dict[str, str]:
    return letter.submitted.headers if letter.submitted.headers is not UNSET else {}


def _may_stay(name: str) -> bool:
    return name.lower() not in _DROPPED and not name.lower().startswith("nats-")


def _decode(stored: Stored) -> Letter | None:
    try:
        return Letter(seq=stored.seq, stored_at=stored.time, letter=record.decode_dead(stored.data))
    except DecodeError:
        return None
