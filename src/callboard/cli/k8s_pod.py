"""The pod that all of Callboard's pods are: restricted, without a token, told by variables, read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

Manifest = dict[str, Any]

IMAGE: Final = "callboard"
"""A name that stands for the image; an overlay's ``images`` says which one it is."""
CONFIG_MAP: Final = "callboard"
HEALTH_PORT: Final = 8080
USER_ID: Final = 10001
USER_FOLDER: Final = "/etc/callboard/user"
PROVIDER_FOLDER: Final = "/etc/callboard/providers"
CODE_FOLDER: Final = "/srv/code"
EGRESS_LABEL: Final = "callboard.dev/egress"

_SCRATCH: Final = "/tmp"  # noqa: S108 - an emptyDir of the pod's own


class Login(Struct, frozen=True, kw_only=True):
    """Which of the servers' users a pod is. Its Secret ``callboard-<user>`` is mounted there and nowhere else.

    Attributes:
        is_guest: The user may not write where the server holds the mail of others (``nats.is_guest``).
        is_worker: Its processes are workers of that user.
        hosts_registry: It is the one user that may.
    """

    user: str
    is_guest: bool = False
    is_worker: bool = True
    hosts_registry: bool = False

    @property
    def secret(self) -> str:
        """The name of the Secret with seed and certificates."""
        return f"callboard-{self.user}"

    def variables(self) -> list[Manifest]:
        """Return the settings that make a process this user."""
        nats = {
            "NKEY_SEED_FILE": f"{USER_FOLDER}/seed",
            "INBOX_PREFIX": f"_INBOX.{self.user}",
            "TLS_CA_FILE": f"{USER_FOLDER}/ca.crt",
            "TLS_CERT_FILE": f"{USER_FOLDER}/tls.crt",
            "TLS_KEY_FILE": f"{USER_FOLDER}/tls.key",
        }
        found = {f"CALLBOARD_NATS__{name}": value for name, value in nats.items()}
        if self.is_guest:
            found["CALLBOARD_NATS__IS_GUEST"] = "true"
        if self.is_worker:
            found["CALLBOARD_WORKER__USER"] = self.user
            found["CALLBOARD_REGISTRY__HOST"] = "true" if self.hosts_registry else "false"
        return variables(found)


class Room(Struct, frozen=True, kw_only=True):
    """What one pod may use. There is no limit on CPU: a throttled worker extends its leases late.

    Attributes:
        scratch: Room of ``/tmp``, the only folder that can be written.
    """

    cpu: str = "250m"
    memory: str = "512Mi"
    scratch: str = "1Gi"

    def resources(self) -> Manifest:
        """Return requests and limits."""
        return {
            "requests": {"cpu": self.cpu, "memory": self.memory, "ephemeral-storage": "128Mi"},
            "limits": {"memory": self.memory, "ephemeral-storage": "2Gi"},
        }


def labels(component: str, name: str) -> dict[str, str]:
    """Return the labels of one part of the deployment."""
    return {
        "app.kubernetes.io/name": "callboard",
        "app.kubernetes.io/part-of": "callboard",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": name,
    }


def variables(values: Mapping[str, str]) -> list[Manifest]:
    """Return environment variables in the order given."""
    return [{"name": name, "value": value} for name, value in values.items()]


def service_account(name: str, marks: Mapping[str, str]) -> Manifest:
    """Return an identity of a pod's own, without a token: no pod of ours talks to Kubernetes."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "labels": dict(marks)},
        "automountServiceAccountToken": False,
    }


def template(
    *,
    name: str,
    account: str,
    marks: Mapping[str, str],
    arguments: Sequence[str],
    env: Sequence[Manifest],
    room: Room,
    grace_s: int,
    login: Login | None = None,
    code: str | None = None,
    providers: str | None = None,
    is_served: bool = True,
    more: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return a pod template that passes the restricted standard.

    Args:
        name: Of the container.
        account: Its ServiceAccount.
        marks: Its labels.
        arguments: Of ``callboard``.
        env: Variables beside those of the ConfigMap and the login.
        room: Requests and limits.
        grace_s: Seconds from SIGTERM to SIGKILL.
        login: The user it is; None for servers without users.
        code: A ConfigMap with modules, mounted as a folder.
        providers: A Secret with the keys of model providers, mounted as files.
        is_served: Whether it answers probes; a Job does not.
        more: Further fields of the pod.
    """
    mounts, volumes = _volumes(room, code=code, providers=providers, login=login)
    container: Manifest = {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["callboard"],
        "args": list(arguments),
        "envFrom": [{"configMapRef": {"name": CONFIG_MAP}}],
        "env": [
            *env,
            *variables({"HOME": _SCRATCH, "PYTHONDONTWRITEBYTECODE": "1"}),
            *(login.variables() if login is not None else ()),
        ],
        "resources": room.resources(),
        "securityContext": _shut(),
        "volumeMounts": mounts,
    }
    if is_served:
        container |= {"ports": [{"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"}], **_probes()}
    spec: Manifest = {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_s,
        "securityContext": _restricted(),
        "containers": [container],
        "volumes": volumes,
        **(more or {}),
    }
    return {"metadata": {"labels": dict(marks)}, "spec": spec}


def spread(marks: Mapping[str, str]) -> list[Manifest]:
    """Return the wish to stand on different nodes and zones; a full node shall not keep work waiting."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(marks)},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def disruption_budget(name: str, marks: Mapping[str, str]) -> Manifest:
    """Return a budget that lets nodes be emptied one pod at a time, and never for the sake of a broken one."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "labels": dict(marks)},
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": dict(marks)},
        },
    }


def _volumes(
    room: Room, *, code: str | None, providers: str | None, login: Login | None
) -> tuple[list[Manifest], list[Manifest]]:
    """Return where the container sees what, and what that is; the login comes last."""
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": _SCRATCH}]
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {"sizeLimit": room.scratch}}]
    if code is not None:
        mounts.append({"name": "code", "mountPath": CODE_FOLDER, "readOnly": True})
        volumes.append({"name": "code", "configMap": {"name": code}})
    for name, place, secret in (
        ("providers", PROVIDER_FOLDER, providers),
        ("user", USER_FOLDER, login.secret if login is not None else None),
    ):
        if secret is not None:
            mounts.append({"name": name, "mountPath": place, "readOnly": True})
            volumes.append({"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}})
    return mounts, volumes


def _restricted() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _shut() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _probes() -> Manifest:
    def probe(path: str, *, every_s: int, failures: int) -> Manifest:
        return {
            "httpGet": {"path": path, "port": "health"},
            "periodSeconds": every_s,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        }

    return {
        # five minutes for a cluster that is still electing; nothing is restarted because the server is away
        "startupProbe": probe("/startupz", every_s=2, failures=150),
        "livenessProbe": probe("/livez", every_s=10, failures=6),
        "readinessProbe": probe("/readyz", every_s=5, failures=3),
    }
