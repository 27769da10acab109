"""An actor's state record: what every turn writes, by compare-and-set, on ``cb.state.<type>.<key>``."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from callboard.runtime.actor.address import Address
from callboard.runtime.blobs import BlobRef
from callboard.runtime.errors import AskFailedError, DecodeError

# Replies kept for callers that repeat an ask; the ids of more are kept, so that a late repeat has no second effect.
REPLIES_KEPT = 16
# Repeats of one parked ask that are answered; of more the latest ones.
ASKERS_KEPT = 8
IDS_KEPT = 64

Status = Literal["active", "paused", "failed", "killed"]


class Reply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an ask was answered with: a value or an error."""

    id: str
    value: Raw | UnsetType = UNSET
    blob: BlobRef | UnsetType = UNSET
    error: ReplyError | UnsetType = UNSET


class ReplyError(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an ask has no answer."""

    code: str
    message: str
    type: str = ""


class AskOutcome(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a journaled ask came to."""

    value: Any = None
    error: ReplyError | UnsetType = UNSET

    def given(self, address: Address) -> Any:  # noqa: ANN401 - whatever the other's handler returned
        """Return the answer of ``address``.

        Raises:
            AskFailedError: If it is an error.
        """
        if self.error is UNSET:
            return self.value
        error = self.error
        raise AskFailedError(error.message, address=str(address), cause_code=error.code, cause_type=error.type)


class Timer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A timer that the server holds. A firing of another generation is stale and dropped.

    Attributes:
        generation: Sequence of the mail whose turn set it; unique and growing.
        due: When it fires, for a single one.
        rule: Its recurrence, for a recurring one: ``@every 3600s``, or a cron line of six fields.
    """

    generation: int
    due: datetime | UnsetType = UNSET
    rule: str = ""


class Parked(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A turn that waits. Its input and journal stand in a record of their own (``subjects.parked``).

    Attributes:
        seq: Sequence of the mail that the turn handles; the turn's name.
        awaiting: Name of the message type that resumes it.
        where: Fields that the awaited message must have, with their values.
        until: When it stops waiting.
        hold: Whether later mail waits behind it.
        waits: How many waits it has finished before this one.
        since: When it was parked.
        id: Digest of the id that its sender gave, "" when it gave none: a repeat joins it and begins no turn.
        askers: Reply subjects of repeats that wait for its answer as well.
    """

    seq: int
    awaiting: str
    since: datetime
    where: Raw | UnsetType = UNSET
    until: datetime | UnsetType = UNSET
    hold: bool = False
    waits: int = 0
    id: str = ""
    askers: list[str] = []


class StateRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything an actor is between two turns.

    Attributes:
        applied: Sequence of its last handled mail; every mail up to it is handled.
        ahead: Mails above ``applied`` that are handled already, ascending.
        by: Worker that wrote this record, with ``epoch``, its partition's; ``mail`` is what it handled, 0 for an order.
        turns: Turns committed so far.
        schema: Version of the state's layout.
        state: The state as JSON; absent when it was never changed or lies in ``blob``.
        replies: The latest answers, oldest first.
        ids: The latest ids that senders gave, oldest first; longer than ``replies``.
        status: ``paused`` by a person, ``failed`` by supervision, ``killed`` by a person: mail waits in all three.
        reason: Why it is not active, for people.
        failures: Mails in a row that became dead letters.
        at: When it was written.
    """

    applied: int = 0
    v: int = 1
    ahead: list[int] = []
    by: str = ""
    epoch: int = 0
    mail: int = 0
    turns: int = 0
    schema: int = 1
    state: Raw | UnsetType = UNSET
    blob: BlobRef | UnsetType = UNSET
    replies: list[Reply] = []
    ids: list[str] = []
    timers: dict[str, Timer] = {}
    parked: list[Parked] = []
    status: Status = "active"
    reason: str = ""
    failures: int = 0
    at: datetime | UnsetType = UNSET

    def has_applied(self, seq: int) -> bool:
        """Return whether the mail with this sequence is handled."""
        return seq <= self.applied or seq in self.ahead


class ParkedTurn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A parked turn's input and journal: all that a later run needs, wherever it happens.

    Attributes:
        data: The mail's payload, base64 in JSON.
        steps: Recorded steps by ``<name>.<digest>.<ordinal>``, as stored on their subjects.
        waits: What the finished waits were answered with, oldest first; None for one that timed out.
    """

    seq: int
    id: str
    data: bytes
    headers: dict[str, str] = {}
    time: datetime
    has_own_id: bool = False
    steps: dict[str, Raw] = {}
    waits: list[Waited] = []
    v: int = 1


class Waited(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of one wait: the mail that came, or none when time ran out."""

    data: bytes | UnsetType = UNSET
    content_type: str = ""
    timed_out: bool = False


_encoder = msgspec.json.Encoder()
_state = msgspec.json.Decoder(StateRecord)
_parked = msgspec.json.Decoder(ParkedTurn)


def encode(record: StateRecord | ParkedTurn) -> bytes:
    """Return a record as JSON."""
    return _encoder.encode(record)


def decode(data: bytes) -> StateRecord:
    """Return the state record in ``data``.

    Raises:
        DecodeError: If it is none, or one of a later version.
    """
    try:
        found = _state.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is not a state record: {error}"
        raise DecodeError(message) from error
    if found.v != 1:
        message = f"the state record has version {found.v}, this host knows 1: run the newer Callboard here"
        raise DecodeError(message)
    return found


def decode_parked(data: bytes) -> ParkedTurn:
    """Return the parked turn in ``data``.

    Raises:
        DecodeError: If it is none.
    """
    try:
        return _parked.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is not a parked turn: {error}"
        raise DecodeError(message) from error
