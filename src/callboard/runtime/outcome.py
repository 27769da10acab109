"""How a run ended. ``settle`` turns each of these into writes and one answer to the broker; nothing else does."""

from __future__ import annotations

from msgspec import Struct

from callboard.runtime.record import Failure


class Completed(Struct, frozen=True, gc=False):
    """The handler returned; ``data`` is its encoded result."""

    data: bytes


class Retry(Struct, frozen=True):
    """The run failed and another one may begin after ``delay_s``."""

    failure: Failure
    delay_s: float


class Failed(Struct, frozen=True):
    """The run failed for good: dead letter, then a record."""

    failure: Failure


class Cancelled(Struct, frozen=True):
    """Somebody cancelled it."""

    failure: Failure


class Expired(Struct, frozen=True):
    """Its deadline passed, before or during the run."""

    failure: Failure


class Returned(Struct, frozen=True):
    """Unfinished through no fault of its own (drain, no free slot): given back for another worker."""

    delay_s: float


Outcome = Completed | Retry | Failed | Cancelled | Expired | Returned
