"""Which lane gets the next credit: weights among lanes that have work, a parked request on the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from callboard.runtime.subjects import Lane

PullLane = Lane | Literal["due"]
PULL_LANES: tuple[PullLane, ...] = ("high", "normal", "low", "due")
WEIGHTS: Mapping[PullLane, int] = {"high": 8, "normal": 3, "low": 1, "due": 3}
PARKED_NORMAL = 8
STALE_S = 0.25


class Lanes:
    """Credit over the lanes of one capability.

    A lane with known backlog gets a share of the free slots by smooth weighted rotation, so that low never starves.
    A lane without gets a small parked request, so that its next task comes at once; parked credit is not counted
    against the slots, and the rare delivery that finds no slot is handed back.
    """

    __slots__ = ("_deliveries", "_quiet", "_turn", "backlog", "credit")

    def __init__(self) -> None:
        """Begin with no credit and no known backlog."""
        self.credit: dict[PullLane, int] = dict.fromkeys(PULL_LANES, 0)
        self.backlog: dict[PullLane, int] = dict.fromkeys(PULL_LANES, 0)
        self._turn: dict[PullLane, int] = dict.fromkeys(PULL_LANES, 0)
        self._deliveries: dict[PullLane, int] = dict.fromkeys(PULL_LANES, 0)
        self._quiet: dict[PullLane, tuple[int, float]] = {}

    def delivered(self, lane: PullLane, *, pending: int) -> None:
        """Note a delivery and what the broker still has behind it."""
        self.backlog[lane] = pending
        self._deliveries[lane] += 1
        if self.credit[lane] > 0:
            self.credit[lane] -= 1

    def correct(self, credit: Mapping[PullLane, int], now_s: float) -> None:
        """Take the true outstanding credit, and forget a backlog that does not come.

        A broker with a backlog and our credit delivers at once. When nothing comes, somebody else took those tasks, or
        they were cancelled; the credit stays, parked, and no longer keeps the slots from other lanes.
        """
        for lane, count in credit.items():
            self.credit[lane] = count
            if not count or not self.backlog[lane]:
                self._quiet.pop(lane, None)
                continue
            deliveries, since_s = self._quiet.get(lane, (-1, now_s))
            if deliveries != self._deliveries[lane]:
                self._quiet[lane] = (self._deliveries[lane], now_s)
            elif now_s - since_s >= STALE_S:
                self.backlog[lane] = 0

    def committed(self) -> int:
        """Return the credit that counts against the slots: that of lanes with backlog."""
        return sum(min(self.credit[lane], self.backlog[lane]) for lane in PULL_LANES)

    def allot(self, free: int) -> dict[PullLane, int]:
        """Return the credit to grant now and count it as granted.

        Args:
            free: Slots with nothing to do.
        """
        grants: dict[PullLane, int] = {}
        if free <= 0:
            return grants
        hungry = [lane for lane in PULL_LANES if self.backlog[lane] > self.credit[lane]]
        left = free - self.committed()
        if len(hungry) == 1 and left > 0:
            only = hungry.pop()
            grants[only] = min(left, self.backlog[only] - self.credit[only])
            self.credit[only] += grants[only]
        while left > 0 and hungry:
            lane = self._next(hungry)
            grants[lane] = grants.get(lane, 0) + 1
            self.credit[lane] += 1
            left -= 1
            if self.credit[lane] >= self.backlog[lane]:
                hungry.remove(lane)
        for lane in PULL_LANES:
            parked = min(free, max(PARKED_NORMAL, free // 2)) if lane == "normal" else 1
            missing = parked - self.credit[lane]
            if self.backlog[lane] == 0 and missing > 0:
                grants[lane] = grants.get(lane, 0) + missing
                self.credit[lane] += missing
        return grants

    def _next(self, hungry: list[PullLane]) -> PullLane:
        total = 0
        best = hungry[0]
        for lane in hungry:
            total += WEIGHTS[lane]
            self._turn[lane] += WEIGHTS[lane]
            if self._turn[lane] > self._turn[best]:
                best = lane
        self._turn[best] -= total
        return best
