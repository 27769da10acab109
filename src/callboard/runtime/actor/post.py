"""The post: what users who may not write mail hand in on ``cb.tell.<type>.<key>``, stored as mail by a host.

They write into ``CB_POST``, a stream in which the server obeys no header that deletes or schedules. One host of the
type, the owner of its first partition, reads it in order and stores each entry as mail, together with the record that
says how far it is: one atomic batch against that record's sequence, so that every entry becomes mail once, in its
order, whoever else believes to be the carrier.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import events, logs, subjects
from callboard.runtime.actor import payload
from callboard.runtime.actor.commit import Committed, Fenced
from callboard.runtime.actor.letter import letter_of, write_letter
from callboard.runtime.actor.mail import mail_of
from callboard.runtime.actor.services import Services
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored, Tail, Write
from callboard.runtime.envelope import parse_deadline
from callboard.runtime.errors import (
    CallboardError,
    ConflictError,
    InputError,
    InvalidHeaderError,
    PayloadTooLargeError,
)
from callboard.runtime.record import failure_of

_log = logs.get_logger(__name__)

# Entries in one batch, and in memory before the reader pauses.
MAX_BATCH = 200
MAX_WAITING = 1000
# What has become mail is deleted from the post after a pause as long as this, or this many later: it takes requests.
PURGE_AFTER_S = 1.0
PURGE_EVERY = 1000
RETRY_S = 0.5
# The stream is missing, or our user may not read it: somebody has to provision.
CLOSED_RETRY_S = 30.0


class Position(Struct, frozen=True):
    """How far a type's post has become mail: the sequence in ``CB_POST`` of the last entry that did."""

    upto: int


class Carrier:
    """Makes mail of the post of one actor type, from ``start`` until ``stop``."""

    def __init__(self, services: Services, kind: str) -> None:
        """Prepare; nothing is read yet."""
        self._services = services
        self._kind = kind
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[Stored] = deque()
        self._filled = asyncio.Event()
        self._tail: Tail | None = None
        self._is_on_hold = False
        self._upto = 0
        self._position_seq = 0
        self._purged = 0
        self._buried: set[int] = set()

    def start(self) -> None:
        """Begin to read; harmless when it is running."""
        if self._task is None or self._task.done():
            self._task = self._services.spawn(self._run(), f"post-{self._kind}")

    def stop(self) -> None:
        """End it. A batch on its way may still be stored, and counts."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    # --- reading

    async def _run(self) -> None:
        while True:
            try:
                await self._carry()
            except CallboardError as error:
                if not error.retryable:
                    _log.warning(events.POST_UNREAD, type=self._kind, code=error.code, message=str(error))
                await self._services.clock.sleep(RETRY_S if error.retryable else CLOSED_RETRY_S)
            except Exception as error:  # noqa: BLE001 - nobody foresaw it: the post waits, it is seen, and tried again
                _log.error(events.POST_UNREAD, type=self._kind, code=type(error).__name__, message=str(error))
                await self._services.clock.sleep(CLOSED_RETRY_S)

    async def _carry(self) -> None:
        """Read on from the position that stands, until another carrier has moved it or the broker cannot be had."""
        await self._find_position()
        self._waiting.clear()
        self._filled.clear()
        self._is_on_hold = False
        self._tail = tail = await self._services.bus.tail(
            subjects.POST, subjects.tell(self._kind), self._take, start_seq=self._upto + 1
        )
        try:
            await self._rest()
            while True:
                await self._filled.wait()
                while self._waiting:
                    entries = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
                    if not await self._store(entries):
                        return
                    self._resume()
                self._filled.clear()
                await self._rest()
        finally:
            self._tail = None
            await tail.close()

    def _take(self, stored: Stored) -> None:
        self._waiting.append(stored)
        self._filled.set()
        if len(self._waiting) >= MAX_WAITING and not self._is_on_hold and self._tail is not None:
            self._is_on_hold = True
            self._tail.hold()

    def _resume(self) -> None:
        if self._is_on_hold and len(self._waiting) < MAX_WAITING // 2 and self._tail is not None:
            self._is_on_hold = False
            self._tail.resume()

    async def _find_position(self) -> None:
        bus = self._services.bus
        stored = await bus.get_last(subjects.ACTORS, subjects.posted(self._kind), from_leader=True)
        self._position_seq = stored.seq if stored is not None else 0
        self._upto = msgspec.json.decode(stored.data, type=Position).upto if stored is not None else 0
        # whoever carried before us may have died before it deleted what it had carried
        self._purged = 0
        info = await bus.stream_info(subjects.POST)
        if info is not None and info.leader is not None and self._upto > info.last_seq:
            # the stream is a new one: nothing of it has become mail
            self._upto = 0

    # --- writing

    async def _store(self, entries: Sequence[Stored]) -> bool:
        """Store entries as mail; False when another carrier has done so, or may have."""
        writes: dict[str, Write] = {}
        for entry in entries:
            write = await self._as_mail(entry)
            if write is not None and entry.seq not in self._buried:
                # a batch takes one write on the subject of a schedule; of mail it takes any number
                name = write.subject if header.SCHEDULE in (write.headers or {}) else f"{entry.seq}"
                writes.setdefault(name, write)
        position = msgspec.json.encode(Position(entries[-1].seq))
        guard = header.build(expected_seq=self._position_seq)
        result = await self._services.committer.commit(
            Write(subjects.posted(self._kind), position, guard), *writes.values()
        )
        if isinstance(result, Committed):
            self._upto, self._position_seq = entries[-1].seq, result.seqs[0]
            return True
        if isinstance(result, Fenced):
            return False
        if not isinstance(result.error, PayloadTooLargeError | InvalidHeaderError):
            # not the entries' fault: they wait until it is mended
            raise result.error
        if len(entries) == 1:
            await self._bury(entries[0], result.error)
        # one of them is at fault: it alone becomes a dead letter
        for entry in entries:
            if not await self._store([entry]):
                return False
        return True

    async def _bury(self, entry: Stored, error: CallboardError) -> None:
        """Make a dead letter of what the broker takes from its sender and not from us, for its size, say."""
        _, _, kind, token = entry.subject.split(".", 3)
        mail = mail_of(replace(entry, subject=f"cb.mbox.{kind}.0.{token}"))
        services = self._services
        failure = failure_of(error)
        letter = await letter_of(
            mail, failure, attempts=0, worker=services.worker, at=services.clock.now(), blobs=services.blobs
        )
        await write_letter(services.bus, mail, letter, token=token)
        self._buried.add(entry.seq)
        _log.error(events.MAIL_DEAD_LETTERED, actor=str(mail.address), seq=mail.seq, attempts=0, code=failure.code)

    async def _as_mail(self, entry: Stored) -> Write | None:
        """Return the mail of an entry, or its schedule; None for a repeat of one that is scheduled already."""
        _, _, _, token = entry.subject.split(".", 3)
        given = entry.headers or {}
        # the broker's own would bind the mail: only what the sender says to Callboard goes on, and no turn handed it in
        headers = {name: value for name, value in given.items() if not name.lower().startswith("nats-")}
        _ = headers.pop(header.CHAIN, None)
        own_id = given.get(header.MAIL_ID) or given.get(header.MSG_ID)
        if own_id:
            headers[header.MAIL_ID] = own_id
        data = await payload.stow(self._services.blobs, entry.data, headers)
        target = f"cb.mail.{self._kind}.{token}"
        due = None
        with suppress(InputError):
            due = parse_deadline(headers.pop(header.NOT_BEFORE, None))
        if due is None or due <= self._services.clock.now():
            return Write(target, data, headers or None)
        name = hashlib.sha256((own_id or f"~{entry.seq}").encode()).hexdigest()[:32]
        subject = f"cb.timer.{self._kind}.{token}.~post-{name}"
        if own_id and await self._services.bus.get_last(subjects.ACTORS, subject, from_leader=True) is not None:
            return None
        return Write(subject, data, headers | header.at(due, target))

    async def _rest(self) -> None:
        """Wait for the next entry; delete what has become mail after a pause, or when much of it has gathered."""
        pause_s = PURGE_AFTER_S if self._upto - self._purged < PURGE_EVERY else 0.0
        pause = asyncio.ensure_future(self._services.clock.sleep(pause_s))
        waiter = asyncio.ensure_future(self._filled.wait())
        try:
            await asyncio.wait((pause, waiter), return_when=asyncio.FIRST_COMPLETED)
            if pause.done():
                await self._purge()
        finally:
            pause.cancel()
            waiter.cancel()

    async def _purge(self) -> None:
        """Delete what has become mail, and older positions."""
        if self._upto == self._purged:
            return
        bus = self._services.bus
        await bus.purge(subjects.POST, subject=subjects.tell(self._kind), below_seq=self._upto + 1)
        with suppress(ConflictError):
            await bus.purge(subjects.ACTORS, subject=subjects.posted(self._kind), below_seq=self._position_seq)
        self._purged = self._upto
