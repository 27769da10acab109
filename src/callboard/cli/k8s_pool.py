"""A pool on Kubernetes: what ``callboard k8s render`` writes, as data."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from callboard.cli.k8s_pod import (
    CODE_FOLDER,
    EGRESS_LABEL,
    HEALTH_PORT,
    PROVIDER_FOLDER,
    Login,
    Manifest,
    Room,
    disruption_budget,
    labels,
    service_account,
    spread,
    template,
    variables,
)
from callboard.cli.k8s_scaler import MAX_REPLICAS, Monitoring, scaled_object
from callboard.runtime import subjects
from callboard.runtime.errors import ConfigError, InvalidNameError

# What was cancelled at the end of the grace time has five seconds to end, and the process a few to leave.
MARGIN_S: Final = 30
SPOT_MARGIN_S: Final = 10
SPOT_DRAIN_S: Final = 15
MAX_POOL_BYTES: Final = 40
INSTALLED: Final = "@installed"

_POOL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_OBJECT = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

Scaler = Literal["keda", "none"]


class Pool(Struct, frozen=True, kw_only=True):
    """Everything that the manifests of a pool follow from.

    Attributes:
        capabilities: What it serves; each has ``slots`` of its own in every pod.
        modules: What ``worker start`` is given.
        min, max: Pods. A pool that hosts actors keeps at least one: an ask to nobody is refused.
        drain_grace_s: How long running work may take to finish after SIGTERM, whole seconds.
        labels: What its workers bear.
        node_labels: What its nodes bear.
        has_actors: Whether it hosts actors, as a user of the role ``host``.
        has_login: Whether the servers have users.
        is_spot: For nodes that go at short notice: turns stop before their next step.
        providers: Providers of models whose keys it gets; no pod without one may leave the cluster.
        provider_secret: The Secret that holds them, a key ``<provider>`` each.
        code: A ConfigMap with its modules, in place of an image that holds them.
    """

    name: str
    capabilities: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    min: int = 0
    max: int = 10
    slots: int = 8
    drain_grace_s: int = 600
    labels: Mapping[str, str] = {}
    node_labels: Mapping[str, str] = {}
    has_actors: bool = False
    has_login: bool = True
    is_spot: bool = False
    providers: tuple[str, ...] = ()
    provider_secret: str = "callboard-providers"  # noqa: S105 - the name of one
    code: str | None = None
    scaler: Scaler = "keda"
    room: Room = Room()
    monitoring: Monitoring = Monitoring()

    @property
    def title(self) -> str:
        """The name of its objects."""
        return f"callboard-{self.name}"

    @property
    def served(self) -> tuple[str, ...]:
        """Its capabilities; one of its own name when none was named and it hosts no actors."""
        return self.capabilities or (() if self.has_actors else (self.name,))

    @property
    def grace_s(self) -> int:
        """Seconds from SIGTERM to SIGKILL, longer than the drain."""
        return self.drain_grace_s + (SPOT_MARGIN_S if self.is_spot else MARGIN_S)

    @property
    def login(self) -> Login | None:
        """The user its pods are, as ``callboard nats config --pool`` and ``--host`` name it."""
        if not self.has_login:
            return None
        if self.has_actors:
            return Login(user=f"host-{self.name}")
        return Login(user=f"worker-{self.name}", is_guest=True)


def check(pool: Pool, *, max_ack_pending: int) -> None:
    """Refuse what Kubernetes, the broker or the autoscaler would refuse later, or take in another sense.

    Raises:
        InvalidNameError: If a name, a label or a module cannot be used.
        ConfigError: If numbers do not go together.
    """
    _check_names(pool)
    if not 0 <= pool.min <= pool.max <= MAX_REPLICAS or pool.max < 1:
        message = f"--min {pool.min} --max {pool.max}: take 0 <= min <= max, max from 1 to {MAX_REPLICAS}"
        raise ConfigError(message)
    if pool.slots < 1 or pool.drain_grace_s < 0:
        message = "--slots must be at least 1, and --drain-grace at least 0s"
        raise ConfigError(message)
    if pool.max * pool.slots > max_ack_pending:
        message = (
            f"{pool.max} pods of {pool.slots} slots may hold {pool.max * pool.slots} tasks, but a lane hands out "
            f"{max_ack_pending} at most: lower --max or --slots, or raise work.max_ack_pending"
        )
        raise ConfigError(message)
    if pool.is_spot and pool.drain_grace_s > SPOT_DRAIN_S:
        message = (
            f"--spot: the notice is 25 s, so --drain-grace is at most {SPOT_DRAIN_S}s, is {pool.drain_grace_s}s; "
            "give work that takes longer to a pool without --spot"
        )
        raise ConfigError(message)


def files(pool: Pool) -> dict[str, list[Manifest]]:
    """Return the objects of a pool by the file they stand in; ``kustomization.yaml`` names the others."""
    found: dict[str, list[Manifest]] = {
        "service-account.yaml": [service_account(pool.title, _marks(pool))],
        "deployment.yaml": [_deployment(pool)],
        "disruption-budget.yaml": [disruption_budget(pool.title, _marks(pool))],
    }
    if pool.served:
        found["provision.yaml"] = [_provision(pool)]
    if pool.scaler == "keda" and pool.served:
        found["scaled-object.yaml"] = [
            scaled_object(
                pool.title,
                pool.served,
                marks=_marks(pool),
                low=_fewest(pool),
                high=pool.max,
                slots=pool.slots,
                monitoring=pool.monitoring,
            )
        ]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(found),
    }
    return {"kustomization.yaml": [kustomization], **found}


def _check_names(pool: Pool) -> None:
    if not _POOL.fullmatch(pool.name) or len(pool.name) > MAX_POOL_BYTES:
        message = (
            f"pool {pool.name[:80]!r} cannot name objects of Kubernetes: take 1 to {MAX_POOL_BYTES} of a-z, 0-9 and "
            "'-', beginning and ending with a letter or digit"
        )
        raise InvalidNameError(message, name=pool.name)
    for capability in pool.capabilities:
        subjects.check_name(capability, what="capability")
    for module in pool.modules:
        if not module or module.startswith("-") or not module.isprintable():
            message = f"module {module[:80]!r} is not usable: take a dotted name, a .py file, a folder or {INSTALLED}"
            raise InvalidNameError(message, name=module)
    for what, key, value in (
        *(("--label", key, value) for key, value in pool.labels.items()),
        *(("--node-label", key, value) for key, value in pool.node_labels.items()),
    ):
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            message = (
                f"{what} {key[:80]}={value[:80]} is no label: a key like zone or example.com/zone, and up to 63 of "
                "letters, digits, '-', '_' and '.' as its value"
            )
            raise InvalidNameError(message, name=key)
    for what, value, pattern in (
        ("--provider-secret", pool.provider_secret, _OBJECT),
        ("--code", pool.code if pool.code is not None else "code", _OBJECT),
        ("--cpu", pool.room.cpu, _QUANTITY),
        ("--memory", pool.room.memory, _QUANTITY),
        *(("--provider", provider, _PROVIDER) for provider in pool.providers),
    ):
        if not pattern.fullmatch(value):
            message = f"{what} {value[:80]!r} is not usable on Kubernetes: see `callboard k8s render --help`"
            raise InvalidNameError(message, name=value)


def _fewest(pool: Pool) -> int:
    return max(1, pool.min) if pool.has_actors else pool.min


def _marks(pool: Pool) -> dict[str, str]:
    return labels("worker", pool.name)


def _deployment(pool: Pool) -> Manifest:
    marks = _marks(pool)
    more: Manifest = {"topologySpreadConstraints": spread(marks)}
    if pool.node_labels:
        more["nodeSelector"] = dict(pool.node_labels)
    if pool.is_spot:
        more |= _on_spot()
    pod = template(
        name="worker",
        account=pool.title,
        marks=marks | ({EGRESS_LABEL: "providers"} if pool.providers else {}),
        arguments=["worker", "start", *_modules(pool)],
        env=variables(_settings(pool)),
        room=pool.room,
        grace_s=pool.grace_s,
        login=pool.login,
        code=pool.code,
        providers=pool.provider_secret if pool.providers else None,
        more=more,
    )
    # an autoscaler sets the number of pods; naming it here would set it back at each apply
    fixed = {} if pool.scaler == "keda" and pool.served else {"replicas": max(1, pool.min)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": pool.title, "labels": marks},
        "spec": {
            **fixed,
            "revisionHistoryLimit": 5,
            "progressDeadlineSeconds": max(600, pool.grace_s + 300),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
            "selector": {"matchLabels": marks},
            "template": pod,
        },
    }


def _modules(pool: Pool) -> tuple[str, ...]:
    return pool.modules or ((CODE_FOLDER,) if pool.code is not None else (INSTALLED,))


def _settings(pool: Pool) -> dict[str, str]:
    found = {
        "CALLBOARD_WORKER__POOL": pool.name,
        "CALLBOARD_WORKER__CONCURRENCY": str(pool.slots),
        "CALLBOARD_WORKER__DRAIN_GRACE_S": str(pool.drain_grace_s),
        "CALLBOARD_WORKER__SHUTDOWN": "finish-step" if pool.is_spot else "cooperative",
        "CALLBOARD_WORKER__HEALTH_HOST": "0.0.0.0",  # noqa: S104 - probes come from the node
        "CALLBOARD_WORKER__HEALTH_PORT": str(HEALTH_PORT),
    }
    if pool.labels:
        found["CALLBOARD_WORKER__LABELS"] = ",".join(f"{key}={value}" for key, value in sorted(pool.labels.items()))
    for provider in pool.providers:
        key = f"CALLBOARD_AGENTS__PROVIDERS__{provider.upper()}__API_KEY_FILE"
        found[key] = f"{PROVIDER_FOLDER}/{provider}"
    return found


def _provision(pool: Pool) -> Manifest:
    """Return the Job that makes the pool's consumers: the autoscaler and its workers need them before the first pod."""
    arguments = ["provision", *(word for name in pool.served for word in ("--capability", name))]
    return provision_job(f"callboard-provision-{pool.name}", arguments, instance=pool.name, has_login=pool.has_login)


def provision_job(name: str, arguments: list[str], *, instance: str, has_login: bool) -> Manifest:
    """Return a Job that provisions; its name changes with what it does, because Jobs cannot be changed."""
    digest = hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:6]
    marks = labels("provision", instance)
    pod = template(
        name="provision",
        account="callboard-provision",
        marks=marks,
        arguments=arguments,
        env=[],
        room=Room(cpu="50m", memory="256Mi", scratch="64Mi"),
        grace_s=MARGIN_S,
        login=Login(user="operator", is_worker=False) if has_login else None,
        is_served=False,
        more={"restartPolicy": "OnFailure"},
    )
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-{digest}", "labels": marks},
        "spec": {
            "backoffLimit": 20,
            "activeDeadlineSeconds": 1800,
            "ttlSecondsAfterFinished": 300,
            "template": pod,
        },
    }


def _on_spot() -> Manifest:
    """Return where nodes at short notice are, by the labels and taints of the clouds that are known to set them."""
    known = {
        "karpenter.sh/capacity-type": "spot",
        "eks.amazonaws.com/capacityType": "SPOT",
        "cloud.google.com/gke-spot": "true",
        "kubernetes.azure.com/scalesetpriority": "spot",
        "callboard.dev/spot": "true",
    }
    terms = [{"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]} for key, value in known.items()]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    return {
        "affinity": affinity,
        "tolerations": [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in known],
    }


def seconds(span_s: float) -> int:
    """Return a span as whole seconds, never fewer."""
    return math.ceil(span_s)
