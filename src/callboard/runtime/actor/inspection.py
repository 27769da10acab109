"""Looking at actors from outside, and giving orders about them. Nothing here runs a turn or changes a record."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from datetime import datetime
from typing import Literal, cast

import msgspec
from msgspec import UNSET, Raw, Struct

from callboard.runtime import codec, subjects
from callboard.runtime.actor import cursor, record
from callboard.runtime.actor.address import Address, check_type
from callboard.runtime.actor.answer import check_order
from callboard.runtime.actor.mail import Mail, mail_of
from callboard.runtime.actor.record import Parked, StateRecord, Timer
from callboard.runtime.actor.ref import no_host
from callboard.runtime.audit import closing
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus.base import Bus, Stored
from callboard.runtime.errors import (
    ActorError,
    BusTimeoutError,
    DecodeError,
    NoHostError,
    NoRespondersError,
    NotFoundError,
    PermissionDeniedError,
    TopologyError,
)

Op = Literal["pause", "resume", "kill", "restart", "cancel", "show", "requeue"]
OPS: tuple[Op, ...] = ("pause", "resume", "kill", "restart", "cancel", "show", "requeue")

# Waiting mail is counted by reading it; beyond this many the count says "more".
COUNT_LIMIT = 1000
_ORDER_TIMEOUT_S = 5.0
_SHOW_TIMEOUT_S = 1.0
_HOSTED_TIMEOUT_S = 0.3
UNDECODABLE = "undecodable"
_FIX = (
    "its mail waits and is not lost. Run the Callboard that wrote the record, or publish a good one on {subject}: "
    "`callboard replay agent {address} --at {before} --json` has the last one before it, as `record`; then "
    "`callboard agents resume {address}`"
)
_PARTITIONS = re.compile(r"partition\((\d+),")


class Line(Struct, frozen=True, kw_only=True):
    """One actor in a list.

    Attributes:
        status: active, paused, failed, killed; ``new`` when mail waits for it and it has never run;
            ``undecodable`` when its record cannot be read: its mail waits.
        turns: Turns committed so far.
        parked: Turns that wait for something.
        stored: Mails on disk, handled ones included until they are swept.
        at: When its record was written.
        has_mixed_code: Whether hosts run its type with different code of one version now; ``actors`` does not ask them.
    """

    address: str
    status: str
    turns: int = 0
    parked: int = 0
    stored: int = 0
    reason: str = ""
    at: datetime | None = None
    has_mixed_code: bool = False


class Waiting(Struct, frozen=True, kw_only=True):
    """One mail that is not handled yet.

    Attributes:
        at: When it was stored.
        sender: The actor that sent it, or what the sender called itself; "" when it did not say.
        is_ask: Whether somebody waits for the answer.
    """

    seq: int
    id: str
    type: str | None
    kind: str | None
    at: datetime
    size_bytes: int
    sender: str = ""
    is_ask: bool = False
    deadline: datetime | None = None
    problem: str = ""


class Depth(Struct, frozen=True, kw_only=True):
    """How much mail waits, without that of a turn that runs. ``is_more`` says that there is more than the count."""

    count: int
    is_more: bool = False
    oldest: Waiting | None = None


class View(Struct, frozen=True, kw_only=True):
    """All that is known of one actor.

    Attributes:
        status: As in ``Line``.
        applied: Sequence up to which its mail is handled.
        ahead: Sequences above that are handled as well.
        partition: Where its mail is filed.
        owner: Worker that may run it; "" when nobody does.
        epoch: Of the partition; it grows with every change of owner.
        is_answering: Whether the owner answered when asked just now.
        running: What the owner says of it: the turn that runs, if one does.
        record_seq: Sequence of its record in ``CB_ACTORS``; 0 when it has none.
        record_bytes: Size of it.
        problem: Why the record cannot be read; then all that it would tell stands at zero, and ``mailbox`` counts all
            mail on disk, handled or not.
        fix: What to do about that.
    """

    address: str
    status: str
    reason: str
    turns: int
    applied: int
    ahead: list[int]
    failures: int
    at: datetime | None
    by: str
    schema: int
    state_bytes: int
    mailbox: Depth
    parked: list[Parked]
    timers: dict[str, Timer]
    partition: int
    owner: str
    epoch: int
    is_answering: bool
    running: Raw | None = None
    record_seq: int = 0
    record_bytes: int = 0
    problem: str = ""
    fix: str = ""


class _Found(Struct, frozen=True, kw_only=True):
    """An actor's record as it stands; an empty one, with the problem, where it cannot be read."""

    record: StateRecord = StateRecord()
    seq: int = 0
    size_bytes: int = 0
    at: datetime | None = None
    problem: str = ""

    @property
    def status(self) -> str:
        """As in ``Line``."""
        if self.problem:
            return UNDECODABLE
        return self.record.status if self.seq else "new"


class _Running(Struct, frozen=True):
    """The mail that a turn handles: the one it began with, and the one that made it run now."""

    seq: int
    cause_seq: int = 0


class _Said(Struct, frozen=True):
    """The part of an owner's answer that is looked at here."""

    running: _Running | None = None


_said = msgspec.json.Decoder(_Said)


async def actors(
    bus: Bus, *, kind: str | None = None, limit: int = 1000, is_late: Callable[[str], bool] | None = None
) -> list[Line]:
    """Return the actors that have a record or mail, by address. Two requests and one more for each 500 shown.

    Args:
        bus: Where.
        kind: Only this type.
        limit: How many at most.
        is_late: Whether actors of a type are left out first, where there are more.

    Raises:
        InvalidNameError: If the type cannot be one.
        NotFoundError: If there is no stream of actors.
    """
    wanted = "*" if kind is None else check_type(kind)
    with_record = await bus.subject_counts(subjects.ACTORS, f"cb.state.{wanted}.*")
    mails = await bus.subject_counts(subjects.ACTORS, f"cb.mbox.{wanted}.*.*")
    stored = {_addressee(subject): count for subject, count in mails.items()}
    known = {Address(*subjects.actor_of(subject)) for subject in with_record}
    everybody = sorted(known | set(stored), key=lambda each: (is_late is not None and is_late(each.type), each))
    chosen = sorted(everybody[:limit])
    states = await bus.get_many(subjects.ACTORS, [subjects.state(a.type, a.key) for a in chosen if a in known])
    found = {Address(*subjects.actor_of(s.subject)): _read(s) for s in states}
    return [_line(address, found.get(address), stored.get(address, 0)) for address in chosen]


async def state_of(bus: Bus, address: Address) -> StateRecord:
    """Return an actor's record. One direct get.

    Raises:
        NotFoundError: If it has none.
        DecodeError: If it cannot be read.
    """
    return _sound(await _record(bus, address, must_be=True), address)


async def state_json(bus: Bus, address: Address) -> Raw | None:
    """Return an actor's state as JSON, from the object store when it lies there; None when it was never changed.

    Raises:
        NotFoundError: If the actor has no record.
        DecodeError: If it cannot be read.
    """
    found = await state_of(bus, address)
    if found.blob is not UNSET:
        return Raw(await BlobStore(bus).get(found.blob))
    return found.state if found.state is not UNSET else None


async def mailbox(bus: Bus, address: Address, *, limit: int = 100) -> list[Waiting]:
    """Return the mail that an actor has not handled, that of a turn that runs included, oldest first.

    One get and one read of its subject.

    Raises:
        NotFoundError: If there is no stream of actors.
        DecodeError: If its record cannot be read, which tells what is handled.
    """
    found = _sound(await _record(bus, address), address)
    waiting = []
    async with aclosing(_unhandled(bus, address, found)) as mails:
        async for mail in mails:
            waiting.append(_waiting(mail))
            if len(waiting) >= limit:
                break
    return waiting


async def show(bus: Bus, address: Address) -> View:
    """Return all that is known of one actor. Five requests, one of them to its owner, which is given a second.

    Raises:
        NotFoundError: If nothing was ever sent to it.
        TopologyError: If the stream of actors is missing or has no partitions.
    """
    # first, so that what runs is either not yet handled by the record, or is named
    said = await _running(bus, address)
    under_way = _under_way(said)
    stands = await _record(bus, address)
    found = stands.record
    depth = await _depth(bus, address, found, but=under_way)
    if not stands.seq and not under_way and depth.count == 0:
        message = f"nothing is known of {address}: nobody has sent it anything, or it was removed"
        raise NotFoundError(message)
    partition = address.partition(await partitions(bus))
    place = await _place(bus, address, partition)
    return View(
        address=str(address),
        status=stands.status,
        reason=found.reason,
        turns=found.turns,
        applied=found.applied,
        ahead=found.ahead,
        failures=found.failures,
        at=found.at if found.at is not UNSET else stands.at,
        by=found.by,
        schema=found.schema,
        state_bytes=len(found.state) if found.state is not UNSET else _blob_bytes(found),
        mailbox=depth,
        parked=found.parked,
        timers=found.timers,
        partition=partition,
        owner=place.held.get(address.key) or place.held.get(address.token) or place.owner,
        epoch=place.epoch,
        is_answering=said is not None,
        running=said,
        record_seq=stands.seq,
        record_bytes=stands.size_bytes,
        problem=stands.problem,
        fix=_fix(address, stands),
    )


async def partitions(bus: Bus) -> int:
    """Return how many partitions each actor type has here. One request.

    Raises:
        TopologyError: If the stream of actors is missing, or files mail in another way.
    """
    info = await bus.stream_info(subjects.ACTORS)
    if info is None:
        message = f"stream {subjects.ACTORS} is missing: run 'callboard provision', or 'callboard up' for a server"
        raise TopologyError(message)
    count = _PARTITIONS.search(info.config.subject_transform[1] if info.config.subject_transform else "")
    if count is None:
        message = f"stream {subjects.ACTORS} does not file mail by partition: run 'callboard provision --plan'"
        raise TopologyError(message)
    return int(count[1])


async def types(bus: Bus) -> set[str]:
    """Return the names of the actor types that a worker hosts or has hosted. One request."""
    kinds = {subject.split(".")[2] for subject in await bus.subject_counts(subjects.ACTORS, "cb.cursor.*.*")}
    return {kind for kind in kinds if not kind.startswith("~")}


async def order(bus: Bus, address: Address, op: Op, *, reason: str = "", seq: int | None = None) -> dict[str, object]:
    """Give an order about an actor to its owner and return what that answers.

    Args:
        bus: Where.
        address: The actor.
        op: What to do.
        reason: For those who ask later.
        seq: The mail that is meant, for ``requeue`` of one dead letter.

    Raises:
        NoHostError: If no worker hosts the type, or none of them owns this actor now.
        ActorError: If the owner refuses.
    """
    body: dict[str, object] = {"op": op}
    if reason:
        body["reason"] = reason
    if seq is not None:
        body["seq"] = seq
    subject = subjects.ctl_actor(address.type, address.key)
    try:
        answer = await bus.request(subject, codec.encode(body), timeout_s=_ORDER_TIMEOUT_S)
    except NoRespondersError as error:
        raise no_host(address) from error
    except BusTimeoutError as error:
        message = (
            f"no worker that hosts {address.type!r} owns {address} now: its owner hangs, or it is being taken over; "
            "look with `callboard agents show` and try again"
        )
        raise NoHostError(message) from error
    check_order(answer, address)
    said = msgspec.json.decode(answer.data)
    if not isinstance(said, dict):
        message = f"the owner of {address} answered with something that is no answer to an order"
        raise ActorError(message)
    return cast("dict[str, object]", said)


async def standing(bus: Bus, address: Address) -> str | None:
    """Return an actor's status as its owner says it: one request of 0.3 s at most.

    None when no worker hosts the type now; "" when there is a host and nobody says more, or we may not ask.
    """
    subject = subjects.ctl_actor(address.type, address.key)
    try:
        answer = await bus.request(subject, codec.encode({"op": "show"}), timeout_s=_HOSTED_TIMEOUT_S)
    except NoRespondersError:
        return None
    except (BusTimeoutError, PermissionDeniedError):
        # there are hosts and none of them owns the actor at this moment, or we may not ask
        return ""
    said = msgspec.json.decode(answer.data)
    return str(said.get("status", "")) if isinstance(said, dict) else ""


# --- inside


async def _record(bus: Bus, address: Address, *, must_be: bool = False) -> _Found:
    stored = await bus.get_last(subjects.ACTORS, subjects.state(address.type, address.key))
    if stored is None:
        if must_be:
            message = f"{address} has no state: it has not finished a turn; see `callboard agents mailbox`"
            raise NotFoundError(message)
        return _Found()
    return _read(stored)


def _read(stored: Stored) -> _Found:
    found, problem = StateRecord(), ""
    try:
        found = record.decode(stored.data)
    except DecodeError as error:
        problem = str(error)
    return _Found(record=found, seq=stored.seq, size_bytes=len(stored.data), at=stored.time, problem=problem)


def _fix(address: Address, stands: _Found) -> str:
    if not stands.problem:
        return ""
    subject = subjects.state(address.type, address.key)
    return _FIX.format(address=shlex.quote(str(address)), subject=subject, before=stands.seq - 1)


def _sound(found: _Found, address: Address) -> StateRecord:
    """Return the record if it can be read.

    Raises:
        DecodeError: If not.
    """
    if found.problem:
        message = f"the record of {address} cannot be read: {found.problem}; see `callboard agents show`"
        raise DecodeError(message)
    return found.record


async def _place(bus: Bus, address: Address, partition: int) -> cursor.Cursor:
    """Return who owns a partition, nobody where that is not written or cannot be read."""
    stored = await bus.get_last(subjects.ACTORS, subjects.cursor(address.type, partition))
    try:
        return cursor.decode(stored.data) if stored is not None else cursor.Cursor()
    except DecodeError:
        # a newer Callboard wrote it
        return cursor.Cursor()


def _under_way(said: Raw | None) -> frozenset[int]:
    """Return the mails that a turn has in its hands now, by what the owner says."""
    running = _said.decode(said).running if said is not None else None
    return frozenset((running.seq, running.cause_seq)) if running is not None else frozenset()


async def _unhandled(bus: Bus, address: Address, found: StateRecord) -> AsyncGenerator[Mail, None]:
    where = subjects.mailbox(address.type, "*", address.key)
    async with closing(bus.read(subjects.ACTORS, subjects=(where,), start_seq=found.applied + 1)) as mails:
        async for stored in mails:
            if not found.has_applied(stored.seq):
                yield mail_of(stored)


async def _depth(bus: Bus, address: Address, found: StateRecord, *, but: Collection[int]) -> Depth:
    count, oldest = 0, None
    async with aclosing(_unhandled(bus, address, found)) as mails:
        async for mail in mails:
            if mail.seq in but:
                continue
            if count == COUNT_LIMIT:
                return Depth(count=count, is_more=True, oldest=oldest)
            oldest = oldest or _waiting(mail)
            count += 1
    return Depth(count=count, oldest=oldest)


async def _running(bus: Bus, address: Address) -> Raw | None:
    """Return what the owner says of the actor; None when there is no owner to ask."""
    subject = subjects.ctl_actor(address.type, address.key)
    try:
        answer = await bus.request(subject, codec.encode({"op": "show"}), timeout_s=_SHOW_TIMEOUT_S)
    except (NoRespondersError, BusTimeoutError):
        return None
    check_order(answer, address)
    return Raw(answer.data)


def _line(address: Address, stands: _Found | None, stored: int) -> Line:
    if stands is None:
        return Line(address=str(address), status="new", stored=stored)
    found = stands.record
    return Line(
        address=str(address),
        status=stands.status,
        turns=found.turns,
        parked=len(found.parked),
        stored=stored,
        reason=stands.problem or found.reason,
        at=found.at if found.at is not UNSET else stands.at if stands.problem else None,
    )


def _waiting(mail: Mail) -> Waiting:
    return Waiting(
        seq=mail.seq,
        id=mail.id,
        type=mail.type,
        kind=mail.kind,
        at=mail.time,
        size_bytes=len(mail.data),
        sender=mail.sender,
        is_ask=bool(mail.reply_to),
        deadline=mail.deadline,
        problem=mail.problem,
    )


def _blob_bytes(found: StateRecord) -> int:
    return found.blob.size_bytes if found.blob is not UNSET else 0


def _addressee(subject: str) -> Address:
    _, _, kind, _, token = subject.split(".", 4)
    return Address(kind, subjects.unescape(token))
