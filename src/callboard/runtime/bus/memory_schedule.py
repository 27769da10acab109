"""When a server-held schedule fires next: ``@at``, ``@every``, ``@hourly`` and the like, cron lines of six fields."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from callboard.runtime.errors import BusError

_PREDEFINED = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_BOUNDS = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s|us|µs|ns))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)")
_HORIZON_DAYS = 366 * 8
_SHORTEST_S = 1.0


def parse_duration(text: str) -> float:
    """Return the seconds of a Go duration such as ``1h30m`` or of a bare number of seconds.

    Raises:
        BusError: If it is neither.
    """
    if text.isdigit():
        return float(text)
    if not _DURATION.fullmatch(text):
        message = f"{text!r} is not a duration such as 90s or 1h30m"
        raise BusError(message)
    return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))


class Rule:
    """A parsed schedule."""

    __slots__ = ("_at", "_every_s", "_fields", "_zone")

    def __init__(self, text: str, *, time_zone: str | None = None) -> None:
        """Parse the ``Nats-Schedule`` header.

        Raises:
            BusError: If the server would refuse it (10189): unknown form, under 1 s, or a zone without a cron line.
        """
        self._at: datetime | None = None
        self._every_s = 0.0
        self._fields: tuple[frozenset[int], ...] = ()
        self._zone: tzinfo = UTC
        kind, _, rest = text.partition(" ")
        if kind == "@at":
            self._at = _parse_time(rest)
        elif kind == "@every":
            self._every_s = parse_duration(rest)
            if self._every_s < _SHORTEST_S:
                raise _refusal(text)
        else:
            self._fields = _parse_cron(_PREDEFINED.get(text, text))
        if time_zone is not None:
            if not self._fields:
                raise _refusal(text)
            self._zone = _parse_zone(time_zone)

    @property
    def is_recurring(self) -> bool:
        """Whether it fires more than once."""
        return self._at is None

    def next_after(self, now: datetime) -> datetime:
        """Return the next firing; for ``@at`` its time, also when that has passed.

        Raises:
            BusError: If a cron line has no firing within eight years.
        """
        if self._at is not None:
            return self._at
        if self._every_s:
            return now + timedelta(seconds=self._every_s)
        return self._next_cron(now.astimezone(self._zone)).astimezone(UTC)

    def _next_cron(self, now: datetime) -> datetime:
        seconds, minutes, hours = (sorted(values) for values in self._fields[:3])
        for offset in range(_HORIZON_DAYS):
            day = (now + timedelta(days=offset)).date()
            if not self._has_day(day.day, day.month, day.isoweekday() % 7):
                continue
            for hour in hours:
                for minute in minutes:
                    base = datetime(day.year, day.month, day.day, hour, minute, tzinfo=self._zone)
                    if base + timedelta(minutes=1) <= now:
                        continue
                    for second in seconds:
                        found = base.replace(second=second)
                        if found > now:
                            return found
        message = "the cron line never fires"
        raise BusError(message)

    def _has_day(self, day: int, month: int, weekday: int) -> bool:
        _, _, _, days, months, weekdays = self._fields
        if month not in months:
            return False
        # Cron's old rule: when both day fields are restricted, either may match.
        if len(days) < len(_span(3)) and not weekdays.issuperset(range(7)):
            return day in days or weekday in weekdays
        return day in days and weekday in weekdays


def _parse_time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise _refusal(text) from error
    if found.tzinfo is None:
        raise _refusal(text)
    return found.astimezone(UTC)


def _parse_zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise _refusal(name) from error


def _parse_cron(text: str) -> tuple[frozenset[int], ...]:
    parts = text.split()
    if len(parts) != len(_BOUNDS):
        raise _refusal(text)
    fields = [_parse_field(part, index) for index, part in enumerate(parts)]
    # 7 is Sunday as well as 0.
    fields[5] = frozenset(value % 7 for value in fields[5])
    return tuple(fields)


def _parse_field(text: str, index: int) -> frozenset[int]:
    values: set[int] = set()
    for part in text.lower().split(","):
        span, _, step = part.partition("/")
        low, high = _parse_span(span, index, has_step=bool(step))
        if step and not (step.isdigit() and int(step)):
            raise _refusal(text)
        values.update(range(low, high + 1, int(step) if step else 1))
    return frozenset(values)


def _parse_span(text: str, index: int, *, has_step: bool) -> tuple[int, int]:
    low_bound, high_bound = _BOUNDS[index]
    if text in ("*", "?"):
        return low_bound, 6 if index == 5 else high_bound  # noqa: PLR2004 - 7 would be Sunday twice
    first, dash, last = text.partition("-")
    low = _parse_number(first, index)
    high = _parse_number(last, index) if dash else (high_bound if has_step else low)
    if not low_bound <= low <= high <= high_bound:
        raise _refusal(text)
    return low, high


def _parse_number(text: str, index: int) -> int:
    if index == 4 and text in _MONTHS:  # noqa: PLR2004 - the month field
        return _MONTHS.index(text) + 1
    if index == 5 and text in _DAYS:  # noqa: PLR2004 - the weekday field
        return _DAYS.index(text)
    if not text.isdigit():
        raise _refusal(text)
    return int(text)


def _span(index: int) -> range:
    low, high = _BOUNDS[index]
    return range(low, high + 1)


def _refusal(text: str) -> BusError:
    return BusError(f"message schedules pattern is invalid (10189): {text!r}")
