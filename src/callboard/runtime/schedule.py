"""Schedules that the server holds: what stands in ``CB_LATER``, read back."""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus

PLAN_PREFIX = "plan/"


class Schedule(Struct, frozen=True, kw_only=True):
    """A task that the server will make.

    Attributes:
        name: The plan's name, or the task's id for a single firing.
        rule: ``@at <time>``, ``@every <span>`` or a cron line.
        is_recurring: Whether it fires again and again.
        payload: What each firing carries, as text, or None when it is binary.
    """

    name: str
    capability: str
    rule: str
    time_zone: str | None
    lane: str
    is_recurring: bool
    set_at: datetime
    payload: str | None


async def schedules(bus: Bus) -> list[Schedule]:
    """Return all schedules, oldest first. One request per 500 of them.

    Raises:
        NotFoundError: If the stream does not exist.
    """
    found = []
    for stored in await bus.get_many(subjects.LATER, ["cb.later.>"]):
        headers = stored.headers or {}
        name = subjects.unescape(stored.subject.split(".", 2)[2])
        rule = headers.get(header.SCHEDULE, "")
        found.append(
            Schedule(
                name=name.removeprefix(PLAN_PREFIX),
                capability=headers.get(header.SCHEDULE_TARGET, "").removeprefix("cb.due."),
                rule=rule,
                time_zone=headers.get(header.SCHEDULE_TZ),
                lane=headers.get(header.LANE, "normal"),
                is_recurring=not rule.startswith("@at "),
                set_at=stored.time,
                payload=_text(stored.data),
            )
        )
    return found


def _text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None
