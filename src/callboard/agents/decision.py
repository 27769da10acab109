"""What is asked of people: the record of one approval, how long it waits for whom, and what may become of it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import codec
from callboard.runtime.actor.span import span_s
from callboard.runtime.errors import ConfigError, PayloadTooLargeError

Risk = Literal["low", "medium", "high", "critical"]
RISKS: tuple[Risk, ...] = get_args(Risk)

Status = Literal["pending", "granted", "denied", "suggested", "used", "expired", "withdrawn"]
"""``used`` is a grant that was made use of, ``expired`` one that nobody used in time."""

DENY_AFTER_S = 240 * 60.0
VALID_S = 24 * 3600.0
TIMEOUT = "time-out"
"""Who decided when nobody did."""

# What a person shall read, and a state record shall carry; larger things are approved by their digest.
MAX_PAYLOAD_BYTES = 64 * 1024


class Escalation(Struct, frozen=True, kw_only=True):
    """A time-out policy: whom to ask next, one after the other, when nobody decides.

    Attributes:
        chain: Who is asked after ``to``, in order.
        each: How long each of them has, the first one too: ``"4h"`` or seconds.
        then: What follows when the last one's time is over: ``deny``, or ``wait`` for ever.
    """

    chain: tuple[str, ...]
    each: str | float = DENY_AFTER_S
    then: Literal["deny", "wait"] = "deny"


Policy = Literal["wait", "deny", "tiered"] | Escalation
"""``deny`` after 240 minutes, or after the given time; ``wait`` for ever; ``tiered`` follows the risk: ``TIERS``."""

TIERS: Mapping[Risk, float | None] = {"low": 3600.0, "medium": DENY_AFTER_S, "high": 24 * 3600.0, "critical": None}
"""Seconds until ``tiered`` denies; None waits for ever."""


class Stage(Struct, frozen=True):
    """Who is asked, and for how long; 0 seconds are for ever."""

    to: str
    for_s: float


class Entry(Struct, frozen=True, kw_only=True):
    """One approval: what is asked, of whom, and what became of it.

    Attributes:
        requester: Address of the actor that asked; "" before anything was asked.
        action: What it wants to do, a short name such as ``Refund``.
        risk: How bad a mistake would be, as the requester says.
        payload: Exactly what will be done, as JSON.
        hash: SHA-256, in hex, of the payload's canonical JSON.
        context: What helps to decide, for people.
        stages: Whom it waits for, one after the other.
        stage: The present one.
        then: What follows the last.
        valid_s: How long a grant may wait to be used.
        until: When the present stage is over; None: never.
        status: Where it stands.
        by: Who decided; ``time-out`` when nobody did.
        role: On whose behalf, when it was not themselves.
        at: When.
        reason: What was said.
        suggestion: What to do instead.
        expires_at: When a grant lapses.
        used_by: The turn that used it.
    """

    requester: str = ""
    action: str = ""
    risk: Risk = "medium"
    payload: Any = None
    hash: str = ""
    context: Any = None
    stages: tuple[Stage, ...] = ()
    stage: int = 0
    then: Literal["deny", "wait"] = "deny"
    valid_s: float = VALID_S
    asked_at: datetime | None = None
    until: datetime | None = None
    status: Status = "pending"
    by: str = ""
    role: str = ""
    at: datetime | None = None
    reason: str = ""
    suggestion: str = ""
    expires_at: datetime | None = None
    used_by: str = ""
    used_at: datetime | None = None

    @property
    def exists(self) -> bool:
        """Whether anything was asked."""
        return bool(self.requester)

    @property
    def to(self) -> str:
        """Who may decide now; "" for anybody."""
        return self.stages[self.stage].to if self.stages else ""


class Refusal(Struct, frozen=True):
    """Why a decision, or the use of one, was refused.

    Attributes:
        code: ``unknown``, ``decided``, ``hash``, ``not_allowed``, ``expired``, ``used``.
    """

    code: str
    message: str


def canonical(payload: object) -> bytes:
    """Return a payload as canonical JSON: keys sorted, no blanks, UTF-8.

    Raises:
        EncodeError: If it has no JSON form.
        PayloadTooLargeError: If it is too much for a person to read.
    """
    data = msgspec.json.encode(msgspec.json.decode(codec.encode(payload)), order="sorted")
    if len(data) > MAX_PAYLOAD_BYTES:
        message = (
            f"what is to be approved takes {len(data)} bytes, people are shown at most {MAX_PAYLOAD_BYTES}: store it "
            f"and ask for approval of its name and its digest"
        )
        raise PayloadTooLargeError(message, size_bytes=len(data), limit_bytes=MAX_PAYLOAD_BYTES)
    return data


def digest(payload: object) -> str:
    """Return the SHA-256 of a payload's canonical JSON, in hex.

    Raises:
        EncodeError: As ``canonical``.
        PayloadTooLargeError: As ``canonical``.
    """
    return hashlib.sha256(canonical(payload)).hexdigest()


def stages_of(
    policy: Policy | Mapping[Risk, Policy], *, to: str, risk: Risk, timeout: str | float | None = None
) -> tuple[tuple[Stage, ...], Literal["deny", "wait"]]:
    """Return whom an approval waits for and how long, and what follows.

    Args:
        policy: One for all, or one for each risk (those that are left out: ``deny``).
        to: Who is asked first.
        risk: Of this request.
        timeout: Replaces the time of ``deny``, ``tiered`` and of each stage of an escalation.

    Raises:
        ConfigError: If there is no such policy or risk, or a time is no span.
    """
    if risk not in RISKS:
        message = f"risk {risk!r} does not exist; there are {', '.join(RISKS)}"
        raise ConfigError(message)
    chosen: object = policy.get(risk, "deny") if isinstance(policy, Mapping) else policy
    given_s = None if timeout is None else _span(timeout)
    match chosen:
        case Escalation():
            each_s = given_s or _span(chosen.each)
            return tuple(Stage(who, each_s) for who in (to, *chosen.chain)), chosen.then
        case "wait":
            if given_s is not None:
                message = f"an approval that waits for ever has no time-out, and {timeout!r} was given: take `deny`"
                raise ConfigError(message)
            return (Stage(to, 0.0),), "wait"
        case "deny":
            return (Stage(to, given_s or DENY_AFTER_S),), "deny"
        case "tiered":
            tier_s = given_s or TIERS[risk]
            return (Stage(to, tier_s or 0.0),), "wait" if tier_s is None else "deny"
    message = f"time-out policy {chosen!r} does not exist; there are wait, deny, tiered and Escalation(...)"
    raise ConfigError(message)


def begun(entry: Entry, now: datetime) -> Entry:
    """Return a new request as it stands with its first stage begun."""
    return replace(entry, asked_at=now, until=_end(entry, 0, now), status="pending", stage=0)


def overdue(entry: Entry, stage: int, now: datetime) -> Entry:
    """Return what becomes of an approval when the time of a stage is over: unchanged when it does not matter any more.

    The next one is asked; after the last it is denied, or waits on.
    """
    if entry.status != "pending" or stage != entry.stage:
        return entry
    if stage + 1 < len(entry.stages):
        return replace(entry, stage=stage + 1, until=_end(entry, stage + 1, now))
    if entry.then == "wait":
        return replace(entry, until=None)
    asked = [each.to or "anybody" for each in entry.stages]
    reason = f"nobody decided in time; asked {', then '.join(asked)}"
    return replace(entry, status="denied", by=TIMEOUT, at=now, reason=reason, until=None)


def refusal(entry: Entry, *, by: str, role: str, given_hash: str | None) -> Refusal | None:
    """Return why a person's decision cannot be taken, None if it can.

    Args:
        entry: The approval.
        by: Who decides.
        role: On whose behalf.
        given_hash: What they were shown; None where it does not matter.
    """
    if not entry.exists:
        return Refusal("unknown", "there is no such approval: `callboard approvals ls` lists those that wait")
    if entry.status != "pending":
        when = "" if entry.at is None else f" at {entry.at:%Y-%m-%d %H:%M:%S} UTC"
        # a grant is used, or lapses, by no doing of whoever gave it
        after = {"used": "granted", "expired": "granted"}.get(entry.status, entry.status)
        since = {"used": ", and the grant was used", "expired": ", and the grant has lapsed"}.get(entry.status, "")
        who = entry.by or "its requester"
        return Refusal("decided", f"it was {after} by {who}{when}{since}: nothing was changed")
    if not by:
        return Refusal("not_allowed", "a decision needs the name of who decides: `by`")
    if not may_decide(entry.to, by, role):
        who = " for ".join(filter(None, (by, role)))
        return Refusal("not_allowed", f"only {entry.to} may decide this, not {who}: decide as one of them (--as NAME)")
    if given_hash is not None and given_hash != entry.hash:
        said = given_hash[:12] or "none"
        return Refusal(
            "hash",
            f"the hash that was shown is {entry.hash[:12]}…, the decision names {said}: look at it again with "
            f"`callboard approvals show`",
        )
    return None


def may_decide(to: str, *names: str) -> bool:
    """Return whether one of ``names`` is among those asked, a list separated by commas; everybody is when it is ""."""
    asked = {name.strip() for name in to.split(",")} - {""}
    return not asked or bool(asked & set(names))


def decided(entry: Entry, status: Status, *, by: str, role: str, now: datetime, reason: str, suggestion: str) -> Entry:
    """Return a pending approval with a decision."""
    expires_at = now + timedelta(seconds=entry.valid_s) if status == "granted" else None
    return replace(
        entry,
        status=status,
        by=by,
        role=role,
        at=now,
        reason=reason,
        suggestion=suggestion,
        expires_at=expires_at,
        until=None,
    )


def spent(entry: Entry, *, by: str, given_hash: str, now: datetime) -> tuple[Entry, Refusal | None]:
    """Return an approval after a turn wanted to use its grant, and why it may not.

    The same turn may ask again: a host that takes it over does not know that it was told.
    """
    if not entry.exists:
        return entry, Refusal("unknown", "there is no such approval")
    if entry.status == "used" and entry.used_by == by and entry.hash == given_hash:
        return entry, None
    if entry.status == "used":
        return entry, Refusal("used", f"the grant was used at {entry.used_at}, and works once")
    if entry.status == "expired":
        return entry, Refusal("expired", "the grant has lapsed")
    if entry.status != "granted":
        return entry, Refusal(entry.status, entry.reason or f"it is {entry.status}")
    if entry.hash != given_hash:
        message = f"granted was {entry.hash[:12]}…, to be done is {given_hash[:12]}…: a changed payload is asked anew"
        return entry, Refusal("hash", message)
    if entry.expires_at is not None and now >= entry.expires_at:
        lapsed = replace(entry, status="expired")
        return lapsed, Refusal("expired", f"the grant of {entry.by} has lapsed at {entry.expires_at}, unused")
    return replace(entry, status="used", used_by=by, used_at=now), None


def names(to: str | Sequence[str]) -> str:
    """Return who is asked as one text: names separated by commas."""
    return to if isinstance(to, str) else ",".join(to)


def _end(entry: Entry, stage: int, now: datetime) -> datetime | None:
    for_s = entry.stages[stage].for_s if entry.stages else 0.0
    return now + timedelta(seconds=for_s) if for_s > 0 else None


def _span(given: str | float) -> float:
    found = span_s(given)
    if found < 1:
        message = f"the time-out {given!r} is under a second: nobody could decide"
        raise ConfigError(message)
    return found
