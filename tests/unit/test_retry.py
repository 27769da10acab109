"""When a failed run is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.errors import ConfigError, DecodeError, RetryableError, TaskTimeoutError, TerminalError
from callboard.runtime.outcome import Failed, Retry
from callboard.runtime.retry import RetryPolicy


def delay_of(outcome: Retry | Failed) -> float:
    assert isinstance(outcome, Retry)
    return outcome.delay_s


def test_default_gaps_double_from_two_seconds_and_the_third_failure_is_final() -> None:
    policy = RetryPolicy()
    assert delay_of(policy.decide(ValueError("x"), 1, roll=0.5)) == 2.0
    assert delay_of(policy.decide(ValueError("x"), 2, roll=0.5)) == 4.0
    assert isinstance(policy.decide(ValueError("x"), 3), Failed)


def test_the_error_is_kept_as_data() -> None:
    outcome = RetryPolicy(attempts=1).decide(ValueError("no such row"), 1)
    assert (outcome.failure.code, outcome.failure.type, outcome.failure.message) == (
        "handler",
        "ValueError",
        "no such row",
    )


@pytest.mark.parametrize("error", [TerminalError("x"), DecodeError("x")])
def test_errors_that_cannot_heal_are_final_at_once(error: Exception) -> None:
    assert isinstance(RetryPolicy().decide(error, 1), Failed)


def test_classes_declared_terminal_are_final() -> None:
    assert isinstance(RetryPolicy(terminal=(KeyError,)).decide(KeyError("x"), 1), Failed)


def test_a_handler_may_ask_for_its_own_gap() -> None:
    assert delay_of(RetryPolicy().decide(RetryableError("slow down", after_s=7.5), 1)) == 7.5


def test_asking_for_no_delay_still_gets_one_because_a_bare_nak_spins() -> None:
    assert delay_of(RetryPolicy().decide(RetryableError(after_s=0), 1)) > 0


def test_fixed_gaps_repeat_the_last() -> None:
    policy = RetryPolicy(attempts=9, gaps_s=(1.0, 5.0), jitter=0)
    assert [delay_of(policy.decide(TaskTimeoutError(), n)) for n in (1, 2, 3)] == [1.0, 5.0, 5.0]


def test_an_error_whose_text_cannot_be_made_is_still_reported() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert RetryPolicy().decide(MuteError(), 3).failure.message == "MuteError"


@given(attempt=st.integers(1, 10_000), roll=st.floats(0, 1))
def test_no_gap_is_ever_zero_negative_or_over_the_limit(attempt: int, roll: float) -> None:
    assert 0 < RetryPolicy(max_s=60).gap_s(attempt, roll=roll) <= 60


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"jitter": 1.0}, {"base_s": 0.0}, {"gaps_s": (1.0, 0.0)}])
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="retry policy"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]  # wrong on purpose
