"""Deadlines that travel: a time with a zone, or a span from now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from callboard.runtime.errors import DeadlineError


def moment(deadline: datetime | timedelta, *, now: datetime) -> datetime:
    """Return when a deadline is, aware.

    Raises:
        DeadlineError: If it has no time zone, or has passed.
    """
    found = now + deadline if isinstance(deadline, timedelta) else deadline
    if found.tzinfo is None:
        message = "a deadline needs a time zone: datetime.now(UTC) + timedelta(...)"
        raise DeadlineError(message)
    if found <= now:
        message = f"the deadline {found.isoformat()} has passed; nothing was sent"
        raise DeadlineError(message)
    return found


def stamp(found: datetime) -> str:
    """Return a time as it stands in ``Cb-Deadline``."""
    return found.astimezone(UTC).isoformat().replace("+00:00", "Z")
