"""Strict schemas: Kubernetes' own for what is built in, ours for the custom resources that we write.

Ours list what we use and forbid the rest, because a cluster drops unknown fields of a custom resource in silence. With
``CALLBOARD_CRDS`` set to a folder of CRD files, theirs are asked as well.
"""



from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

VERSION = "1.34"
Manifest = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Number = Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]
Span = Annotated[str, Field(pattern=r"^\d+(ms|s|m|h)$")]
StreamName = Annotated[str, Field(pattern=r"^[^.*>\s]+$")]


class Strict(BaseModel):
    """Nothing unknown, nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name
    namespace: Name | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class TargetRef(Strict):
    apiVersion: Literal["apps/v1"]
    kind: Literal["Deployment"]
    name: Name


class Fallback(Strict):
    failureThreshold: Annotated[int, Field(ge=0)]
    replicas: Annotated[int, Field(ge=0)]
    behavior: Literal["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]


class Policy(Strict):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Field(ge=1)]
    periodSeconds: Annotated[int, Field(ge=1, le=1800)]


class Rules(Strict):
    stabilizationWindowSeconds: Annotated[int, Field(ge=0, le=3600)]
    selectPolicy: Literal["Max", "Min", "Disabled"]
    policies: Annotated[list[Policy], Field(min_length=1)]


class Behavior(Strict):
    scaleUp: Rules
    scaleDown: Rules


class HpaConfig(Strict):
    behavior: Behavior


class Modifiers(Strict):
    formula: str
    target: Number
    activationTarget: Number
    metricType: Literal["AverageValue", "Value"]


class Advanced(Strict):
    horizontalPodAutoscalerConfig: HpaConfig
    scalingModifiers: Modifiers


class JetStreamTrigger(Strict):
    natsServerMonitoringEndpoint: str
    account: str
    stream: StreamName
    consumer: StreamName
    lagThreshold: Number
    activationLagThreshold: Number


class Trigger(Strict):
    type: Literal["nats-jetstream"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    metadata: JetStreamTrigger


class ScaledObjectSpec(Strict):
    scaleTargetRef: TargetRef
    pollingInterval: Annotated[int, Field(ge=1)]
    cooldownPeriod: Annotated[int, Field(ge=0)]
    minReplicaCount: Annotated[int, Field(ge=0)]
    maxReplicaCount: Annotated[int, Field(ge=1)]
    fallback: Fallback
    advanced: Advanced
    triggers: Annotated[list[Trigger], Field(min_length=1)]


class Resource(Strict):
    metadata: Metadata


class ScaledObject(Resource):
    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    spec: ScaledObjectSpec


class Requirement(Strict):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class Selector(Strict):
    matchLabels: dict[str, str]
    matchExpressions: list[Requirement] = []


class Relabeling(Strict):
    sourceLabels: list[str]
    targetLabel: str


class MetricsEndpoint(Strict):
    port: str
    path: str
    interval: Span
    scrapeTimeout: Span
    relabelings: list[Relabeling] = []


class PodMonitorSpec(Strict):
    selector: Selector
    podMetricsEndpoints: Annotated[list[MetricsEndpoint], Field(min_length=1)]


class PodMonitor(Resource):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    spec: PodMonitorSpec


class Transform(Strict):
    source: str
    dest: str


class StreamSource(Strict):
    name: StreamName
    filterSubject: str | None = None
    subjectTransforms: list[Transform] = []


class StreamSpec(Strict):
    name: StreamName
    account: str
    preventDelete: bool
    retention: Literal["limits", "interest", "workqueue"]
    storage: Literal["file", "memory"]
    discard: Literal["old", "new"]
    replicas: Annotated[int, Field(ge=1, le=5)]
    maxAge: Span
    maxBytes: int
    maxMsgs: int
    maxMsgsPerSubject: int
    maxMsgSize: int
    maxConsumers: int
    duplicateWindow: Span
    discardPerSubject: bool
    allowAtomicPublish: bool
    allowDirect: bool
    allowRollup: bool
    allowMsgTtl: bool
    allowMsgSchedules: bool
    denyDelete: bool
    denyPurge: bool
    subjects: Annotated[list[str], Field(min_length=1)] | None = None
    sources: list[StreamSource] = []
    subjectTransform: Transform | None = None
    persistMode: Literal["async", "default"] | None = None


class Stream(Resource):
    apiVersion: Literal["jetstream.nats.io/v1beta2"]
    kind: Literal["Stream"]
    spec: StreamSpec


class ConsumerSpec(Strict):
    streamName: StreamName
    durableName: StreamName
    account: str
    preventDelete: bool
    ackPolicy: Literal["none", "all", "explicit"]
    deliverPolicy: Literal["all", "last", "new", "byStartSequence", "byStartTime", "lastPerSubject"]
    filterSubject: str
    ackWait: Span
    maxDeliver: Annotated[int, Field(ge=-1)]
    maxAckPending: int


class Consumer(Resource):
    apiVersion: Literal["jetstream.nats.io/v1beta2"]
    kind: Literal["Consumer"]
    spec: ConsumerSpec


class SecretName(Strict):
    name: Name


class AccountTls(Strict):
    secret: SecretName
    ca: str
    cert: str
    key: str


class AccountKey(Strict):
    secret: SecretName
    seed: str


class AccountSpec(Strict):
    name: StreamName
    servers: Annotated[list[str], Field(min_length=1)]
    tls: AccountTls
    nkey: AccountKey


class Account(Resource):
    apiVersion: Literal["jetstream.nats.io/v1beta2"]
    kind: Literal["Account"]
    spec: AccountSpec


CUSTOM: dict[str, type[Resource]] = {
    "ScaledObject": ScaledObject,
    "PodMonitor": PodMonitor,
    "Stream": Stream,
    "Consumer": Consumer,
    "Account": Account,
}


def is_custom(manifest: Manifest) -> bool:
    """Return whether it is a custom resource."""
    group = manifest["apiVersion"].partition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def problems(manifest: Manifest) -> list[str]:
    """Return what is wrong with a custom resource; a kind that we have no schema of is wrong."""
    model = CUSTOM.get(manifest["kind"])
    if model is None:
        return [f"there is no schema of {manifest['apiVersion']} {manifest['kind']}"]
    try:
        model.model_validate(manifest)
    except ValidationError as error:
        return [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    return []


def built_in_problems(manifest: Manifest) -> list[str]:
    """Return what Kubernetes' own schema says of a built-in object; skips where the package is missing."""
    package = pytest.importorskip(
        "kubernetes_validate", reason="the package kubernetes-validate is not installed: `pip install -e . --group dev`"
    )
    try:
        package.validate(manifest, VERSION, strict=True)
    except package.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    except package.SchemaNotFoundError as error:
        return [str(error.message)]
    return []


def crds() -> dict[str, Manifest]:
    """Return strict schemas of the CRD files in ``CALLBOARD_CRDS``, by kind; skips without."""
    folder = os.environ.get("CALLBOARD_CRDS", "")
    if not folder:
        pytest.skip("CALLBOARD_CRDS names no folder of CRD files: ours alone have looked at the custom resources")
    found: dict[str, Manifest] = {}
    for path in sorted(Path(folder).glob("*.y*ml")):
        for document in yaml.load_all(path.read_text("utf-8"), Loader=_Loader):
            if document and document.get("kind") == "CustomResourceDefinition":
                kind = document["spec"]["names"]["kind"]
                for version in document["spec"]["versions"]:
                    key = f"{document['spec']['group']}/{version['name']} {kind}"
                    whole = copy.deepcopy(version["schema"]["openAPIV3Schema"])
                    # Kubernetes' own, which not every CRD names
                    whole["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
                    found[key] = _closed(whole)
    return found


def crd_problems(manifest: Manifest, schemas: dict[str, Manifest]) -> list[str]:
    """Return what a CRD's own schema says, made strict."""
    jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
    key = f"{manifest['apiVersion']} {manifest['kind']}"
    assert key in schemas, f"CALLBOARD_CRDS holds no CRD of {key}"
    errors: Iterator[Any] = jsonschema.Draft202012Validator(schemas[key]).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


class _Loader(yaml.SafeLoader):
    """Reads a lone ``=`` as text, as newer YAML does."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _, node: str(node.value))


def _closed(schema: Any) -> Any:  # noqa: ANN401 - maps and lists in turn
    """Forbid what an object's schema does not name."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_object = isinstance(schema.get("properties"), dict)
    if is_object and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    return closed
