"""When a failed run is tried again: a decision as data, made by a plain function."""

from __future__ import annotations

import math
import random

from msgspec import Struct

from callboard.runtime.errors import CallboardError, ConfigError, RetryableError
from callboard.runtime.outcome import Failed, Retry
from callboard.runtime.record import failure_of

MIN_DELAY_S = 0.001
# Ten years; calendars and schedules have an end.
MAX_DELAY_S = 3650 * 86400.0


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """Attempts and the gaps between them.

    Attributes:
        attempts: Runs in all, the first included. 1 never tries again.
        base_s: Gap after the first failed run.
        factor: Each further gap is this many times longer.
        max_s: No gap is longer, jitter included.
        jitter: Each gap is drawn from ±this share of itself, so that failures do not come back in step; 0 for none.
        gaps_s: Fixed gaps in place of the formula; the last one repeats.
        terminal: Exception classes after which no further attempt is made.
    """

    attempts: int = 3
    base_s: float = 2.0
    factor: float = 2.0
    max_s: float = 3600.0
    jitter: float = 0.1
    gaps_s: tuple[float, ...] = ()
    terminal: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            ConfigError: Naming the field.
        """
        wrong = None
        if self.attempts < 1:
            wrong = f"attempts is {self.attempts}, and the first run counts: take 1 or more"
        elif not 0 <= self.jitter < 1:
            wrong = f"jitter is {self.jitter}: take a share from 0 up to, not including, 1"
        elif self.base_s <= 0 or self.factor < 1 or self.max_s <= 0 or any(gap <= 0 for gap in self.gaps_s):
            wrong = "gaps take more than 0 s and a factor of at least 1; a retry without a delay spins"
        if wrong:
            message = f"retry policy: {wrong}"
            raise ConfigError(message)

    def decide(
        self, error: BaseException, attempt: int, *, roll: float | None = None, trace: str | None = None
    ) -> Retry | Failed:
        """Return what follows from the ``attempt``-th run (1-based) having raised ``error``.

        Args:
            error: What the handler raised.
            attempt: Number of the run that failed.
            roll: The jitter's dice, 0 to 1; drawn when None.
            trace: The last frames as text, kept in the failure.
        """
        failure = failure_of(error, trace=trace)
        if attempt >= self.attempts or not _may_retry(error) or isinstance(error, self.terminal):
            return Failed(failure)
        # a subclass may have set it to anything, or not at all
        asked_s = getattr(error, "after_s", None) if isinstance(error, RetryableError) else None
        if isinstance(asked_s, (int, float)) and not math.isnan(asked_s):
            delay_s = float(asked_s)
        else:
            delay_s = self.gap_s(attempt, roll=roll)
        return Retry(failure, max(MIN_DELAY_S, min(MAX_DELAY_S, delay_s)))

    def gap_s(self, attempt: int, *, roll: float | None = None) -> float:
        """Return the seconds between the end of the ``attempt``-th run and the next."""
        if self.gaps_s:
            base_s = self.gaps_s[min(attempt, len(self.gaps_s)) - 1]
        else:
            base_s = self.base_s * self.factor ** min(attempt - 1, 64)
        dice = random.random() if roll is None else roll
        return min(self.max_s, base_s * (1 + self.jitter * (2 * dice - 1)))


def _may_retry(error: BaseException) -> bool:
    return error.retryable if isinstance(error, CallboardError) else True
