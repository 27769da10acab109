"""The side of people: which approvals there are, and deciding them. The command line and other doors stand on this."""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec
from msgspec import Raw, Struct, convert

from callboard.agents.decision import Entry, Status
from callboard.agents.errors import ApprovalRefusedError
from callboard.agents.petition import TYPE, Answer, DenyIt, GrantIt, SuggestIt
from callboard.runtime import subjects
from callboard.runtime.actor import record
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.errors import DecodeError, NotFoundError
from callboard.runtime.near import hint

WAITING: tuple[Status, ...] = ("pending",)
_ANSWER_S = 10.0
_PREFIX = re.compile(r"[0-9a-z_-]{1,64}")


class Approval(Struct, frozen=True, kw_only=True):
    """One approval as it stands: its id, and what is known of it."""

    id: str
    entry: Entry


async def ls(bus: Bus, *, status: Collection[Status] = WAITING, to: str = "") -> list[Approval]:
    """Return approvals, oldest first. Reads them all: one request for 500.

    Args:
        bus: The connection.
        status: Those that stand so; none for all.
        to: Only those that this name may decide now.
    """
    stored = await bus.get_many(subjects.ACTORS, [f"cb.state.{TYPE}.*"], from_leader=True)
    found = [each for each in (_approval(one) for one in stored) if each is not None]
    wanted = [
        each
        for each in found
        if (not status or each.entry.status in status) and (not to or to in each.entry.to.split(","))
    ]
    return sorted(wanted, key=lambda each: (each.entry.asked_at is None, each.entry.asked_at, each.id))


async def show(bus: Bus, id_: str) -> Approval:
    """Return one approval by its id, or by the beginning of it where that is enough.

    Raises:
        NotFoundError: If there is none, or more than one begin so.
    """
    stored = await bus.get_last(subjects.ACTORS, subjects.state(TYPE, id_), from_leader=True)
    found = _approval(stored) if stored is not None else None
    if found is not None:
        return found
    some = [each for each in await ls(bus, status=()) if each.id.startswith(id_)] if _PREFIX.fullmatch(id_) else []
    if len(some) == 1:
        return some[0]
    if some:
        message = f"{len(some)} approvals begin with {id_}: {', '.join(each.id for each in some[:10])}"
    else:
        known = [each.id for each in await ls(bus, status=())] if len(id_) <= subjects.MAX_NAME_BYTES else []
        meant = hint(id_, known)
        message = f"there is no approval {id_[:80]!r}: `callboard approvals ls` lists those that wait{meant}"
    raise NotFoundError(message)


async def grant(bus: Bus, id_: str, *, by: str, hash: str, role: str = "", reason: str = "") -> Answer:  # noqa: A002
    """Say yes to what has this hash: the one that ``show`` told, once you have looked at the payload.

    Raises:
        ApprovalRefusedError: If it was decided before, has another hash, or others are asked.
        NoHostError: If no worker hosts approvals now.
        AskTimeoutError: If no answer came in time; asking again is harmless.
    """
    return await _decide(bus, id_, "Grant", GrantIt(by=by, hash=hash, role=role, reason=reason))


async def deny(bus: Bus, id_: str, *, by: str, role: str = "", reason: str = "") -> Answer:
    """Say no.

    Raises:
        ApprovalRefusedError: As ``grant``.
        NoHostError: As ``grant``.
        AskTimeoutError: As ``grant``.
    """
    return await _decide(bus, id_, "Deny", DenyIt(by=by, role=role, reason=reason))


async def suggest(bus: Bus, id_: str, suggestion: str, *, by: str, role: str = "") -> Answer:
    """Say no, and what to do instead.

    Raises:
        ApprovalRefusedError: As ``grant``.
        NoHostError: As ``grant``.
        AskTimeoutError: As ``grant``.
    """
    return await _decide(bus, id_, "Suggest", SuggestIt(by=by, suggestion=suggestion, role=role))


async def _decide(bus: Bus, id_: str, name: str, message: object) -> Answer:
    # no idempotency key: a second decision shall hear that there was a first
    said = await ActorRef(bus, Address(TYPE, id_)).ask(message, type=name, timeout_s=_ANSWER_S)
    answer = convert(said, Answer)
    if answer.error is not None:
        text = f"approval {id_}: {answer.error.message}"
        raise ApprovalRefusedError(text, approval=id_, why=answer.error.code)
    return answer


def _approval(stored: Stored) -> Approval | None:
    """Return the approval of a state record; None for one that never was asked, or cannot be read here."""
    try:
        state = record.decode(stored.data).state
        entry = msgspec.json.decode(state, type=Entry) if isinstance(state, Raw) else Entry()
    except (DecodeError, msgspec.DecodeError):
        return None
    return Approval(id=subjects.actor_of(stored.subject)[1], entry=entry) if entry.exists else None
