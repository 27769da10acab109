"""One partition of an actor type that this worker owns: its reader, its actors in memory, its cursor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from callboard.runtime import events, logs, subjects
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.actor.activation import Activation
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.cursor import Cursor
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.letter import letter_of, write_letter
from callboard.runtime.actor.mail import Mail, is_key, mail_of, wrong_key
from callboard.runtime.actor.ports import Staged
from callboard.runtime.actor.post import Carrier
from callboard.runtime.actor.services import Services
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored, Tail, Write
from callboard.runtime.errors import BusError, ConflictError, DecodeError
from callboard.runtime.record import failure_of

_log = logs.get_logger(__name__)

# Actors with mail in memory before the reader pauses; the rest waits in the stream.
MAX_WAITING = 10_000
# A reader hears the broker each second, and is opened again when it does not.
DEAF_AFTER_S = 12.0
_RETRY_S = 0.25


class Stage(Protocol):
    """The host of the partitions, as the doors for asks and orders see it; ``ActorHost`` is one."""

    types: dict[str, ActorType]
    services: Services

    def find(self, kind: str, key: str) -> Partition | None:
        """Return the partition of an actor if we own it."""
        ...

    def find_held(self, kind: str, key: str) -> Activation | None:
        """Return an actor that we still have in mid-turn although its partition is another's."""
        ...


class Partition:
    """What the owner of one partition has in memory. It owns until its cursor says otherwise.

    Attributes:
        cursor: The record as we last wrote it.
        cursor_seq: Its sequence.
        taken_epoch: Epoch that stood when we took it: who holds an actor of it had let go of the partition by then.
        taken_at: Last sequence of the stream when we took it: what came before may have been begun by another host.
        is_from_dead: Whether we took it from a host that died.
        former: Worker that we took it from, or that last had one of its actors in mid-turn; "" when not known.
        dirty: Keys of actors whose record was written since somebody last took note, with its sequence.
        is_lost: Somebody else owns it; its actors are dropped.
        lost_to: Who, "" as long as it is not lost.
        is_handed: We gave it away: somebody else owns it, and the actors that we have in mid-turn go on.
        is_adrift: A hand-over was sent and may still arrive: nothing begins before another write keeps it out.
        activations: Actors in memory, by key.
    """

    def __init__(
        self,
        services: Services,
        kind: ActorType,
        number: int,
        *,
        cursor: Cursor,
        cursor_seq: int,
        taken_at: int,
        is_from_dead: bool,
        former: str,
        on_lost: Callable[[Partition], None],
        on_settled: Callable[[Partition, Staged], None],
    ) -> None:
        """Take over what ``cursor`` says; ``open`` starts to read."""
        self.kind = kind
        self.number = number
        self.cursor = cursor
        self.cursor_seq = cursor_seq
        self.taken_epoch = cursor.epoch
        self.taken_at = taken_at
        self.is_from_dead = is_from_dead
        self.former = former
        self.dirty: dict[str, int] = {}
        self.is_lost = False
        self.lost_to = ""
        self.is_handed = False
        self.is_adrift = False
        self.activations: dict[str, Activation] = {}
        self._services = services
        self._on_lost = on_lost
        self._on_settled = on_settled
        self._tail: Tail | None = None
        self._seen = cursor.upto
        self._doubts = False
        self._is_checking = False
        self._is_on_hold = False
        self._is_closed = False
        self._is_left = False
        self._writing = asyncio.Lock()
        # one of a type's hosts makes mail of its post
        is_first = number == kind.numbers(services.rules.partitions)[0]
        self._carrier = Carrier(services, kind.name) if is_first else None

    def __repr__(self) -> str:
        """Return type, number and epoch."""
        return f"<Partition {self.kind.name}/{self.number} epoch={self.epoch}>"

    # --- what its activations ask

    @property
    def epoch(self) -> int:
        """Epoch of our ownership."""
        return self.cursor.epoch

    @property
    def is_gone(self) -> bool:
        """Whether it is another's."""
        return self.is_lost or self.is_handed

    @property
    def is_moving(self) -> bool:
        """Whether we give it to another worker, or have done so: it was not taken from us."""
        return not self.is_lost and (self._is_left or self.is_handed)

    def may_have_run(self, seq: int) -> bool:
        """Return whether another host may have begun the mail with this sequence."""
        return seq <= self.taken_at

    def suspects_crash(self, seq: int) -> bool:
        """Return whether the host that had this mail before died."""
        return self.is_from_dead and seq <= self.taken_at

    async def is_ours(self) -> bool:
        """Return whether we still own it; asks the broker when our link is away or our own beats do not come back."""
        if self.is_gone:
            return False
        if self._is_unsure or not self._services.bus.is_connected:
            await self.check()
        return not self.is_gone

    async def still_runs(self, activation: Staged) -> bool:
        """Return whether an actor in mid-turn may go on here, also after its partition was handed to another host.

        A host that stood still for seconds has not heard that its turns were taken over: while its own beats do not
        come back the cursor is read first, again and again while the broker cannot be asked.
        """
        while self._is_unsure and activation.owner is self:
            try:
                await self.check()
                break
            except BusError as error:
                if not error.retryable:
                    raise
                await self._services.clock.sleep(_RETRY_S)
        if activation.owner is not self:
            return await activation.owner.still_runs(activation)
        return activation is self.activations.get(activation.address.key)

    @property
    def _is_unsure(self) -> bool:
        return self._doubts or self._services.echo_age_s() > self._services.rules.echo_limit_s

    def doubt(self) -> None:
        """Look at the cursor before the next turn, and now."""
        self._doubts = True
        _ = self._services.spawn(self._check_quietly(), f"partition-check-{self.kind.name}-{self.number}")

    def committed(self, key: str, seq: int) -> None:
        """Hear that an actor's record was written."""
        self.dirty[key] = seq

    def settled(self, activation: Staged) -> None:
        """Hear that an actor's loop came to rest."""
        self._on_settled(self, activation)
        if activation.resident is not None:
            activation.resident.look()
        if self._is_on_hold and self.waiting < MAX_WAITING // 2 and self._tail is not None:
            self._is_on_hold = False
            self._tail.resume()

    # --- life

    async def open(self, *, is_doubtful: bool = False) -> None:
        """Wake the actors with unhandled mail and read on.

        Args:
            is_doubtful: Taking it took long, so that what was read on the way may be old: look again before a turn.

        Raises:
            BusError: If it cannot be read now.
        """
        if is_doubtful:
            self.doubt()
        self._rouse()
        for key, seq in sorted(self.cursor.pending.items(), key=lambda item: item[1]):
            activation = self.activation(key, read_from=seq)
            holder = self.cursor.held.get(key)
            if holder is not None and holder != self._services.worker:
                activation.held_by = holder
            activation.wake()
        self._tail = await self._services.bus.tail(
            subjects.ACTORS,
            subjects.mailbox(self.kind.name, self.number),
            self._on_mail,
            start_seq=self.cursor.upto + 1,
        )
        self._fetch_post()

    @property
    def is_deaf(self) -> bool:
        """Whether it is not being read: the broker could not be asked when it was to be opened."""
        return self._tail is None and not self.is_lost

    def problem(self, now_s: float) -> str | None:
        """Return why its mail cannot be read now, or None."""
        tail = self._tail
        if tail is None or self._is_on_hold:
            return None
        silent_s = now_s - tail.last_heard
        return tail.problem or (f"nothing was heard for {silent_s:.0f} s" if silent_s > DEAF_AFTER_S else None)

    async def close(self) -> None:
        """Stop reading, and leave the cursor as it is. Its actors stay as they are."""
        self._is_closed = True
        if self._carrier is not None:
            self._carrier.stop()
        tail, self._tail = self._tail, None
        if tail is not None:
            await tail.close()

    def leave(self) -> None:
        """Begin no further turn: somebody else goes on."""
        self._is_left = True
        for activation in self.activations.values():
            activation.leave()

    async def go_on(self) -> None:
        """Read and run on after all: the hand-over did not come about.

        Raises:
            BusError: If it cannot be read now.
        """
        if self.is_adrift and not await self.write(self.next_cursor()):
            return
        self.is_adrift = False
        self._is_closed = self._is_left = False
        for activation in self.activations.values():
            activation.is_leaving = False
            activation.wake()
        self._rouse()
        self._tail = await self._services.bus.tail(
            subjects.ACTORS, subjects.mailbox(self.kind.name, self.number), self._on_mail, start_seq=self._seen + 1
        )
        self._fetch_post()

    def _fetch_post(self) -> None:
        if self._carrier is not None and not self._is_closed:
            self._carrier.start()

    def lose(self, held: Mapping[str, str] | None = None) -> None:
        """Drop everything at once: somebody else owns it. What its cursor says we hold goes on."""
        if self.is_gone:
            return
        self.is_lost = True
        for key, activation in list(self.activations.items()):
            if activation.is_busy and (held or {}).get(key) == self._services.worker:
                activation.leave()
            else:
                del self.activations[key]
                activation.drop()
        self._on_lost(self)

    def adopt(self, activation: Activation) -> None:
        """Go on with an actor that this worker still had in mid-turn from an earlier ownership."""
        self.activations[activation.address.key] = activation
        activation.owner = self
        activation.is_leaving = activation.is_doubtful = False
        activation.use(self.kind)
        # while the partition was another's, its mail came to that one
        activation.mailbox.missed()

    def activation(self, key: str, *, read_from: int | None = None) -> Activation:
        """Return the actor with this key, made when it is not in memory."""
        found = self.activations.get(key)
        if found is None:
            address = Address(self.kind.name, key)
            found = Activation(self._services, self.kind, address, self, read_from=read_from)
            found.is_leaving = self._is_left
            self.activations[key] = found
        return found

    def passivate(self, now_s: float) -> list[Activation]:
        """Forget actors that were idle for long enough; return them."""
        idle_s = self.kind.options.idle_s or self._services.rules.idle_s
        gone = [
            activation
            for activation in self.activations.values()
            if not activation.is_busy
            and activation.resident is None
            and activation.held_by is None
            and activation.mailbox.first_seq is None
            and activation.problem is None
            and now_s - activation.idle_since_s > idle_s
        ]
        for activation in gone:
            del self.activations[activation.address.key]
        return gone

    def free(self, key: str) -> None:
        """Let an actor run that another host had in mid-turn: it is done, or dead."""
        activation = self.activations.get(key)
        if activation is not None and activation.held_by is not None:
            self.former, activation.held_by = activation.held_by, None
            if not activation.is_busy:
                # a turn under way needs it to the end; the fence tells whether it still stands
                activation.record = None
            activation.wake()
            self._rouse()

    def _rouse(self) -> None:
        """Wake the residents: they run without mail."""
        count = self._services.rules.partitions
        for key in self.kind.options.residents:
            if Address(self.kind.name, key).partition(count) == self.number:
                resident = self.activation(key).resident
                if resident is not None:
                    resident.look()

    # --- the cursor

    @property
    def waiting(self) -> int:
        """Actors in memory with unhandled mail."""
        return sum(1 for activation in list(self.activations.values()) if activation.mailbox.first_seq is not None)

    @property
    def depth(self) -> int:
        """Mails waiting in all, as far as they were seen here."""
        return sum(activation.mailbox.depth for activation in list(self.activations.values()))

    @property
    def running(self) -> int:
        """Turns under way."""
        return sum(1 for activation in list(self.activations.values()) if activation.turn is not None)

    def next_cursor(
        self, *, epoch: int | None = None, owner: str | None = None, held: dict[str, str] | None = None
    ) -> Cursor:
        """Return the record as it should stand now."""
        pending: dict[str, int] = {}
        holds: dict[str, str] = {}
        for key, activation in self.activations.items():
            first = activation.mailbox.first_seq
            if first is not None:
                pending[key] = first
            if activation.held_by is not None:
                holds[key] = activation.held_by
                pending.setdefault(key, self.cursor.pending.get(key, self._seen))
        upto, pending = cursors.bounded(self._seen, pending)
        return Cursor(
            epoch=self.cursor.epoch if epoch is None else epoch,
            owner=self.cursor.owner if owner is None else owner,
            upto=upto,
            pending=pending,
            held=holds | (held or {}),
        )

    async def save(self) -> None:
        """Write the cursor if it moved. A refusal means that somebody else owns the partition.

        Raises:
            BusError: If it cannot be written now.
        """
        async with self._writing:
            wanted = self.next_cursor()
            if wanted != self.cursor and not self.is_lost and not self._is_closed:
                _ = await self._write(wanted)

    async def write(self, wanted: Cursor) -> bool:
        """Write the cursor against the one we know; return False, and drop everything, when another stands.

        Raises:
            BusError: If it cannot be written now.
        """
        async with self._writing:
            return await self._write(wanted)

    async def _write(self, wanted: Cursor) -> bool:
        subject = subjects.cursor(self.kind.name, self.number)
        data = cursors.encode(wanted)
        try:
            ack = await self._services.bus.store(
                Write(subject, data, header.build(expected_seq=self.cursor_seq), again=True)
            )
        except ConflictError:
            stored = await self._services.bus.get_last(subjects.ACTORS, subject, from_leader=True)
            if stored is None or stored.data != data:
                await self._check()
                return False
            self.cursor, self.cursor_seq = wanted, stored.seq
            return True
        self.cursor, self.cursor_seq = wanted, ack.seq
        return True

    async def check(self) -> None:
        """Write the cursor anew; drop everything when it is not ours any more.

        A read would not do: a host that took us for dead may be about to write, and both would go on. Of two writes
        against one sequence the second is refused.

        Raises:
            BusError: If it cannot be written now.
        """
        # not while it is being written: what we hand over would look lost, and its turns under way be dropped
        async with self._writing:
            if self.is_gone:
                await self._check()
            while self.cursor.owner == self._services.worker and not self.is_gone:
                if await self._write(self.next_cursor()):
                    self._doubts = False
                    return

    async def _check(self) -> None:
        subject = subjects.cursor(self.kind.name, self.number)
        stored = await self._services.bus.get_last(subjects.ACTORS, subject, from_leader=True)
        try:
            found = cursors.decode(stored.data) if stored is not None else Cursor()
        except DecodeError:
            found = Cursor()
        self._doubts = False
        if self.is_gone:
            self._drop_all_but(found)
            return
        if stored is not None and found.epoch == self.cursor.epoch and found.owner == self._services.worker:
            self.cursor_seq = stored.seq
            return
        _log.warning(events.PARTITION_LOST, type=self.kind.name, partition=self.number, epoch=self.cursor.epoch)
        self.lost_to = found.owner
        self.lose(found.held)

    def _drop_all_but(self, found: Cursor) -> None:
        """Of the turns that we went on with when the partition was another's, drop those that are not ours any more."""
        for key, activation in list(self.activations.items()):
            is_ours = self._services.worker in {found.owner, found.held.get(key)}
            if activation.owner is self and not is_ours:
                del self.activations[key]
                activation.drop()

    async def _check_quietly(self) -> None:
        if self._is_checking:
            return
        self._is_checking = True
        try:
            await self.check()
        except BusError:
            self._doubts = True
        finally:
            self._is_checking = False
        for activation in list(self.activations.values()):
            activation.wake()

    # --- the reader

    def _on_mail(self, stored: Stored) -> None:
        if self.is_lost or self._is_closed:
            return
        self._seen = stored.seq
        mail: Mail = mail_of(stored)
        token = stored.subject.split(".", 4)[4]
        if not is_key(mail.address.key, token):
            _ = self._services.spawn(self._bury_stray(mail, token), "mail-stray")
            return
        self.activation(mail.address.key).deliver(mail)
        if not self._is_on_hold and len(self.activations) >= MAX_WAITING and self.waiting >= MAX_WAITING:
            self._is_on_hold = True
            if self._tail is not None:
                self._tail.hold()

    async def _bury_stray(self, mail: Mail, token: str) -> None:
        """Make a dead letter of a mail for what is no key: it has no actor that could handle it."""
        services = self._services
        failure = failure_of(wrong_key(token))
        try:
            letter = await letter_of(
                mail, failure, attempts=0, worker=services.worker, at=services.clock.now(), blobs=services.blobs
            )
            await write_letter(services.bus, mail, letter, token=token)
        except BusError as error:
            _log.warning(events.MAIL_REFUSED, actor=str(mail.address), mails=1, policy="", problem=str(error))
            return
        _log.error(events.MAIL_DEAD_LETTERED, actor=str(mail.address), seq=mail.seq, attempts=0, code=failure.code)
