"""What a Deployment's controller does next: plain functions of the pods that are there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct


class Standing(Struct, frozen=True, kw_only=True):
    """One pod that is not being ended.

    Attributes:
        is_new: Of the newest template.
        since_s: When it became ready, or began if it is not.
    """

    name: str
    is_new: bool
    is_ready: bool
    since_s: float


class Moves(Struct, frozen=True, kw_only=True):
    """What to do: so many pods of the new template to start, and which pods to end."""

    starts: int = 0
    ends: tuple[str, ...] = ()


def share(value: int | str, replicas: int, *, rounds_up: bool) -> int:
    """Return a number of pods that may be given in percent, rounded as Kubernetes does."""
    if isinstance(value, int):
        return value
    exact = int(value.removesuffix("%")) * replicas / 100
    return math.ceil(exact) if rounds_up else math.floor(exact)


def next_moves(pods: Sequence[Standing], *, wanted: int, surge: int | str, unavailable: int | str) -> Moves:
    """Return what brings the pods closer to ``wanted`` ones of the new template.

    Pods that are being ended count no more. There are at most ``wanted`` + surge, and at least ``wanted`` less
    unavailable ones are ready: an old one goes only when a new one is.
    """
    over = share(surge, wanted, rounds_up=True)
    missing = share(unavailable, wanted, rounds_up=False)
    if not over and not missing:
        missing = 1  # Kubernetes' own rule: else nothing could ever be replaced
    new = [pod for pod in pods if pod.is_new]
    old = [pod for pod in pods if not pod.is_new]
    ends = [pod.name for pod in leaving(new)[: max(0, len(new) - wanted)]]
    starts = max(0, min(wanted - len(new), wanted + over - len(pods)))
    broken = [pod for pod in old if not pod.is_ready]
    ends += [pod.name for pod in broken]
    ready_new = [pod for pod in new if pod.is_ready and pod.name not in ends]
    ready_old = leaving([pod for pod in old if pod.is_ready])
    spare = len(ready_new) + len(ready_old) - (wanted - missing)
    ends += [pod.name for pod in ready_old[: max(0, spare)]]
    return Moves(starts=starts, ends=tuple(ends))


def leaving(pods: Sequence[Standing]) -> list[Standing]:
    """Return the pods in the order in which they are ended: those not ready first, then the youngest."""
    return sorted(pods, key=lambda pod: (pod.is_ready, -pod.since_s))


class Threshold:
    """How a kubelet reads a probe: one success is enough, so many failures in a row are needed."""

    def __init__(self, failures: int) -> None:
        self._most = failures
        self._failed = 0
        self.is_up: bool | None = None

    def take(self, *, is_success: bool) -> bool:
        """Take an answer; return whether what the probe stands for has just changed."""
        before = self.is_up
        self._failed = 0 if is_success else self._failed + 1
        if is_success:
            self.is_up = True
        elif self._failed >= self._most:
            self.is_up = False
        return self.is_up is not before
