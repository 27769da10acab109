"""May this delivery be run? A decision over what the ledger and the other workers said; no I/O here.

Most deliveries need no question: the first delivery of a task that the broker itself named cannot have run before.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import UNSET, Struct

from callboard.runtime.record import AttemptRecord

_CLOCK_SLACK_S = 0.05


class Run(Struct, frozen=True):
    """Run it.

    Attributes:
        attempt: Number of this run, 1-based.
        crashes: Workers that died under it so far.
        next_n: Number of its next attempt record.
        is_restart: A ``started`` record must be written before this run.
        is_suspect: It died with its worker more than once: run no other suspect beside it.
    """

    attempt: int
    crashes: int
    next_n: int
    is_restart: bool
    is_suspect: bool


class Skip(Struct, frozen=True):
    """It is recorded already: ack it and tell nobody."""


class Drop(Struct, frozen=True):
    """Another worker is running it: say nothing at all, its own extensions keep the claim."""


class Wait(Struct, frozen=True):
    """Its next attempt is not due yet: give it back for ``delay_s``."""

    delay_s: float


class Reschedule(Struct, frozen=True):
    """Its next attempt is a message of its own that the server holds: make sure of that, then ack this one."""

    failed: AttemptRecord


class Bury(Struct, frozen=True):
    """Its workers keep dying: dead letter."""

    attempt: int
    crashes: int
    next_n: int


Verdict = Run | Skip | Drop | Wait | Reschedule | Bury


def needs_questions(*, delivered: int, attempt: int, has_client_id: bool) -> bool:
    """Return whether a delivery may have been run before, so that ledger and workers must be asked."""
    return delivered > 1 or attempt > 1 or has_client_id


def screen(
    *,
    delivered: int,
    header_attempt: int,
    is_recorded: bool,
    is_held: bool,
    history: Sequence[AttemptRecord],
    crash_limit: int,
    now: datetime,
) -> Verdict:
    """Return what to do with a delivery.

    Args:
        delivered: The broker's count; it also grows by restarts of the server, so it is only a hint.
        header_attempt: ``Cb-Attempt``, 1 when absent.
        is_recorded: The ledger holds the task's record.
        is_held: A worker says that it is running it.
        history: Its attempt records, by number.
        crash_limit: Crashes after which it is buried.
        now: The wall time.
    """
    if is_recorded:
        return Skip()
    if is_held:
        return Drop()
    failures = sum(record.kind == "failed" for record in history)
    next_n = history[-1].n + 1 if history else 1
    # a message that carries the next attempt's number is that attempt, and the broker fired it in time
    if history and history[-1].kind == "failed" and header_attempt <= failures:
        last = history[-1]
        if last.scheduled is True:
            return Reschedule(last)
        delay_s = _left_s(last, now)
        # a nak that is due now must not wait a second time for the difference between two clocks
        if delay_s > _CLOCK_SLACK_S:
            return Wait(delay_s)
    attempt = max(failures + 1, header_attempt)
    is_restart = delivered > 1 or bool(history)
    crashes = count_crashes(history, is_redelivered=delivered > 1)
    if crashes >= crash_limit:
        return Bury(attempt=attempt, crashes=crashes, next_n=next_n)
    # with a low limit the last run that is allowed must be the one that can be blamed
    is_suspect = crashes >= max(1, min(2, crash_limit - 1))
    return Run(attempt=attempt, crashes=crashes, next_n=next_n, is_restart=is_restart, is_suspect=is_suspect)


def _left_s(failed: AttemptRecord, now: datetime) -> float:
    if failed.retry_at is UNSET:
        return 0.0
    gap_s = (failed.retry_at - failed.at).total_seconds()
    left_s = (failed.retry_at - now).total_seconds()
    # more than the whole gap cannot be left, unless the clocks of two workers disagree: then do not believe them
    return left_s if left_s <= gap_s + _CLOCK_SLACK_S else 0.0


def count_crashes(history: Sequence[AttemptRecord], *, is_redelivered: bool) -> int:
    """Return how many runs began and never ended.

    Every run after the first writes ``started`` before it begins; a run that ends without finishing the task writes
    ``failed`` or ``returned``. A start followed by another start, or by a redelivery, died with its worker.
    """
    crashes = 0
    is_open = is_redelivered or any(record.kind != "started" for record in history[:1])
    for record in history:
        if record.kind == "started":
            crashes += is_open
            is_open = True
        else:
            is_open = False
    return crashes + (1 if is_open and is_redelivered else 0)
