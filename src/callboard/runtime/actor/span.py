"""Spans of time as people write them, and the rules of recurrence that the broker takes."""

from __future__ import annotations

import math
import re
import zoneinfo
from datetime import timedelta

from callboard.runtime.bus.memory_schedule import Rule
from callboard.runtime.errors import BusError, ConfigError

MAX_SPAN_S = 3650 * 86400.0
SHORTEST_EVERY_S = 1.0

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_CRON_FIELDS = 5


def span_s(span: str | float | timedelta) -> float:
    """Return a span in seconds: ``"90s"``, ``"5m"``, ``"1h30m"``, ``"3d"``, or a number of seconds as it is.

    Units are ``ms``, ``s``, ``m``, ``h``, ``d`` and ``w``, with or without a fraction, in any order.

    Raises:
        ConfigError: If it is no span, negative, or over ten years.
    """
    found = _seconds(span)
    if not 0 <= found <= MAX_SPAN_S:
        message = f"the span {str(span)[:80]!r} is not from 0 to ten years"
        raise ConfigError(message)
    return found


def every_rule(span: str | float | timedelta) -> str:
    """Return the broker's rule for something that recurs after each span: ``@every 3600s``.

    Raises:
        ConfigError: If it is no span, or under 1 s, the shortest that the broker takes.
    """
    every_s = span_s(span)
    if every_s < SHORTEST_EVERY_S:
        message = f"every {span!r} is too often: the broker's shortest is 1s"
        raise ConfigError(message)
    # no exponent, which the broker would not read
    return f"@every {every_s:.3f}".rstrip("0").rstrip(".") + "s"


def cron_rule(line: str, *, time_zone: str | None = None) -> str:
    """Return a cron line as the broker takes it, six fields with the seconds first; five get a 0 in front.

    Names such as ``@hourly`` and ``@daily`` stay as they are.

    Raises:
        ConfigError: If the broker would refuse it, or the time zone is unknown.
    """
    rule = " ".join(line.split())
    if len(rule.split()) == _CRON_FIELDS:
        rule = f"0 {rule}"
    try:
        # the zone makes it refuse what is no cron line
        Rule(rule, time_zone="UTC")
    except BusError as error:
        message = (
            f"{line[:80]!r} is no cron line: write six fields, seconds first, such as '0 0 7 * * mon-fri', or @hourly"
        )
        raise ConfigError(message) from error
    if time_zone is not None:
        _check_zone(time_zone)
    return rule


def _check_zone(name: str) -> None:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        # a slim image has no zones at all; the server, which fires, has its own
        if zoneinfo.available_timezones():
            message = f"there is no time zone {name[:80]!r}: give an IANA name such as Europe/Berlin"
            raise ConfigError(message) from error


def _seconds(span: object) -> float:
    if isinstance(span, timedelta):
        return span.total_seconds()
    if isinstance(span, str):
        text = "".join(span.split()).lower()
        if not _WHOLE.fullmatch(text):
            message = f"{span[:80]!r} is no span of time: write a number and a unit, such as 90s, 5m, 1h30m or 3d"
            raise ConfigError(message)
        return math.fsum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    if isinstance(span, (int, float)) and not isinstance(span, bool):
        # an integer may be beyond all floats
        return float(span) if abs(span) <= MAX_SPAN_S else math.inf
    message = f"{type(span).__name__} is no span of time: give seconds as a number, or text such as '1h30m'"
    raise ConfigError(message)
