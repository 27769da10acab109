"""A breaker: after some failures in a row a provider is left alone for a while, then tried with one call."""

from __future__ import annotations

from msgspec import Struct


class Breaker(Struct, kw_only=True):
    """The health of one provider, as one process sees it. Times are monotonic seconds, handed in.

    Attributes:
        limit: Failures in a row that open it.
        open_s: How long it then stays open.
        failures: In a row, so far.
        open_until_s: When it may be tried again.
        is_probing: Whether the one call that tries it runs.
    """

    limit: int = 3
    open_s: float = 30.0
    failures: int = 0
    open_until_s: float = float("-inf")
    is_probing: bool = False

    def admits(self, now_s: float) -> bool:
        """Return whether a call may go; an open one admits a single call when its time is over."""
        if self.failures < self.limit and now_s >= self.open_until_s:
            return True
        return now_s >= self.open_until_s and not self.is_probing

    def begin(self) -> bool:
        """Note that a call goes; return whether it is the one that tries an open breaker."""
        if self.failures < self.limit or self.is_probing:
            return False
        self.is_probing = True
        return True

    def succeed(self) -> None:
        """Note an answer: it is closed."""
        self.failures = 0
        self.open_until_s = float("-inf")
        self.is_probing = False

    def fail(self, now_s: float, *, wait_s: float | None = None) -> None:
        """Note a failure; with ``wait_s`` the provider said how long it wants to be left alone."""
        self.failures += 1
        self.is_probing = False
        if wait_s is not None:
            self.open_until_s = max(self.open_until_s, now_s + wait_s)
        if self.failures >= self.limit:
            self.open_until_s = max(self.open_until_s, now_s + self.open_s)

    def leave(self) -> None:
        """Note that a call ended without a word on its provider's health: cancelled, or a mistake of the caller's."""
        self.is_probing = False
