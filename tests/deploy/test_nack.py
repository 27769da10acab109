"""The NACK twin is what ``provision`` makes: field by field, and on a real server."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from msgspec.structs import replace

from callboard.cli import k8s_twin
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import ConsumerConfig, Source, StreamConfig
from callboard.runtime.bus.jetstream_wire import from_consumer, from_stream, to_stream
from callboard.runtime.bus.provision import plan
from callboard.runtime.bus.topology import Topology, declared
from callboard.runtime.config import TopologySettings, WorkSettings
from tests.deploy import generated
from tests.support.server import NatsServer

Manifest = dict[str, Any]

_SPAN = re.compile(r"(\d+)(ms|s|m|h)")
_NS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
# NACK's field: the API's. What it cannot say has no line, and the test of a known stream fails.
_STREAM = {
    "name": "name",
    "retention": "retention",
    "storage": "storage",
    "discard": "discard",
    "replicas": "num_replicas",
    "maxBytes": "max_bytes",
    "maxMsgs": "max_msgs",
    "maxMsgsPerSubject": "max_msgs_per_subject",
    "maxMsgSize": "max_msg_size",
    "maxConsumers": "max_consumers",
    "discardPerSubject": "discard_new_per_subject",
    "allowAtomicPublish": "allow_atomic",
    "allowDirect": "allow_direct",
    "allowRollup": "allow_rollup_hdrs",
    "allowMsgTtl": "allow_msg_ttl",
    "allowMsgSchedules": "allow_msg_schedules",
    "denyDelete": "deny_delete",
    "denyPurge": "deny_purge",
    "subjects": "subjects",
    "persistMode": "persist_mode",
}
_CONSUMER = {
    "durableName": "durable_name",
    "ackPolicy": "ack_policy",
    "deliverPolicy": "deliver_policy",
    "filterSubject": "filter_subject",
    "maxDeliver": "max_deliver",
    "maxAckPending": "max_ack_pending",
}
_NOT_SENT = {"account", "preventDelete", "streamName"}


def _ns(text: str) -> int:
    found = _SPAN.fullmatch(text)
    assert found, text
    return int(found[1]) * _NS[found[2]]


def _transform(said: Manifest) -> Manifest:
    return {"src": said["source"], "dest": said["dest"]}


def _source(said: Manifest) -> Manifest:
    names = {"name": "name", "filterSubject": "filter_subject"}
    found = {names[key]: value for key, value in said.items() if key in names}
    if "subjectTransforms" in said:
        found["subject_transforms"] = [_transform(each) for each in said["subjectTransforms"]]
    return found


def to_api(manifest: Manifest) -> Manifest:
    """Return the request that NACK makes of a resource, as its controller does."""
    spec = {key: value for key, value in manifest["spec"].items() if key not in _NOT_SENT}
    if manifest["kind"] == "Consumer":
        body = {"ack_wait": _ns(spec.pop("ackWait")), "name": spec["durableName"]}
        return body | {_CONSUMER[key]: value for key, value in spec.items()}
    body = {"max_age": _ns(spec.pop("maxAge")), "duplicate_window": _ns(spec.pop("duplicateWindow"))}
    if "sources" in spec:
        body["sources"] = [_source(each) for each in spec.pop("sources")]
    if "subjectTransform" in spec:
        body["subject_transform"] = _transform(spec.pop("subjectTransform"))
    return body | {_STREAM[key]: value for key, value in spec.items()}


def _as_declared(manifest: Manifest, topology: Topology) -> StreamConfig | ConsumerConfig:
    name = manifest["spec"].get("name") or manifest["spec"]["durableName"]
    streams = {each.name: each for each in topology.streams}
    return streams.get(name) or next(each for _, each in topology.consumers if each.name == name)


@pytest.mark.parametrize("replicas", [1, 3, 5])
@pytest.mark.parametrize("audit", [True, False])
def test_the_twin_asks_for_what_provision_asks_for(replicas: Literal[1, 3, 5], *, audit: bool) -> None:
    topology = declared(TopologySettings(replicas=replicas), capabilities=("hello", "top-5"), audit=audit)
    resources = k8s_twin.twin(topology)
    assert len(resources) == len(topology.streams) + len(topology.consumers)
    wanted = [from_stream(each) for each in topology.streams] + [from_consumer(each) for _, each in topology.consumers]
    assert [to_api(each) for each in resources] == wanted
    names = [(each["kind"], each["metadata"]["name"]) for each in resources]
    assert len(set(names)) == len(names)


def test_the_component_is_the_twin_of_what_provision_makes_with_three_copies() -> None:
    text = (generated.K8S / "components/nack/streams.yaml").read_text("utf-8")
    found = list(yaml.safe_load_all(text))
    topology = generated.twin()
    assert len(found) == len(topology.streams) + len(topology.consumers)
    for each in found:
        config = _as_declared(each, topology)
        assert to_api(each) == (from_stream(config) if isinstance(config, StreamConfig) else from_consumer(config))


@pytest.mark.parametrize(
    ("stream", "field", "value"),
    [("CB_WORK", "discard", "old"), ("CB_LEDGER", "denyPurge", False), ("CB_AUDIT", "sources", [{"name": "CB_WORK"}])],
)
def test_the_comparison_notices_another_field(stream: str, field: str, value: object) -> None:
    topology = declared(TopologySettings())
    broken = copy.deepcopy(next(each for each in k8s_twin.twin(topology) if each["spec"]["name"] == stream))
    broken["spec"][field] = value
    assert to_stream(to_api(broken)) != _as_declared(broken, topology)


def test_every_setting_of_a_stream_reaches_the_twin() -> None:
    """A setting that is added to our streams and forgotten here would be lost in silence."""
    plain = StreamConfig(name="X")
    for field in StreamConfig.__struct_fields__:
        if field == "name":
            continue
        value = getattr(plain, field)
        other: Any = {
            "retention": "workqueue",
            "storage": "memory",
            "discard": "new",
            "subjects": ("a.>",),
            "sources": (_any_source(),),
            "subject_transform": ("a.*", "b.{{wildcard(1)}}"),
        }.get(field, (not value) if isinstance(value, bool) else 7)
        changed = replace(plain, **{field: other})
        (resource,) = k8s_twin.twin(Topology(streams=(changed,)))
        assert to_stream(to_api(resource)) == changed, field


def _any_source() -> Source:
    return next(each.sources[0] for each in generated.twin().streams if each.sources)


def test_spans_are_written_as_go_reads_them() -> None:
    spans = {0: "0s", 0.25: "250ms", 4: "4s", 60: "1m", 90: "90s", 3600: "1h", 30 * 86_400: "720h"}
    assert {span: k8s_twin.duration(span) for span in spans} == spans
    with pytest.raises(ValueError, match="millisecond"):
        k8s_twin.duration(0.0001)


async def test_provision_finds_nothing_to_change_in_what_the_twin_made(tmp_path: Path) -> None:
    server = await NatsServer(tmp_path / "server").start()
    bus = await jetstream.connect(server.url, name="test")
    small = TopologySettings(
        queue_max_bytes=1 << 26, ledger_max_bytes=1 << 26, audit_max_bytes=1 << 26, dead_max_bytes=1 << 26
    )
    topology = declared(small, capabilities=("hello",), work=WorkSettings())
    try:
        for each in k8s_twin.twin(topology):
            body = to_api(each)
            if each["kind"] == "Stream":
                await bus._api(f"STREAM.CREATE.{body['name']}", body)
            else:
                stream = each["spec"]["streamName"]
                path = f"CONSUMER.CREATE.{stream}.{body['durable_name']}.{body['filter_subject']}"
                await bus._api(path, {"stream_name": stream, "config": body, "action": ""})
        assert (await plan(bus, topology)).changes == ()
        await bus.delete_consumer("CB_WORK", "hello-low")
        assert [change.name for change in (await plan(bus, topology)).changes] != []
    finally:
        await bus.close()
        server.stop()
