"""A partition's cursor record: who owns it and how far its mail is handled, on ``cb.cursor.<type>.<partition>``.

Meaning: every mail up to ``upto`` of a key that is not in ``pending`` is applied; ``pending`` has a key's first
unapplied sequence, or a lower bound of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from callboard.runtime.errors import DecodeError

# More keys than this do not stand in a record; ``upto`` stays behind instead, and their mail is read again.
MAX_PENDING = 2000


class Cursor(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record. It is written by compare-and-set alone; every change of owner raises ``epoch``.

    Attributes:
        owner: Worker that may run the partition's actors, "" when it was given up.
        upto: Sequence up to which everything is applied or pending.
        pending: First unapplied sequence of a key with mail, or a lower bound.
        held: Keys that a former owner still has in mid-turn, with that worker: nobody else runs them until their
            ``applied`` has moved or that worker is dead.
    """

    epoch: int = 0
    owner: str = ""
    upto: int = 0
    pending: dict[str, int] = {}
    held: dict[str, str] = {}
    v: int = 1


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Cursor)


def encode(cursor: Cursor) -> bytes:
    """Return a cursor as JSON."""
    return _encoder.encode(cursor)


def decode(data: bytes) -> Cursor:
    """Return the cursor in ``data``.

    Raises:
        DecodeError: If it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"this is not a cursor: {error}"
        raise DecodeError(message) from error


def bounded(upto: int, pending: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Return ``upto`` and ``pending`` with at most ``MAX_PENDING`` keys, true in the sense above."""
    if len(pending) <= MAX_PENDING:
        return upto, dict(pending)
    ordered = sorted(pending.items(), key=lambda item: item[1])
    first_left_out = ordered[MAX_PENDING][1]
    return min(upto, first_left_out - 1), dict(ordered[:MAX_PENDING])
