"""Load that no beat shows yet: picks of the last moments, and requests that ended since. Pure; times are handed in."""

from __future__ import annotations

from collections import deque

# A pick counts as load until a beat shows its request, its caller says that it has ended, or this is over.
RESERVED_S = 2.0
# A beat may show a request that was picked so long before.
_SHOWN_AFTER_S = 0.3
# Share of the newest answer in the mean latency.
_NEWEST = 0.2
# Agents whose latency is remembered.
_KEPT = 20_000


class Reservations:
    """Counts by address. Not thread safe; all times are monotonic seconds of one clock."""

    def __init__(self) -> None:
        """Begin with none."""
        self._open: dict[str, deque[float]] = {}
        self._ended: dict[str, int] = {}
        self._latency_s: dict[str, float] = {}

    def add(self, address: str, now_s: float) -> None:
        """Note that an agent was picked."""
        self._open.setdefault(address, deque()).append(now_s)

    def shown(self, address: str, now_s: float) -> None:
        """Note that a beat told the agent's load: what was picked before shows in it, or is over."""
        self._ended.pop(address, None)
        self._prune(address, now_s - _SHOWN_AFTER_S)

    def served(self, address: str, took_s: float) -> None:
        """Note that a request has ended; ``took_s`` is negative when its time says nothing."""
        waiting = self._open.get(address)
        if waiting:
            waiting.popleft()
            if not waiting:
                del self._open[address]
        else:
            self._ended[address] = self._ended.get(address, 0) + 1
        if took_s >= 0:
            before_s = self._latency_s.pop(address, took_s)
            self._latency_s[address] = before_s + _NEWEST * (took_s - before_s)
        for kept in (self._latency_s, self._ended):
            while len(kept) > _KEPT:
                del kept[next(iter(kept))]

    def count(self, address: str, now_s: float) -> int:
        """Return the picks whose request no beat has shown yet."""
        if address not in self._open:
            return 0
        self._prune(address, now_s - RESERVED_S)
        return len(self._open.get(address, ()))

    def ended(self, address: str) -> int:
        """Return how many requests that the last beat showed have ended since."""
        return self._ended.get(address, 0)

    def latency_s(self, address: str) -> float | None:
        """Return the mean time of an agent's recent answers, None before the first."""
        return self._latency_s.get(address)

    def open(self) -> list[str]:
        """Return the agents with picks that no beat has shown yet, or with requests that ended since one."""
        return [*self._open, *self._ended]

    def _prune(self, address: str, oldest_s: float) -> None:
        waiting = self._open.get(address)
        while waiting and waiting[0] <= oldest_s:
            waiting.popleft()
        if waiting is not None and not waiting:
            del self._open[address]
