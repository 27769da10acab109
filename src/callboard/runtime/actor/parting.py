"""Where a turn that ran again parts from what is recorded of it, the first place first."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct

from callboard.runtime import codec, subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.address import Address
from callboard.runtime.actor.definition import ActorType
from callboard.runtime.actor.difference import Change, difference
from callboard.runtime.actor.execute import Done, Ending, Raised, Waits
from callboard.runtime.actor.history import Version
from callboard.runtime.actor.recall import Recall, Wanted, plain
from callboard.runtime.actor.recording import ENGINES, SKEW_S, Recorded, Recording, Sent
from callboard.runtime.actor.turn import Turn
from callboard.runtime.blobs import BlobStore
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Write
from callboard.runtime.errors import CallboardError, HistoryError, NotFoundError
from callboard.runtime.record import failure_of

Kind = Literal["step", "gone", "outside", "end", "error", "wait", "sent", "reply", "state"]


class Difference(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One place in which today's run parts from the recorded one.

    Attributes:
        kind: ``step``: today's code asks for a step that has no record. ``gone``: it no longer asks for one that has.
            ``outside``: it tries something outside of steps. ``end``: it does not end. ``error``: it fails, or fails
            otherwise, or no longer. ``wait``: it waits, or waits no longer. ``sent``: another mail or event. ``reply``,
            ``state``: another one.
        name: Of the step, of the message, of the error.
        entry: Of the step: today's, that of the record for ``gone``.
        was: Entry of the recorded step that stands in its place, for ``step``.
        then: What was asked, sent, answered then, as plain values; None where it is not known.
        now: The same today.
        changes: Place by place what differs of a reply or a state.
        text: One sentence for people.
    """

    kind: Kind
    text: str
    name: str = ""
    entry: str = ""
    was: str = ""
    then: Any = None
    now: Any = None
    changes: list[Change] = []


class Now(Struct, frozen=True, kw_only=True):
    """What came of the turn today.

    Attributes:
        ending: How its handler ended; None if it did not, or wants a step without a record.
        actor: Its object.
        turn: The turn; None where no handler takes the mail any more.
    """

    ending: Ending | None
    actor: Actor
    turn: Turn | None = None


def raw(data: bytes) -> Raw:
    """Return JSON as a stored state holds it."""
    return Raw(data)


async def state_after(kind: ActorType, version: Version, blobs: BlobStore) -> bytes | None:
    """Return the state that a version holds as today's class writes it; None for a class without one.

    Raises:
        HistoryError: If it lay in the object store and is there no more.
        StateDecodeError: If it does not fit today's class.
    """
    if not kind.has_state:
        return None
    found = version.record
    stored = found.state
    if found.blob is not UNSET:
        try:
            stored = Raw(await blobs.get(found.blob))
        except NotFoundError as error:
            text = f"the state of version {version.seq} was too large for a record, and its object is gone: {error}"
            raise HistoryError(text) from error
    return kind.dump_state(kind.load_state(stored, found.schema))


class Parting:
    """Compares one run with the records."""

    def __init__(
        self,
        found: Recording,
        kind: ActorType,
        recall: Recall,
        *,
        asked: Callable[[Recording, Recorded], object],
        passing: Sequence[str],
    ) -> None:
        """Prepare; see ``rerun.Habits`` for ``asked`` and ``passing``."""
        self._recording = found
        self._kind = kind
        self._recall = recall
        self._asked = asked
        self._passing = tuple(passing)
        skew = timedelta(seconds=SKEW_S)
        self._span = (found.began - skew, found.ended + skew)

    def differences(self, now: Now, tried: Sequence[str], then: bytes | None) -> list[Difference]:
        """Return all differences: steps in their order, then what came of them."""
        is_cut = bool(self._recording.stopped)
        # one that was stopped had asked for no more when nothing is left
        is_as_far = is_cut and not self._left()
        steps = [] if is_as_far else self._steps(is_whole=isinstance(now.ending, Done | Waits) and not is_cut)
        outside = [Difference(kind="outside", name=each, text=f"outside of steps it tries {each}") for each in tried]
        if self._recall.wanted or is_cut:
            # how it ends is not known: it has not come so far
            return [*steps, *outside]
        return [*steps, *outside, *self._end(now, then)]

    # --- steps

    def _steps(self, *, is_whole: bool) -> list[Difference]:
        left = self._left()
        latest = max((self._place(entry) for entry in self._recall.served), default=0)
        found: list[Difference] = []
        for wanted in self._recall.wanted:
            pair = self._pair(wanted, left)
            if pair is not None:
                left.remove(pair)
            found.append(self._wanted(wanted, pair))
        # before the place that was reached, or all when the handler came to its end
        passed = [each for each in left if is_whole or each.place < latest]
        gone = [self._gone(each) for each in passed]
        is_first = bool(passed) and (not found or not found[0].was or passed[0].place < self._place(found[0].was))
        return [*gone, *found] if is_first else [*found, *gone]

    def _left(self) -> list[Recorded]:
        """Return the recorded steps of the handler itself that were not asked for."""
        steps, served = self._recording.steps, self._recall.served
        return [
            each
            for entry, each in steps.items()
            if entry not in served and not each.parent and not (self._passing and each.name.startswith(self._passing))
        ]

    def _place(self, entry: str) -> int:
        found = self._recording.steps.get(entry)
        return found.place if found is not None else 0

    def _pair(self, wanted: Wanted, left: Sequence[Recorded]) -> Recorded | None:
        """Return the recorded step that stands where the wanted one does: the first of its name.

        Where several of the name are wanted side by side, the most alike of as many.
        """
        beside = sum(each.name == wanted.name for each in self._recall.wanted)
        same = [each for each in left if each.name == wanted.name][:beside]
        if len(same) < 2:  # noqa: PLR2004 - nothing to choose
            return next(iter(same), None)
        text = _text(wanted.asked)
        return max(same, key=lambda each: _alike(_text(self._then(each)), text))

    def _then(self, each: Recorded) -> object:
        return plain(self._asked(self._recording, each))

    def _wanted(self, wanted: Wanted, pair: Recorded | None) -> Difference:
        if pair is None:
            text = f"step {wanted.name!r} has no record: today's code asks for it, the recorded run did not"
            return Difference(kind="step", name=wanted.name, entry=wanted.entry, now=wanted.asked, text=text)
        return Difference(
            kind="step",
            name=wanted.name,
            entry=wanted.entry,
            was=pair.entry,
            then=self._then(pair),
            now=wanted.asked,
            text=f"step {wanted.name!r} asks for something else",
        )

    def _gone(self, each: Recorded) -> Difference:
        text = f"step {each.name!r} was recorded, and today's code does not ask for it"
        return Difference(kind="gone", name=each.name, entry=each.entry, then=self._then(each), text=text)

    # --- what came of it

    def _end(self, now: Now, then: bytes | None) -> Iterator[Difference]:
        match now.ending:
            case Raised(error=error):
                yield from self._failed(error)
            case Waits():
                yield from self._waits(now.turn)
            case Done(value=value):
                yield from self._done(now, value, then)
            case _:
                yield Difference(kind="end", text="the handler does not come to its end on the records")

    def _failed(self, error: BaseException) -> Iterator[Difference]:
        found = self._recording
        failure = failure_of(error)
        said = found.reply.error if found.reply is not None and found.reply.error is not UNSET else None
        if said.code == failure.code if said is not None else found.failed:
            return
        text = f"today it fails: {failure.code}: {failure.message}"
        then = {"code": said.code, "message": said.message} if said is not None else None
        now = {"code": failure.code, "message": failure.message}
        yield Difference(kind="error", name=failure.type or failure.code, then=then, now=now, text=text)

    def _waits(self, turn: Turn | None) -> Iterator[Difference]:
        wait = turn.wait if turn is not None else None
        was = self._recording.parked
        if wait is None:
            return
        where = msgspec.json.decode(codec.encode(dict(wait.where))) if wait.where is not None else None
        now = {"awaiting": wait.awaiting, "where": where, "hold": wait.hold}
        if was is None:
            text = f"today it waits for {wait.awaiting}, where it went on"
            yield Difference(kind="wait", name=wait.awaiting, now=now, text=text)
            return
        known = msgspec.json.decode(was.where) if was.where is not UNSET else None
        then = {"awaiting": was.awaiting, "where": known, "hold": was.hold}
        if then != now:
            text = f"today it waits for {wait.awaiting}, and waited for {was.awaiting}"
            yield Difference(kind="wait", name=wait.awaiting, then=then, now=now, text=text)

    def _done(self, now: Now, value: object, then: bytes | None) -> Iterator[Difference]:
        found = self._recording
        if found.parked is not None:
            text = f"it waited for {found.parked.awaiting}, and today it goes on"
            yield Difference(kind="wait", name=found.parked.awaiting, text=text)
            return
        if found.failed or (found.reply is not None and found.reply.error is not UNSET):
            text = "it failed for good then, and comes to its end today"
            yield Difference(kind="error", text=text, then=plain(found.reply))
            return
        if now.turn is not None:
            yield from self._sent(now.turn)
        yield from self._reply(value)
        yield from self._state(now.actor, then)

    def _sent(self, turn: Turn) -> Iterator[Difference]:
        was, new = _grouped(self._recording.sent), _grouped(_sent(turn.own_outgoing))
        for place in dict.fromkeys((*was, *new)):
            then, now = [[_value(each.data) for each in group.get(place, [])] for group in (was, new)]
            kind, to, name = place
            changes = self._changes(codec.encode(then), codec.encode(now))
            if changes:
                what = f"{kind} {name}".strip() + (f" to {to}" if kind == "mail" else "")
                text = f"{what}: {len(then)} then, {len(now)} today, and they are not the same"
                yield Difference(kind="sent", name=name or kind, then=then, now=now, changes=changes, text=text)

    def _reply(self, value: object) -> Iterator[Difference]:
        was = self._recording.reply
        if was is None or was.error is not UNSET or header.STREAM in self._recording.mail.headers:
            return
        try:
            data = codec.encode(value)
        except CallboardError as error:
            yield Difference(kind="error", name=error.code, text=f"today's answer has no JSON form: {error}")
            return
        changes = self._changes(bytes(was.value) if was.value is not UNSET else b"null", data)
        if changes:
            yield Difference(kind="reply", name="reply", changes=changes, text="another answer")

    def _state(self, actor: Actor, then: bytes | None) -> Iterator[Difference]:
        if then is None:
            return
        try:
            data = self._kind.dump_state(actor.state)
        except CallboardError as error:
            yield Difference(kind="error", name=error.code, text=f"today's state cannot be stored: {error}")
            return
        changes = self._changes(then, data)
        if changes:
            yield Difference(kind="state", name="state", changes=changes, text="another state")

    def _changes(self, then: bytes, now: bytes) -> list[Change]:
        """Return what differs, but for moments inside the turn: each run of it takes its own from the clock."""
        return [each for each in difference(then, now) if not (self._is_moment(each.old) and self._is_moment(each.new))]

    def _is_moment(self, value: object) -> bool:
        if not isinstance(value, Raw):
            return False
        found = msgspec.json.decode(value)
        try:
            at = datetime.fromisoformat(found) if isinstance(found, str) else None
        except ValueError:
            return False
        if at is None or at.tzinfo is None:
            return False
        first, last = self._span
        return first <= at <= last


def _sent(writes: Sequence[Write]) -> list[Sent]:
    """Return mails and events among the writes of a turn; timers and delayed mails are not recorded for ever."""
    found = []
    for write in writes:
        parts = write.subject.split(".")
        name = (write.headers or {}).get(header.TYPE, "")
        if parts[1] == "mail" or (parts[1] == "event" and name not in ENGINES):
            to = str(Address(parts[2], subjects.unescape(parts[3])))
            found.append(Sent(kind=parts[1], to=to, type=name, data=write.data))
    return found


def _grouped(sent: Sequence[Sent]) -> dict[tuple[str, str, str], list[Sent]]:
    found: dict[tuple[str, str, str], list[Sent]] = {}
    for each in sent:
        found.setdefault((each.kind, each.to, each.type), []).append(each)
    return found


def _value(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return data.hex()


def _text(value: object) -> str:
    return codec.encode(value).decode()


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).quick_ratio()
