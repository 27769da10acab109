"""Plain counters of pools and turns, read by metrics and heartbeat; no lock, no library, on the hot path."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

BUCKETS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
ENDINGS = (
    "completed",
    "failed",
    "retried",
    "cancelled",
    "expired",
    "returned",
    "duplicate",
    "dropped",
    "postponed",
    "lapsed",
)
# What ends a task for good, and what leaves it for another run.
FINAL = ("completed", "failed", "cancelled", "expired")
AGAIN = ("retried", "returned", "dropped", "postponed", "lapsed")
LATEST = 256
SAMPLES = 20


class Histogram:
    """Counts by upper bound in seconds; the last count is of everything above."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        """Begin empty."""
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds


class Latest:
    """The times of the latest 256 runs; an append is all it costs the hot path."""

    __slots__ = ("_times_s",)

    def __init__(self) -> None:
        """Begin empty."""
        self._times_s: deque[float] = deque(maxlen=LATEST)

    def observe(self, seconds: float) -> None:
        """Keep one."""
        self._times_s.append(seconds)

    def sample(self) -> list[float]:
        """Return at most 20 of them, in order, spread evenly: from the k-th twentieth of all the middle one.

        May be called from another thread. To the microsecond: that is what a beat carries.
        """
        ordered = sorted(self._times_s.copy())
        if len(ordered) <= SAMPLES:
            return [round(time_s, 6) for time_s in ordered]
        return [round(ordered[(2 * k + 1) * len(ordered) // (2 * SAMPLES)], 6) for k in range(SAMPLES)]


class PoolStats:
    """What one capability's pool did since the process started."""

    __slots__ = ("claimed", "endings", "latest", "run_time", "stalled", "started", "wait_time")

    def __init__(self) -> None:
        """Begin at zero."""
        self.claimed = 0
        self.started = 0
        self.stalled = 0
        self.endings = dict.fromkeys(ENDINGS, 0)
        self.run_time = Histogram()
        self.wait_time = Histogram()
        self.latest = Latest()

    def ran(self, seconds: float) -> None:
        """Keep how long a run took; that it began was counted then."""
        self.run_time.observe(seconds)
        self.latest.observe(seconds)

    def total(self, names: Sequence[str]) -> int:
        """Return how many claims ended in one of these ways."""
        return sum(self.endings[name] for name in names)


class TurnStats:
    """What the turns of one actor type did in this worker since the process started.

    Attributes:
        started: Runs of handlers that began, further attempts included.
        committed: Runs whose outcome was stored.
        failed: Runs that raised.
        fenced: Runs thrown away because another host had written since.
        dead: Dead letters of mails stored.
        interrupted: Runs that were stopped because the worker drained or lost the actor; another host runs them.
        steps_run: Steps whose value was recorded.
        steps_replayed: Steps whose value was there already.
        run_time: How long runs took, from their first line to the last.
        latest: Of those the latest.
    """

    __slots__ = (
        "committed",
        "dead",
        "failed",
        "fenced",
        "interrupted",
        "latest",
        "run_time",
        "started",
        "steps_replayed",
        "steps_run",
    )

    def __init__(self) -> None:
        """Begin at zero."""
        self.started = 0
        self.committed = 0
        self.dead = 0
        self.failed = 0
        self.fenced = 0
        self.interrupted = 0
        self.steps_run = 0
        self.steps_replayed = 0
        self.run_time = Histogram()
        self.latest = Latest()

    def ran(self, seconds: float) -> None:
        """Keep how long a run took."""
        self.run_time.observe(seconds)
        self.latest.observe(seconds)
