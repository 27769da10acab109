"""KEDA's loop and the autoscaler behind it over time: plain functions of the load seen, the pods and the clock.

Source: KEDA 2.20 scales from and to none itself, by ``pollingInterval`` and ``cooldownPeriod``; between one and the
most it hands the load to Kubernetes' HorizontalPodAutoscaler (autoscaling/v2), which looks every 15 s, tolerates a
tenth, and keeps to the policies of ``behavior``. All times are the manifest's seconds, whatever clock they are on.
"""

from __future__ import annotations

import math
from typing import Any

from tests.deploy.render import Manifest

SYNC_S = 15.0
TOLERANCE = 0.1


class Autoscaler:
    """How many pods a ScaledObject wants, from what it sees.

    Attributes:
        replicas: What it wants now.
    """

    def __init__(self, scaled: Manifest) -> None:
        spec = scaled["spec"]
        self._spec = spec
        self._behavior: dict[str, Any] = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        self._target = float(spec["advanced"]["scalingModifiers"]["target"])
        self._activation = float(spec["advanced"]["scalingModifiers"]["activationTarget"])
        self.replicas = int(spec["minReplicaCount"])
        self._active_s = -math.inf
        self._synced_s = -math.inf
        self._changes: list[tuple[float, int]] = []
        self._advice: list[tuple[float, int]] = []

    @property
    def poll_s(self) -> float:
        """How often KEDA looks."""
        return float(self._spec["pollingInterval"])

    def see(self, load: float, *, at_s: float) -> int:
        """Take the load of a look and return how many pods there shall be."""
        is_active = load > self._activation
        if is_active:
            self._active_s = at_s
        least = int(self._spec["minReplicaCount"])
        if self.replicas == 0:
            if is_active:
                self._set(1, at_s)
                self._synced_s = at_s
        elif least == 0 and at_s - self._active_s >= self._spec["cooldownPeriod"]:
            self._set(0, at_s)
            self._advice.clear()
        elif at_s - self._synced_s >= SYNC_S:
            self._synced_s = at_s
            self._set(self._synced(load, at_s, least=max(1, least)), at_s)
        return self.replicas

    def _synced(self, load: float, at_s: float, *, least: int) -> int:
        """Return what the HorizontalPodAutoscaler decides."""
        ratio = load / (self._target * self.replicas)
        raw = self.replicas if abs(ratio - 1) <= TOLERANCE else math.ceil(load / self._target)
        self._advice.append((at_s, raw))
        wanted = self._stabilized(raw, at_s)
        if wanted > self.replicas:
            wanted = min(wanted, self._most(at_s))
        elif wanted < self.replicas:
            wanted = max(wanted, self._fewest(at_s))
        return max(least, min(int(self._spec["maxReplicaCount"]), wanted))

    def _stabilized(self, raw: int, at_s: float) -> int:
        """Return the advice nearest to what is, of those of the windows: nothing goes that was wanted a moment ago."""
        up_s = float(self._behavior["scaleUp"]["stabilizationWindowSeconds"])
        down_s = float(self._behavior["scaleDown"]["stabilizationWindowSeconds"])
        self._advice = [each for each in self._advice if at_s - each[0] <= max(up_s, down_s)]
        lowest: int = min([raw, *(wanted for then_s, wanted in self._advice if at_s - then_s < up_s)])
        highest: int = max([raw, *(wanted for then_s, wanted in self._advice if at_s - then_s < down_s)])
        return max(lowest, min(self.replicas, highest))

    def _most(self, at_s: float) -> int:
        found: list[int] = []
        for policy in self._policies("scaleUp"):
            before = self.replicas - sum(max(0, by) for by in self._within(policy["periodSeconds"], at_s))
            grown = before * (1 + policy["value"] / 100) if policy["type"] == "Percent" else before + policy["value"]
            found.append(math.ceil(grown))
        return max(found)

    def _fewest(self, at_s: float) -> int:
        found: list[int] = []
        for policy in self._policies("scaleDown"):
            before = self.replicas - sum(min(0, by) for by in self._within(policy["periodSeconds"], at_s))
            left = before * (1 - policy["value"] / 100) if policy["type"] == "Percent" else before - policy["value"]
            found.append(int(left))
        return min(found)

    def _policies(self, way: str) -> list[dict[str, Any]]:
        assert self._behavior[way]["selectPolicy"] == "Max"
        policies: list[dict[str, Any]] = self._behavior[way]["policies"]
        return policies

    def _within(self, period_s: float, at_s: float) -> list[int]:
        return [by for then_s, by in self._changes if at_s - then_s < period_s]

    def _set(self, replicas: int, at_s: float) -> None:
        if replicas != self.replicas:
            self._changes.append((at_s, replicas - self.replicas))
            self.replicas = replicas
