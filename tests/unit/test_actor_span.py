"""Spans as people write them, and the rules that the broker takes."""

from __future__ import annotations

import math
import zoneinfo
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.actor.span import MAX_SPAN_S, cron_rule, every_rule, span_s
from callboard.runtime.bus.memory_schedule import Rule, parse_duration
from callboard.runtime.errors import ConfigError

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("3d", 259200.0),
        ("1 h 30 m", 5400.0),
        ("1.5H", 5400.0),
        ("250ms", 0.25),
        ("2w", 1209600.0),
        ("0s", 0.0),
        (7, 7.0),
        (0.25, 0.25),
        (timedelta(minutes=2), 120.0),
    ],
)
def test_spans_are_read(text: str | float | timedelta, seconds: float) -> None:
    assert span_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "5x", "-5s", "5m ago", "1,5h", "٣s", "1e3s", "s5", "inf"])
def test_text_without_number_and_unit_is_answered_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="90s, 5m, 1h30m or 3d"):
        span_s(text)


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, 10**400, timedelta(days=-1), "4000d", 1e12])
def test_spans_outside_ten_years_are_refused(value: str | float | timedelta) -> None:
    with pytest.raises(ConfigError, match="0 to ten years"):
        span_s(value)


@pytest.mark.parametrize("value", [None, True, b"5s", [5]])
def test_what_is_no_span_at_all_is_named(value: object) -> None:
    with pytest.raises(ConfigError, match=f"{type(value).__name__} is no span"):
        span_s(value)  # type: ignore[arg-type]


@pytest.mark.property
@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from(sorted(UNITS_S))), min_size=1, max_size=6))
def test_a_span_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert span_s(text) == pytest.approx(sum(number * UNITS_S[unit] for number, unit in parts))


@pytest.mark.property
@given(st.text(max_size=12))
def test_any_text_is_a_span_or_a_config_error(text: str) -> None:
    try:
        found = span_s(text)
    except ConfigError:
        return
    assert 0 <= found <= MAX_SPAN_S


@pytest.mark.property
@given(st.floats(1.0, MAX_SPAN_S))
def test_a_recurrence_reads_back_to_the_millisecond_without_an_exponent(seconds: float) -> None:
    rule = every_rule(seconds)
    assert Rule(rule).is_recurring
    assert parse_duration(rule.removeprefix("@every ")) == pytest.approx(seconds, abs=0.001)
    assert "e" not in rule.removeprefix("@every")


def test_recurrences_are_written_as_the_broker_reads_them() -> None:
    assert [every_rule(span) for span in ("1h", 90, "1.5s", "30d", timedelta(minutes=1), 100)] == [
        "@every 3600s",
        "@every 90s",
        "@every 1.5s",
        "@every 2592000s",
        "@every 60s",
        "@every 100s",
    ]


@pytest.mark.parametrize("span", ["999ms", 0, 0.5])
def test_a_recurrence_under_a_second_is_refused(span: str | float) -> None:
    with pytest.raises(ConfigError, match="shortest is 1s"):
        every_rule(span)


def test_cron_lines_get_six_fields() -> None:
    assert cron_rule("0 0 7 * * *") == "0 0 7 * * *"
    assert cron_rule("30  7 * * mon-fri") == "0 30 7 * * mon-fri"
    assert cron_rule("@daily", time_zone="UTC") == "@daily"


@pytest.mark.parametrize(
    "line", ["", "7", "* * * *", "0 0 25 * * *", "@every 5s", "@at 2026-01-01T00:00:00Z", "@sometimes"]
)
def test_what_is_no_cron_line_is_answered_with_one(line: str) -> None:
    with pytest.raises(ConfigError, match="no cron line: write six fields"):
        cron_rule(line)


def test_an_unknown_time_zone_is_refused_where_zones_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", lambda: {"UTC"})
    for name in ("Europe/Nowhere", "", "../../etc/passwd"):
        with pytest.raises(ConfigError, match="IANA name such as Europe/Berlin"):
            cron_rule("@daily", time_zone=name)


def test_a_host_without_zones_leaves_them_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    assert cron_rule("@daily", time_zone="Europe/Nowhere") == "@daily"
