"""What becomes of a mail before any handler runs: decisions as plain functions of record and mail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Container, Sequence
from datetime import datetime

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from callboard.runtime.actor import message
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.mail import KIND_TIMER, KIND_WAIT_TIMEOUT, Mail
from callboard.runtime.actor.mailbox import Mailbox
from callboard.runtime.actor.outbox import WAIT_TIMER
from callboard.runtime.actor.record import IDS_KEPT, REPLIES_KEPT, Parked, Reply, ReplyError, StateRecord, Timer
from callboard.runtime.errors import ActorStoppedError, DeadlineError, DecodeError, MailLoopError, ReplyGoneError
from callboard.runtime.record import Failure

# A turn may come by the same actor again in a chain, a circle may not go on for ever.
MAX_VISITS = 10
CHAIN_SHOWN = 12


class Run(Struct, frozen=True):
    """Give it to its handler."""


class Resume(Struct, frozen=True):
    """It ends the wait of this parked turn."""

    parked: Parked


class Join(Struct, frozen=True):
    """It repeats the question of this parked turn, and is answered with it."""

    parked: Parked


class Skip(Struct, frozen=True):
    """It has no effect: a stale timer, an expired message nobody waits for."""


class Answer(Struct, frozen=True):
    """It is answered without a run: a repeat, or too late."""

    reply: Reply


class Dead(Struct, frozen=True):
    """It can never be handled."""

    failure: Failure


Verdict = Run | Resume | Join | Skip | Answer | Dead


def next_mail(record: StateRecord, mailbox: Mailbox) -> Mail | None:
    """Return the mail to look at next, None when none may be handled now. Forgets what is handled already."""
    head = mailbox.head()
    while head is not None and record.has_applied(head.seq):
        mailbox.remove(head.seq)
        head = mailbox.head()
    if head is None:
        return None
    if record.status != "active":
        # tells wait; whoever asks a stopped actor is told at once, unless it is only paused
        waits = record.status == "paused"
        return None if waits else next((mail for mail in mailbox.waiting() if mail.reply_to), None)
    if is_holding(record):
        return next((mail for mail in mailbox.waiting() if awaited_by(mail, record) is not None), None)
    return head


def is_holding(record: StateRecord) -> bool:
    """Return whether a parked turn holds all other mail up."""
    return bool(record.parked) and any(parked.hold for parked in record.parked)


def judge(  # noqa: PLR0911 - a table
    mail: Mail, record: StateRecord, kind: ActorType, *, now: datetime, recent: Container[str] = ()
) -> Verdict:
    """Return what becomes of ``mail``, the next in turn; ``recent`` are digests of ids beyond those in the record."""
    known = repeated(mail, record, recent=recent)
    if known is not None:
        return Answer(known)
    if record.status != "active":
        text = f"{mail.address} is {record.status}: {record.reason or 'no reason given'}; see `callboard agents show`"
        if record.status == "failed":
            text += f", and once the cause is gone `callboard agents restart {mail.address}`"
        text += "; this was not handled, and what it was told waits"
        return Answer(_error(mail, ActorStoppedError.code, text))
    if mail.problem:
        return Dead(Failure(code=DecodeError.code, message=mail.problem))
    twin = parked_twin(mail, record)
    if twin is not None:
        return Join(twin)
    parked = awaited_by(mail, record)
    if parked is not None:
        return Resume(parked)
    if mail.kind == KIND_WAIT_TIMEOUT:
        return Skip()
    if mail.kind == KIND_TIMER:
        timer = record.timers.get(mail.timer)
        return Run() if timer is not None and timer.generation == mail.generation else Skip()
    if mail.deadline is not None and mail.deadline <= now:
        text = f"its deadline passed {(now - mail.deadline).total_seconds():.1f} s before its turn"
        return Answer(_error(mail, DeadlineError.code, text)) if mail.reply_to else Skip()
    loop = loop_of(mail, kind)
    return Run() if loop is None else Dead(loop)


def loop_of(mail: Mail, kind: ActorType) -> Failure | None:
    """Return why the chain of messages that led to ``mail`` is cut, None when it may go on; names its last turns."""
    chain = mail.chain
    if not chain:
        return None
    visits = sum(1 for link in chain if link.address == mail.address)
    if len(chain) < kind.options.max_chain and visits < MAX_VISITS:
        return None
    shown = " -> ".join(str(link.address) for link in chain[-CHAIN_SHOWN:])
    dots = "... -> " if len(chain) > CHAIN_SHOWN else ""
    text = f"{len(chain)} turns led to one another, {visits} of them {mail.address}'s, and the chain was cut here"
    return Failure(code=MailLoopError.code, message=f"{text}: {dots}{shown} -> {mail.address}")


def parked_twin(mail: Mail, record: StateRecord) -> Parked | None:
    """Return the parked turn that the mail's id names already."""
    if not (mail.has_own_id and record.parked):
        return None
    digest = digest_of(mail.id)
    return next((parked for parked in record.parked if parked.id == digest), None)


def said(mail: Mail) -> tuple[str | None, bytes]:
    """Return the name of a mail's message type and the message, which may stand in an envelope."""
    if mail.type is None:
        envelope = message.open_envelope(mail.data, mail.content_type)
        if envelope is not None:
            return envelope
    return mail.type, mail.data


def awaited_by(mail: Mail, record: StateRecord) -> Parked | None:
    """Return the parked turn whose wait this mail ends, the oldest one first."""
    for parked in record.parked:
        if mail.kind == KIND_WAIT_TIMEOUT:
            if mail.timer == f"{WAIT_TIMER}.{parked.seq}.{parked.waits}":
                return parked
        elif mail.kind is None:
            name, data = said(mail)
            if name == parked.awaiting and _fits(mail, data, parked):
                return parked
    return None


def askers_of(mail: Mail, before: StateRecord, after: StateRecord) -> list[str]:
    """Return where else the answer to a parked turn's mail goes, by the records before and after its end."""
    if not before.parked:
        return []
    going = {parked.seq for parked in after.parked}
    return [asker for p in before.parked if p.seq == mail.seq and p.seq not in going for asker in p.askers]


def repeated(mail: Mail, record: StateRecord, *, recent: Container[str] = ()) -> Reply | None:
    """Return the answer for a mail whose id was handled before, None for a new one."""
    if not mail.has_own_id:
        return None
    for reply in reversed(record.replies):
        if reply.id == mail.id:
            return reply
    digest = digest_of(mail.id)
    if digest in record.ids or digest in recent:
        text = f"{mail.id} was handled before, once; its answer is no longer kept"
        return _error(mail, ReplyGoneError.code, text)
    return None


def parking(parked: Parked) -> Callable[[StateRecord], list[Parked]]:
    """Return the change that puts an entry among the parked turns of a record, in its old place if it had one.

    What is parked is decided by the record under the commit: an order and a turn may write at the same time.
    """

    def change(record: StateRecord) -> list[Parked]:
        if any(other.seq == parked.seq for other in record.parked):
            return [parked if other.seq == parked.seq else other for other in record.parked]
        return [*record.parked, parked]

    return change


def unparking(gone: Collection[int]) -> Callable[[StateRecord], list[Parked]]:
    """Return the change that takes the turns of these mails from the parked ones."""
    return lambda record: [other for other in record.parked if other.seq not in gone]


def firing(mail: Mail) -> Callable[[StateRecord], dict[str, Timer]]:
    """Return the change that takes the timer from a record which fires but once, and did so with ``mail``."""

    def change(record: StateRecord) -> dict[str, Timer]:
        known = record.timers.get(mail.timer) if mail.kind == KIND_TIMER else None
        if known is None or known.due is UNSET or known.generation != mail.generation:
            return record.timers
        return {name: timer for name, timer in record.timers.items() if name != mail.timer}

    return change


def apply(record: StateRecord, handled: Sequence[int], oldest_waiting: int | None) -> StateRecord:
    """Return the record with these mails handled.

    ``applied`` moves up over everything below the oldest mail that still waits; what was handled beyond stands in
    ``ahead``.
    """
    if not handled:
        return record
    if len(handled) == 1 and not record.ahead:
        # nearly always: the oldest mail, and nothing was handled out of turn
        (only,) = handled
        if only > record.applied and (oldest_waiting is None or only < oldest_waiting):
            return replace(record, applied=only)
    done = sorted({*record.ahead, *(seq for seq in handled if seq > record.applied)})
    below = [seq for seq in done if oldest_waiting is None or seq < oldest_waiting]
    applied = max(record.applied, below[-1]) if below else record.applied
    return replace(record, applied=applied, ahead=[seq for seq in done if seq > applied])


def remember(record: StateRecord, answered: Sequence[tuple[Mail, Reply]]) -> StateRecord:
    """Return the record with the answers kept for senders that gave an id, the oldest ones forgotten."""
    own = [(mail, reply) for mail, reply in answered if mail.has_own_id]
    if not own:
        return record
    replies = [*record.replies, *(reply for mail, reply in own if mail.reply_to)][-REPLIES_KEPT:]
    ids = [*record.ids, *(digest_of(mail.id) for mail, _ in own)][-IDS_KEPT:]
    return replace(record, replies=replies, ids=ids)


def digest_of(mail_id: str) -> str:
    """Return what is kept of an id: 16 characters."""
    return hashlib.blake2b(mail_id.encode(), digest_size=8).hexdigest()


def _fits(mail: Mail, data: bytes, parked: Parked) -> bool:
    if parked.where is UNSET:
        return True
    try:
        found = message.plain(data, mail.content_type)
        wanted = msgspec.json.decode(parked.where)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, DecodeError):
        return False
    return isinstance(found, dict) and all(found.get(name, UNSET) == value for name, value in wanted.items())


def _error(mail: Mail, code: str, text: str) -> Reply:
    return Reply(id=mail.id, error=ReplyError(code=code, message=text))
