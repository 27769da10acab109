"""A step of a turn: how the journal names it, the record it leaves, and what its function may know of itself."""

from __future__ import annotations

import contextvars
from datetime import datetime
from hashlib import blake2b
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from callboard.runtime import codec, subjects
from callboard.runtime.actor import address
from callboard.runtime.actor.address import Address
from callboard.runtime.blobs import BlobRef
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Stored
from callboard.runtime.errors import ActorError, DecodeError, EncodeError, InvalidNameError

# Names that begin with it are the engine's own: asks, calls, waits.
RESERVED = "~"
# Notes among the records of a turn's steps: a host died under it; what was recorded before no longer counts.
CRASHED = "~crash"
RESTARTED = "~restart"
_DIGEST_BYTES = 8

Kind = Literal["done", "intent", "withdrawn"]


class StepRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands on a step's subject, ``cb.step.<type>.<key>.<mail's sequence>.<entry>``.

    Attributes:
        name: The step's name as the code spells it.
        kind: ``done`` holds the value. ``intent`` says that a step with ``once=True`` began, and ``withdrawn`` that it
            had no effect and may begin again.
        at: When it was written.
        worker: Who wrote it.
        args_digest: Digest of the arguments, or of the ``key`` given in their place.
        value: What the step returned, as JSON; large values lie in ``blob``.
        attempt: Number of the run, inside the step, that gave the value.
        took_s: Seconds of that run.
        nonce: Tells one intent from another of the same worker.
        parent: Entry of the step whose function asked for this one, "" outside of steps.
    """

    name: str
    kind: Kind
    at: datetime
    worker: str
    args_digest: str
    value: Raw | UnsetType = UNSET
    blob: BlobRef | UnsetType = UNSET
    attempt: int = 1
    took_s: float = 0.0
    nonce: str = ""
    parent: str = ""
    v: int = 1


class Step(Struct, frozen=True, kw_only=True):
    """The running step, as its function sees it. Get it by ``current_step()``.

    Attributes:
        id: ``<type>/<key>/<sequence>/<entry>``, the same in every run of the turn: the idempotency key for outside
            effects.
        name: Its name.
        attempt: Number of this run inside the step, 1-based; above 1 only with ``retry=``.
        turn: ``<type>/<key>/<sequence>``, the turn it belongs to.
        entry: ``<escaped name>.<digest>.<ordinal>``, its place in the turn's journal.
    """

    id: str
    name: str
    attempt: int
    turn: str
    entry: str


running: contextvars.ContextVar[Step | None] = contextvars.ContextVar("callboard_step", default=None)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StepRecord)


def current_step() -> Step:
    """Return the step whose function is running, also from its thread and from tasks it started.

    Raises:
        ActorError: If no step runs here.
    """
    found = running.get()
    if found is None:
        message = "no step runs here: current_step() works inside a function that a turn runs as a step"
        raise ActorError(message)
    return found


def escaped(name: str) -> str:
    """Return a step's name as one subject token.

    Raises:
        InvalidNameError: If it is no text of 1 to 256 bytes of UTF-8.
    """
    try:
        return subjects.escape(name)
    except (InvalidNameError, AttributeError) as error:
        message = f"step name {name!r:.80} is not usable: take 1 to {subjects.MAX_KEY_BYTES} bytes of text"
        raise InvalidNameError(message, name=str(name)[:80]) from error


def short_name(name: str) -> str:
    """Return a name of the engine's own as it can be one; what follows its first word goes by its hash if too long."""
    if len(name.encode()) <= subjects.MAX_KEY_BYTES:
        return name
    return f"{name.partition(' ')[0]} {_hash(name)}"


def short_id(step_id: str) -> str:
    """Return a step's id as one that a client may choose: long and strange ones by their hash."""
    if len(step_id.encode()) <= subjects.MAX_KEY_BYTES and step_id.isascii() and step_id.isprintable():
        return step_id
    return f"step/{_hash(step_id)}"


def digest(name: str, identity: object, *, parent: str = "") -> str:
    """Return 16 hex digits for what makes a step itself: its arguments or its key, and the step that it runs inside.

    Args:
        name: The step's name, for the error.
        identity: Anything with a JSON form; equal values give equal digests in every process.
        parent: Entry of the step whose function asked for this one, "" outside of steps.

    Raises:
        EncodeError: If ``identity`` has no JSON form.
    """
    try:
        data = codec.canonical(identity)
    except EncodeError as error:
        message = (
            f"step {name!r}: its arguments tell it from other steps and have no JSON form: {error}. Give the step a "
            "key= that names what it works on, and keep clients and other objects out of the arguments"
        )
        raise EncodeError(message) from error
    made = blake2b(data, digest_size=_DIGEST_BYTES)
    if parent:
        made.update(b"\0" + parent.encode())
    return made.hexdigest()


def id_of(turn: str, entry: str) -> str:
    """Return a step's id."""
    return f"{turn}/{entry}"


def parse_id(text: str) -> tuple[Address, int, str]:
    """Return the actor, the mail's sequence and the entry in a step's id.

    Raises:
        InvalidNameError: If it is no such id.
    """
    who, _, rest = text.rpartition("/")
    who, _, seq = who.rpartition("/")
    if not (seq.isdecimal() and seq.isascii()) or rest.count(".") != 2:  # noqa: PLR2004 - name, digest, ordinal
        message = f"{text[:120]!r} is no id of a step: it reads <type>/<key>/<sequence>/<name>.<digest>.<ordinal>"
        raise InvalidNameError(message, name=text[:120])
    return address.parse(who), int(seq), rest


def entry_of(subject: str) -> str:
    """Return the entry in a step's subject, ``cb.step.<type>.<key>.<sequence>.<entry>``."""
    return subject.split(".", 5)[5]


def is_note(entry: str) -> bool:
    """Return whether an entry is a note of the engine about the turn, and no step."""
    return entry.startswith((f"{CRASHED}.", f"{RESTARTED}."))


def is_void(stored: Stored, restarted_at: int) -> bool:
    """Return whether a record no longer counts: an ordinary one from before the turn was begun anew.

    Records of steps with ``once=True`` have no lifetime and count for ever.
    """
    return stored.seq < restarted_at and header.TTL in (stored.headers or {})


def encode(record: StepRecord) -> bytes:
    """Return a record as JSON."""
    return _encoder.encode(record)


def decode(data: bytes) -> StepRecord:
    """Return the record in ``data``.

    Raises:
        DecodeError: If it is none, or one of a later version.
    """
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is not a step record: {error}"
        raise DecodeError(message) from error
    if found.v != 1:
        message = f"the step record has version {found.v}, this host knows 1: run the newer Callboard here"
        raise DecodeError(message)
    return found


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
