"""KEDA's side of a pool: which consumers it looks at, and how many pods follow from what it sees.

KEDA reads one consumer a trigger: tasks pending and in flight. A pool's number of pods is the sum over the lanes of a
capability, divided by its slots in a pod; of several capabilities, which have slots of their own, the hungriest one
counts. Work that waits for a moment to come is no consumer's, so it holds no pod.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from callboard.cli.k8s_pod import Manifest
from callboard.runtime import subjects

MAX_REPLICAS: Final = 1000
POLL_S: Final = 10
COOL_DOWN_S: Final = 300


class Monitoring(Struct, frozen=True, kw_only=True):
    """Where KEDA asks.

    Attributes:
        endpoint: The servers' headless service: KEDA puts a pod's name before it to ask a consumer's leader.
        account: Of the servers' accounts; ``$G`` on servers without users.
    """

    endpoint: str = "nats-headless.callboard.svc.cluster.local:8222"
    account: str = "callboard"


def consumers(capability: str) -> tuple[tuple[str, str], ...]:
    """Return stream and consumer of everything that a capability's slots can take."""
    lanes = tuple((subjects.WORK, subjects.consumer(capability, lane)) for lane in subjects.LANES)
    return (*lanes, (subjects.LATER, subjects.due_consumer(capability)))


def formula(groups: Sequence[Sequence[str]]) -> str:
    """Return the load of the hungriest capability from the names of each one's triggers."""
    sums = [" + ".join(group) for group in groups]
    return sums[0] if len(sums) == 1 else f"max({', '.join(sums)})"


def scaled_object(
    target: str,
    capabilities: Sequence[str],
    *,
    marks: Mapping[str, str],
    low: int,
    high: int,
    slots: int,
    monitoring: Monitoring,
) -> Manifest:
    """Return the ScaledObject of a Deployment.

    Args:
        target: The Deployment, and the name of this.
        capabilities: What it serves.
        marks: Labels.
        low: Fewest pods; 0 ends the last one when nothing is left to do.
        high: Most pods.
        slots: Of each capability in one pod.
        monitoring: Where KEDA asks.
    """
    groups: list[list[str]] = []
    triggers: list[Manifest] = []
    for number, capability in enumerate(capabilities):
        names = []
        for stream, consumer in consumers(capability):
            # names stand in a formula, where capabilities such as `top-5` would be sums
            name = f"c{number}_{consumer.rpartition('-')[2]}"
            triggers.append(_trigger(name, stream, consumer, slots=slots, monitoring=monitoring))
            names.append(name)
        groups.append(names)
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": target, "labels": dict(marks)},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
            "pollingInterval": POLL_S,
            "cooldownPeriod": COOL_DOWN_S,
            "minReplicaCount": low,
            "maxReplicaCount": high,
            # when the servers do not answer, what runs goes on: its leases are kept
            "fallback": {"failureThreshold": 3, "replicas": max(1, low), "behavior": "currentReplicasIfHigher"},
            "advanced": {
                "horizontalPodAutoscalerConfig": {"behavior": _behavior()},
                "scalingModifiers": {
                    "formula": formula(groups),
                    "target": str(slots),
                    "activationTarget": "0",
                    "metricType": "AverageValue",
                },
            },
            "triggers": triggers,
        },
    }


def _trigger(name: str, stream: str, consumer: str, *, slots: int, monitoring: Monitoring) -> Manifest:
    return {
        "type": "nats-jetstream",
        "name": name,
        "metadata": {
            "natsServerMonitoringEndpoint": monitoring.endpoint,
            "account": monitoring.account,
            "stream": stream,
            "consumer": consumer,
            "lagThreshold": str(slots),
            "activationLagThreshold": "0",
        },
    }


def _behavior() -> Manifest:
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 15},
                {"type": "Pods", "value": 4, "periodSeconds": 15},
            ],
        },
        # any pod may be chosen, a busy one too: it drains, and fewer at once means fewer long turns that are disturbed
        "scaleDown": {
            "stabilizationWindowSeconds": COOL_DOWN_S,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 25, "periodSeconds": 60},
                {"type": "Pods", "value": 1, "periodSeconds": 60},
            ],
        },
    }
