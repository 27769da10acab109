"""Plain counters of pools and turns, read by metrics and heartbeat; no lock, no library, on the hot path."""

from __future__ import annotations

from bisect import bisect_left

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


class PoolStats:
    """What one capability's pool did since the process started."""

    __slots__ = ("claimed", "endings", "run_time", "stalled", "started", "wait_time")

    def __init__(self) -> None:
        """Begin at zero."""
        self.claimed = 0
        self.started = 0
        self.stalled = 0
        self.endings = dict.fromkeys(ENDINGS, 0)
        self.run_time = Histogram()
        self.wait_time = Histogram()


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
    """

    __slots__ = ("committed", "dead", "failed", "fenced", "interrupted", "started", "steps_replayed", "steps_run")

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
