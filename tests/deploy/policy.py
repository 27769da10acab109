"""What every rendered object must hold to, whatever its schema allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.deploy.render import containers

Manifest = dict[str, Any]

_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[^@\s]+:(?!latest$)[\w.-]+")
_SECRET_NAME = re.compile(r"(PASSWORD|TOKEN|SEED|SECRET|API_KEY)$")
EGRESS = ("callboard.dev/egress", "providers")
# After a drain what was cancelled has five seconds, and the process needs a moment.
DRAIN_MARGIN_S = 5
SPOT_NOTICE_S = 25


def problems(objects: list[Manifest], *, is_production: bool) -> list[str]:
    """Return every breach, with the object that it is in.

    Args:
        objects: All of an overlay.
        is_production: Whether it must name images by digest, have users and deny traffic by default.
    """
    found = [*_names(objects), *_keys(objects)]
    for each in objects:
        if each["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
            found += [f"{_title(each)}: {text}" for text in _pod(each, objects, is_production=is_production)]
    if is_production:
        found += _traffic(objects)
    return found


def _title(each: Manifest) -> str:
    return f"{each['kind']}/{each['metadata']['name']}"


def _names(objects: list[Manifest]) -> Iterator[str]:
    seen: set[str] = set()
    for each in objects:
        if _title(each) in seen:
            yield f"{_title(each)}: stands there twice"
        seen.add(_title(each))
        if each["kind"] != "Namespace" and not each["metadata"].get("namespace"):
            yield f"{_title(each)}: has no namespace"
        if each["kind"] == "Secret":
            yield f"{_title(each)}: secrets do not belong into manifests"


def _pod(each: Manifest, objects: list[Manifest], *, is_production: bool) -> Iterator[str]:
    template = each["spec"]["template"]
    pod = template["spec"]
    yield from _whole_pod(pod, objects)
    for container in containers(pod):
        name = container["name"]
        yield from (f"{name}: {text}" for text in _container(container, is_production=is_production))
        if each["kind"] != "Job":
            yield from (
                f"{name}: has no {probe}"
                for probe in ("startupProbe", "livenessProbe", "readinessProbe")
                if probe not in container
            )
    yield from _grace(pod)
    if each["kind"] == "Job":
        return
    marks = template["metadata"]["labels"]
    if not _matches(each["spec"]["selector"], marks):
        yield "its selector does not match its pods"
    budgets = [
        other
        for other in objects
        if other["kind"] == "PodDisruptionBudget" and _matches(other["spec"]["selector"], marks)
    ]
    if len(budgets) != 1:
        yield f"{len(budgets)} disruption budgets match its pods, one must"
    elif budgets[0]["spec"].get("maxUnavailable") in {None, 0, "0%"}:
        yield "its disruption budget lets no node be emptied"
    spreads = pod.get("topologySpreadConstraints", ())
    if not any(
        constraint["topologyKey"] == "kubernetes.io/hostname" and _matches(constraint["labelSelector"], marks)
        for constraint in spreads
    ):
        yield "its pods do not spread over nodes"


def _whole_pod(pod: Manifest, objects: list[Manifest]) -> Iterator[str]:
    context = pod.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if pod.get("automountServiceAccountToken") is not False:
        yield "mounts a token"
    accounts = {other["metadata"]["name"]: other for other in objects if other["kind"] == "ServiceAccount"}
    account = accounts.get(pod.get("serviceAccountName", ""))
    if account is None:
        yield "has no ServiceAccount of its own"
    elif account.get("automountServiceAccountToken") is not False:
        yield "its ServiceAccount hands out tokens"
    for shared in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.get(shared):
            yield f"sets {shared}"
    for volume in pod.get("volumes", ()):
        if not set(volume) & {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}:
            yield f"volume {volume['name']} is none of the harmless kinds"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} may fill the node"


def _container(container: Manifest, *, is_production: bool) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("readOnlyRootFilesystem") is not True:
        yield "its root can be written"
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities of the kernel"
    if {"runAsUser", "runAsNonRoot", "seccompProfile"} & set(context):
        yield "overrides its pod"
    resources = container.get("resources", {})
    for which, what in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        if what not in resources.get(which, {}):
            yield f"has no {what} in {which}"
    if is_production and not _DIGEST.fullmatch(container["image"]):
        yield f"its image {container['image']} is not named by digest"
    if not is_production and not (_DIGEST.fullmatch(container["image"]) or _TAG.fullmatch(container["image"])):
        yield f"its image {container['image']} has no tag"
    yield from _secrets(container)


def _secrets(container: Manifest) -> Iterator[str]:
    for variable in container.get("env", ()):
        if _SECRET_NAME.search(variable["name"]):
            yield f"{variable['name']} holds a secret in the clear, where `kubectl describe` shows it"
    for source in container.get("envFrom", ()):
        if "secretRef" in source:
            yield "takes a Secret as variables; mount it"


def _grace(pod: Manifest) -> Iterator[str]:
    grace_s = pod.get("terminationGracePeriodSeconds", 30)
    for container in pod["containers"]:
        values = {variable["name"]: variable.get("value", "") for variable in container.get("env", ())}
        drain = values.get("CALLBOARD_WORKER__DRAIN_GRACE_S")
        if drain is None:
            if container.get("args", [])[:2] == ["worker", "start"]:
                yield f"{container['name']}: says nothing of its drain"
            continue
        if grace_s <= float(drain) + DRAIN_MARGIN_S:
            yield f"is killed after {grace_s} s, and drains for {drain} s"
        if values.get("CALLBOARD_WORKER__SHUTDOWN") == "finish-step" and grace_s > SPOT_NOTICE_S:
            yield f"takes {grace_s} s to end, the notice is {SPOT_NOTICE_S} s"


def _keys(objects: list[Manifest]) -> Iterator[str]:
    """Yield who can read keys that are not its own. A user's Secret goes to its pods, a provider's to model workers."""
    for each in objects:
        if each["kind"] not in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
            continue
        template = each["spec"]["template"]
        marks = template["metadata"]["labels"]
        mounted = {
            volume["secret"]["secretName"] for volume in template["spec"].get("volumes", ()) if "secret" in volume
        }
        component, instance = marks.get("app.kubernetes.io/component"), marks.get("app.kubernetes.io/instance")
        allowed = {
            "worker": {f"callboard-worker-{instance}", f"callboard-host-{instance}"},
            "registry": {"callboard-registry"},
            "provision": {"callboard-operator"},
        }.get(component or "", set())
        is_model = marks.get(EGRESS[0]) == EGRESS[1]
        if is_model and component == "worker":
            allowed = allowed | {"callboard-providers"}
        for name in sorted(mounted - allowed):
            yield f"{_title(each)}: can read the Secret {name}"
        if is_model and "callboard-providers" not in mounted:
            yield f"{_title(each)}: may leave the cluster without a provider to reach"
        for container in template["spec"]["containers"]:
            if any("valueFrom" in v and "secretKeyRef" in v["valueFrom"] for v in container.get("env", ())):
                yield f"{_title(each)}: takes a Secret as variables; mount it"


def _traffic(objects: list[Manifest]) -> Iterator[str]:
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    if not any(
        each["spec"]["podSelector"] == {}
        and set(each["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not each["spec"].get("ingress")
        and not each["spec"].get("egress")
        for each in policies
    ):
        yield "no policy denies all traffic that is not listed"
    for each in policies:
        spec = each["spec"]
        for rule in spec.get("egress", ()):
            if not rule.get("to") or not rule.get("ports"):
                yield f"{_title(each)}: lets traffic out to anybody or on any port"
            blocks = [peer["ipBlock"] for peer in rule.get("to", ()) if "ipBlock" in peer]
            if blocks and spec["podSelector"].get("matchLabels") != {EGRESS[0]: EGRESS[1]}:
                yield f"{_title(each)}: lets pods without a provider out of the cluster"
            for block in blocks:
                if block["cidr"] == "0.0.0.0/0" and "169.254.0.0/16" not in block.get("except", ()):
                    yield f"{_title(each)}: lets pods reach the metadata service of the cloud"
        yield from (f"{_title(each)}: lets anybody in" for rule in spec.get("ingress", ()) if not rule.get("from"))


def _matches(selector: Manifest, marks: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    return bool(wanted) and all(marks.get(key) == value for key, value in wanted.items())
