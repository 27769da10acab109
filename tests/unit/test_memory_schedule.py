"""When schedules fire."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from callboard.runtime.bus.memory_schedule import Rule, parse_duration


@pytest.mark.parametrize(
    ("line", "zone", "expected"),
    [
        ("30 15 9 * * *", None, datetime(2026, 1, 2, 9, 15, 30, tzinfo=UTC)),
        ("*/20 * * * * *", None, datetime(2026, 1, 1, 12, 0, 20, tzinfo=UTC)),
        ("0 0 9 * * mon-fri", "Europe/Berlin", datetime(2026, 1, 2, 8, 0, 0, tzinfo=UTC)),
        ("0 0 0 29 2 *", None, datetime(2028, 2, 29, tzinfo=UTC)),
        ("0 0 0 * * 7", None, datetime(2026, 1, 4, tzinfo=UTC)),
        ("@hourly", None, datetime(2026, 1, 1, 13, tzinfo=UTC)),
    ],
)
def test_a_cron_line_names_its_next_firing(line: str, zone: str | None, expected: datetime) -> None:
    assert Rule(line, time_zone=zone).next_after(datetime(2026, 1, 1, 12, tzinfo=UTC)) == expected


def test_durations_are_read_as_go_writes_them() -> None:
    assert [parse_duration(text) for text in ("90s", "1h30m", "1.5s", "7", "250ms")] == [90, 5400, 1.5, 7, 0.25]
