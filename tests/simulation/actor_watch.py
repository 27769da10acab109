"""Every write to the actors' stream, seen as it happens, and what must be true of all of them together."""

from __future__ import annotations

from collections import Counter

import msgspec
from msgspec import Raw, Struct

from callboard.runtime import subjects
from callboard.runtime.actor import cursor, record
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.mail import Mail, mail_of
from callboard.runtime.actor.record import StateRecord
from callboard.runtime.simulation.world import World
from tests.simulation.actor_cast import KIND, Go, Hold, Note, Payment, Rung


class Seen(Struct):
    """The state of a ``Ledger`` as it is stored."""

    seen: list[str] = []
    paid: dict[str, list[Payment]] = {}


class StandingStep(Struct):
    """What the checker reads of a step's record."""

    value: Raw
    worker: str = ""


_seen = msgspec.json.Decoder(Seen)
_step = msgspec.json.Decoder(StandingStep)
_payment = msgspec.json.Decoder(Payment)


class Watch:
    """Reads each message when it is stored, before anything could purge it.

    Attributes:
        problems: What was wrong with a single write.
        mails: By key, in the order of the stream.
        states: The latest record by key, with its content.
        paid: Recorded payments by turn and part.
    """

    def __init__(self, world: World, *, partitions: int) -> None:
        self._partitions = partitions
        self.problems: list[str] = []
        self.mails: dict[str, list[Mail]] = {}
        self.states: dict[str, tuple[StateRecord, Seen]] = {}
        self.paid: dict[tuple[str, int], Payment] = {}
        self.committed: set[str] = set()
        self.epochs: Counter[str] = Counter()
        self._owners: dict[str, dict[int, str]] = {}
        self._log = world.simulation.broker.stream(subjects.ACTORS)
        self._next = self._log.last_seq + 1
        self._log.on_append.append(self._look)

    def stands(self, turn: str, part: int) -> bool:
        """Return whether a payment of this part of a turn is recorded."""
        return (turn, part) in self.paid

    def _look(self) -> None:
        while (found := self._log.next_record(self._next, ())) is not None:
            self._next = found.seq + 1
            area = found.subject.split(".")[1]
            if area == "mbox":
                mail = mail_of(found.stored())
                self.mails.setdefault(mail.address.key, []).append(mail)
            elif area == "state" and found.subject.count(".") == 3:
                self._on_state(found.subject.split(".")[3], found.data)
            elif area == "step":
                self._on_step(found.subject, found.data)
            elif area == "cursor":
                self._on_cursor(found.subject, found.data)

    def _on_state(self, key: str, data: bytes) -> None:
        new = record.decode(data)
        content = _seen.decode(new.state) if isinstance(new.state, Raw) else Seen()
        old, before = self.states.get(key, (StateRecord(), Seen()))
        if new.epoch < old.epoch:
            self.problems.append(f"I5 {key}: {new.by} of epoch {new.epoch} wrote after epoch {old.epoch}")
        # a former owner may finish the turn that it holds, before the owner's first
        if new.epoch == old.epoch and new.by != old.by == self._owner(key, new.epoch):
            self.problems.append(f"I5 {key}: {new.by} wrote after {old.by}, the owner in epoch {new.epoch}")
        if new.applied < old.applied:
            self.problems.append(f"I4 {key}: applied went back from {old.applied} to {new.applied}")
        if content.seen[: len(before.seen)] != before.seen or len(content.seen) > len(before.seen) + 1:
            self.problems.append(f"I4 {key}: {before.seen[-3:]} was followed by {content.seen[-3:]}")
        self.states[key] = (new, content)
        self.committed.update(content.seen[len(before.seen) :])

    def _owner(self, key: str, epoch: int) -> str | None:
        number = Address(KIND, key).partition(self._partitions)
        return self._owners.get(subjects.cursor(KIND, number), {}).get(epoch)

    def _on_step(self, subject: str, data: bytes) -> None:
        _, _, kind, token, seq, name, *_ = subject.split(".")
        if name != "pay":
            return
        payment = _payment.decode(_step.decode(data).value)
        turn = f"{kind}/{subjects.unescape(token)}/{seq}"
        if (turn, payment.part) in self.paid:
            self.problems.append(f"I2 {turn}: part {payment.part} is recorded twice")
        self.paid[turn, payment.part] = payment

    def _on_cursor(self, subject: str, data: bytes) -> None:
        found = cursor.decode(data)
        owners = self._owners.setdefault(subject, {})
        if found.owner and owners.setdefault(found.epoch, found.owner) != found.owner:
            self.problems.append(f"I5 {subject}: epoch {found.epoch} was {owners[found.epoch]}'s and {found.owner}'s")
        if found.epoch < self.epochs[subject]:
            self.problems.append(f"I5 {subject}: epoch went back from {self.epochs[subject]} to {found.epoch}")
        self.epochs[subject] = found.epoch

    # --- at the end

    def unsettled(self) -> list[str]:
        """Return what is still to come, in words."""
        found = []
        for key, mails in self.mails.items():
            state = self.states.get(key, (StateRecord(), Seen()))[0]
            behind = sum(mail.seq > state.applied and mail.seq not in state.ahead for mail in mails)
            if behind or state.parked or state.timers:
                found.append(f"{key}: {behind} unapplied, parked {state.parked}, timers {sorted(state.timers)}")
        return found

    def verdict(self, *, acked: set[str]) -> list[str]:
        """Return what is wrong now that everything has settled."""
        problems = list(self.problems)
        ids: Counter[str] = Counter()
        for key, mails in sorted(self.mails.items()):
            state, content = self.states.get(key, (StateRecord(), Seen()))
            wanted = expected(mails, content.seen)
            if content.seen != wanted:
                problems.append(f"I4 {key}: {_difference(content.seen, wanted)}")
            ids.update(wanted)
            if state.status != "active":
                problems.append(f"{key} is {state.status}: {state.reason}")
            problems += self._unpaid(key, mails, content)
        problems += [f"I1 lost: {name}" for name in sorted(acked - set(ids))]
        problems += [f"I2 doubled: {name}, {count} times" for name, count in sorted(ids.items()) if count > 1]
        return problems

    def _unpaid(self, key: str, mails: list[Mail], content: Seen) -> list[str]:
        problems = []
        for name, payments in content.paid.items():
            # a question asked again has several mails
            turns = [f"{KIND}/{key}/{mail.seq}" for mail in mails if mail.type == "Note" and _note(mail).id == name]
            problems += [
                f"I2 {key}: the state has {payment} for {name}, recorded is another"
                for payment in payments
                if all(self.paid.get((turn, payment.part)) != payment for turn in turns)
            ]
        return problems


def expected(mails: list[Mail], seen: list[str]) -> list[str]:
    """Return what an actor has written down when it has handled ``mails``, in their order and each once.

    A mail with a deadline may have been too late: whether it was, ``seen`` tells.
    """
    labels: list[str] = []
    known: set[str] = set()
    held: set[str] = set()
    for mail in mails:
        if mail.has_own_id and mail.id in known:
            continue
        label = _label(mail, held)
        if mail.deadline is not None and seen[len(labels) : len(labels) + 1] != [label]:
            continue
        known.add(mail.id)
        labels += [label] if label else []
    return labels


def _label(mail: Mail, held: set[str]) -> str:
    match mail.type:
        case "Note":
            return _note(mail).id
        case "Hold":
            held.add(msgspec.json.decode(mail.data, type=Hold).id)
            return ""
        case "Go":
            go = msgspec.json.decode(mail.data, type=Go).id
            return f"{'went' if go in held else 'stray'}/{go}"
        case "Rung":
            return f"rung/{msgspec.json.decode(mail.data, type=Rung).id}"
        case _:
            return f"unknown {mail.type}"


def _note(mail: Mail) -> Note:
    return msgspec.json.decode(mail.data, type=Note)


def _difference(found: list[str], wanted: list[str]) -> str:
    place = next(
        (n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
    )
    return f"at {place} of {len(wanted)} there is {found[place : place + 3]}, wanted {wanted[place : place + 3]}"
