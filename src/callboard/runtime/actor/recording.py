"""All that is recorded of one turn, read back from the streams: what it was given, its steps, what came of it."""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from datetime import datetime, timedelta

import msgspec
from msgspec import UNSET, Struct

from callboard.runtime import subjects
from callboard.runtime.actor import address as addresses
from callboard.runtime.actor import archive, history, message, payload, step, verdict
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.history import Version
from callboard.runtime.actor.mail import KIND_WAIT_TIMEOUT, Link, Mail, mail_of, parse_chain
from callboard.runtime.actor.record import Parked, Reply, StateRecord, Waited
from callboard.runtime.actor.step import StepRecord
from callboard.runtime.audit import closing
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import MAX_BATCH, Bus, Stored
from callboard.runtime.errors import BlobCorruptError, DecodeError, HistoryError, InvalidNameError, NotFoundError

# Clocks of hosts and of the broker differ; a copy in the audit is late.
SKEW_S = 60.0
# How the steps are called in which a turn asks another actor.
ASKED = "~ask "
# Events of the engine's own about a turn; the others are the turn's.
ENGINES = frozenset({"resumed", "interrupted", "cancelled", "failed"})


class Recorded(Struct, frozen=True, kw_only=True):
    """A step that has a value.

    Attributes:
        place: Its place in the order in which the turn's steps were recorded, from 1.
        value: What it returned, as JSON.
    """

    entry: str
    place: int
    record: StepRecord
    value: bytes

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name

    @property
    def parent(self) -> str:
        """Entry of the step that it ran inside, "" outside of steps."""
        return self.record.parent


class Sent(Struct, frozen=True, kw_only=True):
    """What left with a commit of a turn.

    Attributes:
        kind: ``mail`` or ``event``.
        to: Who got it; the actor itself for an event.
        type: Name of the message type or of the event, "" where it has none.
    """

    kind: str
    to: str
    type: str
    data: bytes


class Recording(Struct, kw_only=True):
    """What is kept of one turn.

    Attributes:
        mail: What it handled, whole.
        before: The record that its last run built on.
        after: The version that its last commit wrote.
        cause: Sequence of the mail that made it run the last time: its own, or one that it waited for.
        steps: Its steps with a value, by entry, in the order in which they were recorded.
        pending: Records of steps that began and left none.
        waits: How its finished waits ended.
        parked: What it waits for; None when it has ended.
        sent: Mails and events, in order.
        reply: What its asker got; None where nobody asked, or the answer was not kept.
        failed: Whether it became a dead letter.
        stopped: Why it was stopped from outside, "" if it was not.
        commits: Sequences of the versions that it wrote.
        nested: Mails of its own chain that were handled inside it.
    """

    address: Address
    mail: Mail
    before: StateRecord
    after: Version
    cause: int
    steps: dict[str, Recorded] = {}
    pending: dict[str, StepRecord] = {}
    waits: list[Waited] = []
    parked: Parked | None = None
    sent: list[Sent] = []
    reply: Reply | None = None
    failed: bool = False
    stopped: str = ""
    commits: list[int] = []
    nested: list[int] = []

    @property
    def id(self) -> str:
        """``<type>/<key>/<sequence>``."""
        return f"{self.address}/{self.mail.seq}"

    @property
    def began(self) -> datetime:
        """No earlier than this did it begin."""
        first = min((found.record.at for found in self.steps.values()), default=self.after.at)
        return min(first, self.mail.time, self.after.at)

    @property
    def ended(self) -> datetime:
        """When its last commit was written, or its last step recorded."""
        return max([self.after.at, *(found.record.at for found in self.steps.values())])

    def children(self, entry: str) -> list[Recorded]:
        """Return the steps that ran inside a step."""
        return [found for found in self.steps.values() if found.parent == entry]


async def last_turn(bus: Bus, address: Address) -> int:
    """Return the sequence of the mail that an actor's last turn handles. Reads all that is kept of it.

    Raises:
        NotFoundError: If it has had none that is kept.
    """
    found = 0
    before: StateRecord | None = None
    mails: dict[int, Mail] = {}
    subject = subjects.state(address.type, address.key)
    async with aclosing(history.messages(bus, address)) as messages:
        async for stored in messages:
            if stored.subject.startswith("cb.mbox."):
                mails[stored.seq] = mail_of(stored)
            if stored.subject != subject:
                continue
            new = history.version_of(stored).record
            gone = _gone(before, new)
            if gone:
                found = max(gone)
            elif new.mail and (before is None or new.mail != before.mail) and not _repeats(mails.get(new.mail), before):
                found = new.mail
            _ = mails.pop(new.mail, None)
            before = new
    if not found:
        message_ = f"nothing is kept of a turn of {address}: it has never run, or its type or key is spelled otherwise"
        raise NotFoundError(message_)
    return found


async def read(bus: Bus, address: Address, seq: int) -> Recording:
    """Return what is kept of the turn that handles mail ``seq``. Reads all that is kept of the actor, once.

    Raises:
        NotFoundError: If no such turn has been committed.
        HistoryError: If its mail, the state before it, or a large value of it is kept no more.
        DecodeError: If a record is none, or one of a later version.
    """
    reader = _Reader(address, seq)
    async with aclosing(history.messages(bus, address)) as found:
        async for stored in found:
            reader.take(stored)
    recording = reader.recording()
    blobs = BlobStore(bus)
    recording.mail = await payload.whole(blobs, recording.mail)
    recording.steps, recording.pending = await _steps(blobs, reader.steps)
    recording.reply = await _reply(blobs, recording)
    recording.sent = [*await _mails(bus, blobs, recording), *reader.events]
    return recording


class _Reader:
    """Takes an actor's messages in order and keeps those of one turn."""

    def __init__(self, address: Address, seq: int) -> None:
        self.steps: list[Stored] = []
        self.events: list[Sent] = []
        self._address = address
        self._seq = seq
        self._mails: dict[int, Mail] = {}
        self._last: StateRecord | None = None
        self._found: Recording | None = None
        self._is_ours = False

    def take(self, stored: Stored) -> None:
        parts = stored.subject.split(".")
        match parts[1]:
            case "mbox":
                if stored.seq >= self._seq:
                    self._mails[stored.seq] = mail_of(stored)
            case "step":
                if parts[4] == str(self._seq):
                    self.steps.append(stored)
            case "event":
                self._event(stored)
            case _:
                if stored.subject == subjects.state(self._address.type, self._address.key):
                    self._state(history.version_of(stored))

    def recording(self) -> Recording:
        found, name = self._found, f"{self._address}/{self._seq}"
        if found is None:
            if self._last is None:
                text = f"nothing is kept of {self._address}: it has never run, or its type or key is spelled otherwise"
            else:
                text = f"no turn of mail {self._seq} is kept of {self._address}: `callboard replay agent "
                text += f"{self._address} --step` shows those that are"
            raise NotFoundError(text)
        if found.mail.seq != self._seq:
            text = f"the mail of {name} is kept no more, so it cannot run again"
            raise HistoryError(text)
        link = Link(self._address, self._seq)
        found.nested = [seq for seq, mail in self._mails.items() if mail.reply_to and link in mail.chain]
        return found

    def _state(self, version: Version) -> None:
        before, new = self._last, version.record
        self._last = new
        self._is_ours = False
        was = _parked(before, self._seq)
        now = _parked(new, self._seq)
        if was is not None and now != was:
            self._resumed(before or StateRecord(), version, now)
        elif new.mail == self._seq and (before is None or before.mail != self._seq) and self._found is None:
            self._begun(before, version, now)

    def _begun(self, before: StateRecord | None, version: Version, now: Parked | None) -> None:
        if before is None and version.record.turns > 1:
            text = f"the state before {self._address}/{self._seq} is kept no more, so its turn cannot run again"
            raise HistoryError(text)
        mail = self._mails.get(self._seq) or Mail(address=self._address, seq=0, id="", data=b"", time=version.at)
        if _repeats(mail, before):
            text = f"mail {self._seq} of {self._address} repeats a question: no turn of its own, so none can run again"
            raise HistoryError(text)
        known = before or StateRecord()
        self._found = Recording(
            address=self._address, mail=mail, before=known, after=version, cause=self._seq, parked=now
        )
        self._committed(version, known)

    def _resumed(self, before: StateRecord, version: Version, now: Parked | None) -> None:
        found = self._found
        if found is None:
            text = f"the beginning of {self._address}/{self._seq} is kept no more, so its turn cannot run again"
            raise HistoryError(text)
        if version.record.mail == before.mail or not version.record.mail:
            # an order ended it while it waited; a repeat of its question changes nothing of its own
            if now is None:
                found.stopped = "it was ended by request while it waited"
                found.after, found.parked = version, None
            return
        cause = self._mails.get(version.record.mail)
        if cause is None:
            text = f"mail {version.record.mail}, which {found.id} waited for, is kept no more"
            raise HistoryError(text)
        timed_out = cause.kind == KIND_WAIT_TIMEOUT
        waited = Waited(timed_out=True)
        if not timed_out:
            waited = Waited(data=_said(cause), content_type=cause.content_type or "")
        found.waits = [*found.waits, waited]
        found.before, found.after, found.parked, found.cause = before, version, now, cause.seq
        self._committed(version, before)

    def _committed(self, version: Version, before: StateRecord) -> None:
        if self._found is not None:
            self._found.commits = [*self._found.commits, version.seq]
            self._found.failed = version.record.failures > before.failures
            self._is_ours = True

    def _event(self, stored: Stored) -> None:
        name = (stored.headers or {}).get(header.TYPE, "")
        if not self._is_ours or self._found is None:
            return
        if name not in ENGINES:
            self.events.append(Sent(kind="event", to=str(self._address), type=name, data=stored.data))
        elif name == "cancelled":
            self._found.stopped = _reason(stored.data, self._seq) or self._found.stopped


def _parked(record: StateRecord | None, seq: int) -> Parked | None:
    if record is None:
        return None
    found = next((parked for parked in record.parked if parked.seq == seq), None)
    # who repeats the question joins it, and changes nothing else
    return msgspec.structs.replace(found, askers=[]) if found is not None else None


def _repeats(mail: Mail | None, before: StateRecord | None) -> bool:
    """Return whether a mail repeats a question that was handled, or waits, by then: it begins no turn."""
    if mail is None or before is None:
        return False
    return verdict.repeated(mail, before) is not None or verdict.parked_twin(mail, before) is not None


def _gone(before: StateRecord | None, new: StateRecord) -> set[int]:
    """Return the turns that waited before and have gone on since."""
    if before is None:
        return set()
    return {parked.seq for parked in before.parked if _parked(new, parked.seq) != _parked(before, parked.seq)}


def _said(mail: Mail) -> bytes:
    if mail.type is None:
        envelope = message.open_envelope(mail.data, mail.content_type)
        if envelope is not None:
            return envelope[1]
    return mail.data


def _reason(data: bytes, seq: int) -> str:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if not isinstance(found, dict) or found.get("seq") != seq:
        return ""
    return str(found.get("reason") or "by request")


async def _steps(blobs: BlobStore, found: list[Stored]) -> tuple[dict[str, Recorded], dict[str, StepRecord]]:
    anew = [each.seq for each in found if step.entry_of(each.subject).startswith(f"{step.RESTARTED}.")]
    restarted_at = max(anew, default=0)
    done: dict[str, Recorded] = {}
    pending: dict[str, StepRecord] = {}
    for stored in found:
        entry = step.entry_of(stored.subject)
        if step.is_note(entry) or step.is_void(stored, restarted_at):
            continue
        record = step.decode(stored.data)
        if record.kind != "done":
            pending[entry] = record
            continue
        pending.pop(entry, None)
        done[entry] = Recorded(entry=entry, place=stored.seq, record=record, value=await _value(blobs, record))
    # by their own time: some are written again with a lifetime, when the turn has ended
    in_order = sorted(done.values(), key=lambda each: (each.record.at, each.place))
    return {each.entry: msgspec.structs.replace(each, place=n) for n, each in enumerate(in_order, 1)}, pending


async def _value(blobs: BlobStore, record: StepRecord) -> bytes:
    if record.blob is UNSET:
        return b"null" if record.value is UNSET else bytes(record.value)
    try:
        return await blobs.get(record.blob)
    except (NotFoundError, BlobCorruptError) as error:
        text = f"the value of step {record.name!r} was too large for a record, and its object is gone: {error}"
        raise HistoryError(text) from error


async def _reply(blobs: BlobStore, recording: Recording) -> Reply | None:
    mail = recording.mail
    if not mail.reply_to:
        return None
    found = next((reply for reply in reversed(recording.after.record.replies) if reply.id == mail.id), None)
    if found is None or found.blob is UNSET:
        return found
    try:
        return Reply(id=found.id, value=msgspec.Raw(await blobs.get(found.blob)))
    except (NotFoundError, BlobCorruptError):
        # only kept for a repeated question
        return None


async def _mails(bus: Bus, blobs: BlobStore, recording: Recording) -> list[Sent]:
    """Return the mails that the turn's commits put into mailboxes: they stand right behind the record."""
    found: dict[int, Sent] = {}
    link = Link(recording.address, recording.mail.seq)
    for commit in recording.commits:
        for stream in (subjects.ACTORS, subjects.AUDIT):
            info = await bus.stream_info(stream)
            if info is None:
                continue
            # the audit's own sequences are others, and its copies are late but never early
            since = recording.began - timedelta(seconds=SKEW_S) if stream == subjects.AUDIT else None
            start = commit + 1 if stream == subjects.ACTORS else None
            if start is not None and start > info.last_seq:
                continue
            async with closing(bus.read(stream, subjects=("cb.mbox.>",), start_seq=start, start_time=since)) as ones:
                async for copy in ones:
                    stored = archive.original(copy) if stream == subjects.AUDIT else copy
                    if stored.seq > commit + MAX_BATCH:
                        break
                    if stored.seq > commit and stored.seq not in found and _comes_from(stored, link):
                        found[stored.seq] = await _sent(blobs, stored)
    return [found[seq] for seq in sorted(found)]


def _comes_from(stored: Stored, link: Link) -> bool:
    """Whether a turn sent a mail with its commit: asks have a reply subject, and are sent before."""
    headers = stored.headers or {}
    if header.REPLY_TO in headers:
        return False
    try:
        chain = parse_chain(headers.get(header.CHAIN, ""))
    except ValueError:
        return False
    return bool(chain) and chain[-1] == link


async def _sent(blobs: BlobStore, stored: Stored) -> Sent:
    mail = mail_of(stored)
    try:
        data = await payload.fetch(blobs, mail.data, mail.headers)
    except DecodeError as error:
        raise HistoryError(str(error)) from error
    return Sent(kind="mail", to=str(mail.address), type=mail.type or "", data=data)


async def asked(bus: Bus, address: Address, seq: int) -> list[tuple[Address, int]]:
    """Return the turns that a turn asked: whose, and the sequence of the mail. Reads the mailboxes of those it asked.

    Raises:
        NotFoundError: If there is no stream of actors.
    """
    link = Link(address, seq)
    found: dict[int, Address] = {}
    asked_ids: set[tuple[Address, str]] = set()
    for target in await _targets(bus, address, seq):
        async with aclosing(history.messages(bus, target)) as messages:
            async for stored in messages:
                if stored.subject.split(".")[1] != "mbox":
                    continue
                mail = mail_of(stored)
                # a question that was repeated is one
                if mail.reply_to and mail.chain and mail.chain[-1] == link and (target, mail.id) not in asked_ids:
                    asked_ids.add((target, mail.id))
                    found[stored.seq] = target
    return [(found[each], each) for each in sorted(found)]


async def _targets(bus: Bus, address: Address, seq: int) -> list[Address]:
    """Return whom a turn asked, by the names of its steps."""
    found: dict[Address, None] = {}
    async with aclosing(history.messages(bus, address)) as messages:
        async for stored in messages:
            parts = stored.subject.split(".")
            if parts[1] != "step" or parts[4] != str(seq) or step.is_note(step.entry_of(stored.subject)):
                continue
            name = step.decode(stored.data).name
            if name.startswith(ASKED):
                with contextlib.suppress(InvalidNameError):
                    found[addresses.parse(name.removeprefix(ASKED))] = None
    return list(found)
