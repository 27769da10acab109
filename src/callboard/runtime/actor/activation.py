"""One actor in memory: its mailbox, its record, and the loop that handles one mail after another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from callboard.runtime import crash, events, logs, subjects
from callboard.runtime.actor import payload, supervise, verdict
from callboard.runtime.actor import reply as replies
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.commit import Committed, Fenced, Refused
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.execute import STOP_LOST
from callboard.runtime.actor.letter import letter_of, write_letter
from callboard.runtime.actor.mail import Mail, mail_of
from callboard.runtime.actor.mailbox import Mailbox, next_stored
from callboard.runtime.actor.overflow import Overflow
from callboard.runtime.actor.ports import Owner, Stays
from callboard.runtime.actor.record import ASKERS_KEPT, Parked, Reply, StateRecord, decode, encode
from callboard.runtime.actor.resident import resident_of
from callboard.runtime.actor.run import Runner
from callboard.runtime.actor.services import Services
from callboard.runtime.actor.state import actor_of
from callboard.runtime.actor.turn import Turn
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import (
    BusClosedError,
    BusError,
    CallboardError,
    DecodeError,
    StateDecodeError,
    TurnFencedError,
)
from callboard.runtime.record import Failure

_log = logs.get_logger(__name__)
_RETRY_S = 0.25
# Ids of asks that one activation keeps in memory; 100 KB at most, for the busiest actors only.
IDS_RECENT = 1024


class Activation:
    """One actor of a partition that this worker owns, or still has in mid-turn.

    Attributes:
        record: What stands in the stream; None before it was read.
        seq: Sequence of that record, 0 when there is none.
        turn: The turn under way.
        held_by: Another worker that has it in mid-turn: nothing runs here meanwhile.
        is_dropped: Somebody else runs it; nothing that it still does here counts.
        is_leaving: The partition was handed over: the turn under way is the last one.
        is_doubtful: It was another's to wait for when this process stood still or was cut off: that one may have
            begun the turn under way.
        problem: Why it cannot be run here, for people.
        idle_since_s: Monotonic seconds since when nothing happened.
    """

    def __init__(
        self, services: Services, kind: ActorType, address: Address, owner: Owner, *, read_from: int | None = None
    ) -> None:
        """Begin idle. ``read_from``: mail from this sequence on may wait in the stream."""
        self.address = address
        self.kind = kind
        self.owner = owner
        self.mailbox = Mailbox(address, owner.number, read_from=read_from)
        self.record: StateRecord | None = None
        self.seq = 0
        self.turn: Turn | None = None
        self.held_by: str | None = None
        self.is_leaving = False
        self.is_doubtful = False
        self.problem: str | None = None
        self.idle_since_s = services.clock.monotonic()
        self.services = services
        self.runner = Runner(self)
        self.overflow = Overflow(self)
        self.resident: Stays | None = resident_of(self, self.runner.instance)
        self._scanned = 0
        self._told: set[int] = set()
        self._recent: dict[str, None] = {}
        self._held_at: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._next_kind: ActorType | None = None
        self.is_dropped = False
        self._lock = asyncio.Lock()

    # --- what comes in

    @property
    def is_busy(self) -> bool:
        """Whether its loop runs."""
        return self._task is not None

    @property
    def is_gone(self) -> bool:
        """Whether somebody else runs it, or is about to: no further turn begins here."""
        return self.is_dropped or self.is_leaving

    @property
    def under_way(self) -> int:
        """Sequence of the mail that is being handled, also between two attempts; 0 when none is."""
        return self.runner.job.cause_seq if self.runner.job is not None else 0

    @property
    def known(self) -> StateRecord:
        """The record, as it stands.

        Raises:
            RuntimeError: Before it was read; the loop reads it first.
        """
        if self.record is None:
            message = f"{self.address} was not read yet"
            raise RuntimeError(message)
        return self.record

    def deliver(self, mail: Mail) -> None:
        """Take a mail that the partition heard."""
        if not self.mailbox.push(mail):
            return
        if self.runner.inner.takes(mail):
            return
        if self.held_by is None and self.overflow.is_over(mail):
            self.overflow.add(mail)
        self.wake()

    def wake(self) -> None:
        """Let the loop look: mail came, a hold ended, an order changed something."""
        self.runner.nudge.set()
        if self._task is None and not self.is_dropped and self.held_by is None and not self.is_leaving:
            self._task = self.services.spawn(self._run(), f"actor-{self.address}")

    def use(self, kind: ActorType) -> None:
        """Run another class from the next turn on; the turn under way ends with the class it began with."""
        self._next_kind = kind
        if not self.is_busy:
            self._renew()
            if self.problem is not None:
                self.wake()

    def _renew(self) -> None:
        if self._next_kind is not None:
            self.kind, self._next_kind = self._next_kind, None
            self.runner.forget()

    def leave(self) -> None:
        """Begin no further turn: somebody else goes on. The one under way ends here."""
        self.is_leaving = True
        self.runner.leave()

    def drop(self) -> None:
        """Forget it at once: somebody else runs it now. A turn under way ends without a trace."""
        self.is_dropped = True
        self.runner.stop(STOP_LOST, "another host runs this actor now")
        if self.resident is not None:
            self.resident.look()
        if self._task is not None and self.turn is None:
            self._task.cancel()

    async def may_go_on(self) -> bool:
        """Return whether the mail under way may be attempted again here: nobody has taken us for dead meanwhile.

        Raises:
            BusError: If that cannot be found out now.
        """
        if not self.owner.is_gone:
            return await self.owner.is_ours()
        services = self.services
        is_silent = services.echo_age_s() > services.rules.echo_limit_s or not services.bus.is_connected
        return not (self.is_dropped or self.is_doubtful or is_silent)

    async def may_begin(self) -> bool:
        """Return whether a step of the turn under way may begin here; see ``Partition.still_runs``."""
        return await self.owner.still_runs(self) and not self.is_dropped

    def doubt(self) -> None:
        """Look at the cursor before the next step: another host has recorded one of this turn."""
        self.owner.doubt()

    def fenced(self) -> None:
        """Another host wrote the record since: what we know of it is old, and the partition may be another's."""
        _log.warning(events.TURN_FENCED, actor=str(self.address), epoch=self.owner.epoch)
        self.record = None
        self.runner.forget()
        self.owner.doubt()

    # --- the loop

    async def _run(self) -> None:
        try:
            while not self.is_dropped and not self.is_leaving:
                self.runner.nudge.clear()
                if not await self._step():
                    if self.runner.nudge.is_set():
                        continue
                    break
        except TurnFencedError:
            self.fenced()
        except BusClosedError:
            # the worker goes down: whoever comes next finds everything as it stands
            self.is_leaving = True
        except CallboardError as error:
            # a state that cannot be loaded, or a refusal such as a missing permission: the mail waits, the neighbours
            # are not concerned
            await self._stand_still(error)
        finally:
            self._task = None
            self.idle_since_s = self.services.clock.monotonic()
            self.owner.settled(self)

    async def _stand_still(self, error: CallboardError) -> None:
        """Keep the mail until something changes: new code, an order, more mail. Whoever asks is told at once."""
        problem = f"{error.code}: {error}"
        if problem != self.problem:
            _log.error(events.ACTOR_FAILED, actor=str(self.address), code=error.code, message=str(error))
        asks = [mail for mail in self.mailbox.waiting() if mail.reply_to and mail.seq not in self._told]
        answers = [(mail, replies.error_reply(mail.id, error)) for mail in asks]
        try:
            if answers and self.record is not None:
                # their mail is done with: who was told of an error must not find later that it was handled
                await self.commit([mail.seq for mail in asks], to=answers, remembers=False)
                answers = []
        except TurnFencedError:
            self.fenced()
        except CallboardError as second:
            _log.warning(events.MAIL_REFUSED, actor=str(self.address), mails=0, policy="", problem=str(second))
        for mail, reply in answers:
            self._told.add(mail.seq)
            await self.answer(mail, reply)
        self.problem = problem

    async def _step(self) -> bool:
        """Handle one mail, or find that none may be handled now."""
        self._renew()
        if self.record is None and not await self._load():
            return False
        if self.mailbox.must_read and not await self._refill():
            return False
        mail = verdict.next_mail(self.known, self.mailbox)
        try:
            if mail is None and verdict.is_holding(self.known):
                mail = await self._awaited_beyond()
            if mail is None:
                return self.mailbox.must_read
            if not await self.owner.is_ours():
                return False
            mail = await payload.whole(self.services.blobs, mail)
        except BusError as error:
            if not error.retryable:
                raise
            await self.services.clock.sleep(_RETRY_S)
            return True
        if self.overflow.claims(mail):
            return False
        await self._handle(mail)
        return True

    async def ensure_read(self) -> None:
        """Read the record if it was not read yet, for an order.

        Raises:
            BusError: If it cannot be read now.
            StateDecodeError: If it is none.
        """
        async with self._lock:
            if self.record is None:
                await self._fetch()

    async def has_moved(self) -> bool:
        """Return whether a mail was handled since this was asked first, by the record that stands at the leader.

        The cursor does not tell: its bound may be a mail that was handled before the turn under way began.

        Raises:
            BusError: If it cannot be read now.
            DecodeError: If what stands is no record.
        """
        subject = subjects.state(self.address.type, self.address.key)
        stored = await self.services.bus.get_last(subjects.ACTORS, subject, from_leader=True)
        applied = decode(stored.data).applied if stored is not None else 0
        if self._held_at is None:
            self._held_at = applied
        return applied > self._held_at

    async def _load(self) -> bool:
        try:
            await self.ensure_read()
        except BusError:
            await self.services.clock.sleep(_RETRY_S)
            self.runner.nudge.set()
            return False
        except StateDecodeError as error:
            await self._stand_still(error)
            return False
        return True

    async def _fetch(self) -> None:
        subject = subjects.state(self.address.type, self.address.key)
        stored = await self.services.bus.get_last(subjects.ACTORS, subject, from_leader=True)
        try:
            self.record = decode(stored.data) if stored is not None else StateRecord()
        except DecodeError as error:
            message = f"the record of {self.address} cannot be read, its mail waits: {error}"
            raise StateDecodeError(message) from error
        self.seq = stored.seq if stored is not None else 0
        self.problem = None
        self.services.enrol(self.kind, self.address.key, self.record.status, self.record.reason)

    async def _refill(self) -> bool:
        try:
            await self.mailbox.read(self.services.bus, above=self.known.applied)
        except BusError:
            await self.services.clock.sleep(_RETRY_S)
            self.runner.nudge.set()
            return False
        return True

    async def _awaited_beyond(self) -> Mail | None:
        """Look behind what lies in memory for the mail that a turn waits for which holds all other mail up."""
        start = max(self._scanned + 1, self.mailbox.cut_from or 0)
        if self.mailbox.cut_from is None:
            return None
        subject = subjects.mailbox(self.address.type, self.owner.number, self.address.key)
        stored = await next_stored(self.services.bus, start, subject)
        while stored is not None:
            mail = mail_of(stored)
            if not self.known.has_applied(mail.seq) and verdict.awaited_by(mail, self.known) is not None:
                return mail
            self._scanned = stored.seq
            stored = await next_stored(self.services.bus, stored.seq + 1, subject)
        return None

    async def _handle(self, mail: Mail) -> None:
        now = self.services.clock.now()
        found = verdict.judge(mail, self.known, self.kind, now=now, recent=self._recent)
        match found:
            case verdict.Skip():
                await self.commit([mail.seq])
            case verdict.Join(parked=parked):
                await self._join(mail, parked)
            case verdict.Answer(reply=reply):
                await self.commit([mail.seq], to=((mail, reply),), remembers=False)
            case verdict.Dead(failure=failure):
                await self.bury(mail, failure, attempts=0)
            case verdict.Run():
                await self.runner.run(mail)
            case verdict.Resume(parked=parked):
                await self.runner.resume(mail, parked)

    async def _join(self, mail: Mail, parked: Parked) -> None:
        """Have a repeat of a parked turn's question answered with it."""
        if not mail.reply_to or mail.reply_to in parked.askers:
            await self.commit([mail.seq])
            return
        askers = [*parked.askers, mail.reply_to][-ASKERS_KEPT:]
        await self.commit([mail.seq], changes={"parked": verdict.parking(replace(parked, askers=askers))})

    # --- what it writes

    async def commit(
        self,
        applied: Sequence[int],
        *,
        to: Sequence[tuple[Mail, Reply]] = (),
        writes: Sequence[Write] = (),
        remembers: bool = True,
        changes: Mapping[str, object] | None = None,
    ) -> None:
        """Write the next record: the mails in ``applied`` are handled, ``changes`` are made, ``writes`` go along.

        A function among the ``changes`` is given the record before this one: others may write until then. Replies are
        sent once it stands; with ``remembers`` they are kept for callers that ask again.

        Raises:
            TurnFencedError: If another host has written since; nothing stands, nobody was answered.
            CallboardError: If it can never be stored (too large).
        """
        async with self._lock:
            base = self.known
            record = verdict.apply(base, applied, self.mailbox.oldest_but({*applied, *base.ahead}))
            if remembers:
                record = verdict.remember(record, to)
            record = replace(
                record,
                by=self.services.worker,
                epoch=self.owner.epoch,
                mail=applied[0] if applied else 0,
                at=self.services.clock.now(),
                **{name: made(base) if callable(made) else made for name, made in (changes or {}).items()},
            )
            subject = subjects.state(self.address.type, self.address.key)
            write = Write(subject, encode(record), header.build(expected_seq=self.seq))
            result = await self.services.committer.commit(write, *writes)
            match result:
                case Committed(seqs=seqs):
                    self.record, self.seq = record, seqs[0]
                    self.problem = None
                    self.owner.committed(self.address.key, self.seq)
                    if record.status != base.status:
                        self.services.enrol(self.kind, self.address.key, record.status, record.reason)
                case Fenced():
                    message = f"{self.address} was written by another host since: this turn is thrown away"
                    raise TurnFencedError(message)
                case Refused(error=error):
                    raise error
        self._scanned = 0
        if remembers:
            self._remember(to)
        for seq in applied:
            self.mailbox.remove(seq)
        if crash.point:
            crash.at("before-reply")
        for mail, reply in to:
            await self.answer(mail, reply)
            for asker in verdict.askers_of(mail, base, record):
                await replies.send(self.services, asker, reply)

    def _remember(self, answered: Sequence[tuple[Mail, Reply]]) -> None:
        """Keep ids of asks beyond those in the record: a host that stood still stores its copy of a question late."""
        for mail, _ in answered:
            if mail.has_own_id and mail.reply_to:
                self._recent[verdict.digest_of(mail.id)] = None
        while len(self._recent) > IDS_RECENT:
            del self._recent[next(iter(self._recent))]

    async def answer(self, mail: Mail, reply: Reply) -> None:
        """Send an answer to whoever waits for one; a lost one is asked for again under the same id."""
        if mail.reply_to:
            await replies.send(self.services, mail.reply_to, reply)

    async def bury(
        self,
        mail: Mail,
        failure: Failure,
        *,
        attempts: int,
        cause_seq: int | None = None,
        changes: Mapping[str, object] | None = None,
        writes: Sequence[Write] = (),
    ) -> None:
        """Make a dead letter of a mail and go on after it; enough of them in a row fail the actor.

        ``cause_seq`` is the mail that counts as handled, where it is not the same: a parked turn's awaited one.
        """
        await self.letter(mail, failure, attempts=attempts)
        changed, sent = {"timers": verdict.firing(mail), **(changes or {})}, list(writes)
        if supervise.is_poison(failure, attempts=attempts, is_ask=bool(mail.reply_to)):
            changed["failures"] = failures = self.known.failures + 1
            if failures >= self.kind.options.poison_limit:
                last = f"{failure.code}: {failure.message}"
                reason = f"{failures} mails in a row became dead letters, the last one by {last}"
                failed, notices = supervise.failing(self, failure, reason, seq=mail.seq)
                changed |= failed
                sent += notices
        reply = replies.failure_reply(mail.id, failure)
        await self.commit([cause_seq or mail.seq], to=((mail, reply),), changes=changed, writes=sent)
        _log.error(
            events.MAIL_DEAD_LETTERED, actor=str(self.address), seq=mail.seq, attempts=attempts, code=failure.code
        )
        if "reason" in changed:
            _log.error(events.ACTOR_FAILED, actor=str(self.address), code=failure.code, message=str(changed["reason"]))

    async def letter(self, mail: Mail, failure: Failure, *, attempts: int) -> None:
        """Store a mail's dead letter, however long the broker needs; the mail counts as handled only after it.

        Raises:
            BusError: If it can never be stored.
        """
        services, now = self.services, self.services.clock.now()
        while not self.is_dropped:
            try:
                letter = await letter_of(
                    mail, failure, attempts=attempts, worker=services.worker, at=now, blobs=services.blobs
                )
                await write_letter(services.bus, mail, letter)
            except BusError as error:
                if not error.retryable:
                    raise
                await services.clock.sleep(_RETRY_S)
            else:
                services.stats[self.kind.name].dead += 1
                return

    async def new_actor(self) -> Actor:
        """Return an instance with the state that stands.

        Raises:
            CallboardError: If the state does not fit the class, or cannot be read now.
        """
        while True:
            try:
                return await actor_of(self.kind, self.address, self.known, self.services.blobs)
            except BusError as error:
                if not error.retryable:
                    raise
                await self.services.clock.sleep(_RETRY_S)
