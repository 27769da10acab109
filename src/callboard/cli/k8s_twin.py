"""The declared streams and consumers as resources of NACK, NATS' controller: the optional twin of ``provision``."""

from __future__ import annotations

from typing import Final

from callboard.cli.k8s_pod import Manifest, labels
from callboard.runtime.bus.base import ConsumerConfig, Source, StreamConfig
from callboard.runtime.bus.topology import Topology

API: Final = "jetstream.nats.io/v1beta2"
ACCOUNT: Final = "callboard"

_MINUTE_S, _HOUR_S = 60, 3600


def twin(topology: Topology, *, account: str = ACCOUNT) -> list[Manifest]:
    """Return a resource for each stream and consumer, in the order of creation.

    Deleting a resource never deletes what it stands for: a namespace that goes would take all acknowledged work along.

    Args:
        topology: What is declared.
        account: The NACK ``Account`` that says where the servers are and who we are there.
    """
    streams = [_stream(config, account) for config in topology.streams]
    return [*streams, *(_consumer(stream, config, account) for stream, config in topology.consumers)]


def duration(span_s: float) -> str:
    """Return a span as Go reads it, exact to a millisecond.

    Raises:
        ValueError: If it is finer than that.
    """
    millis = round(span_s * 1000)
    if abs(millis - span_s * 1000) > 1e-6:  # noqa: PLR2004 - rounding of floats
        message = f"{span_s!r} s is finer than a millisecond"
        raise ValueError(message)
    if millis % 1000:
        return f"{millis}ms"
    whole = millis // 1000
    if whole and whole % _HOUR_S == 0:
        return f"{whole // _HOUR_S}h"
    if whole and whole % _MINUTE_S == 0:
        return f"{whole // _MINUTE_S}m"
    return f"{whole}s"


def _resource(kind: str, name: str, spec: Manifest, account: str) -> Manifest:
    return {
        "apiVersion": API,
        "kind": kind,
        # names of streams have capitals and underscores, those of Kubernetes neither
        "metadata": {"name": name.lower().replace("_", "-"), "labels": labels("stream", "topology")},
        "spec": spec | {"account": account, "preventDelete": True},
    }


def _stream(config: StreamConfig, account: str) -> Manifest:
    spec: Manifest = {
        "name": config.name,
        "retention": config.retention,
        "storage": config.storage,
        "replicas": config.replicas,
        "discard": config.discard,
        "maxAge": duration(config.max_age_s),
        "maxBytes": config.max_bytes,
        "maxMsgs": config.max_msgs,
        "maxMsgsPerSubject": config.max_msgs_per_subject,
        "maxMsgSize": config.max_msg_bytes,
        "maxConsumers": config.max_consumers,
        "duplicateWindow": duration(config.duplicate_window_s),
        "discardPerSubject": config.discard_new_per_subject,
        "allowAtomicPublish": config.allow_atomic,
        "allowDirect": config.allow_direct,
        "allowRollup": config.allow_rollup,
        "allowMsgTtl": config.allow_msg_ttl,
        "allowMsgSchedules": config.allow_schedules,
        "denyDelete": config.deny_delete,
        "denyPurge": config.deny_purge,
    }
    if config.subjects:
        spec["subjects"] = list(config.subjects)
    if config.sources:
        spec["sources"] = [_source(source) for source in config.sources]
    if config.subject_transform is not None:
        spec["subjectTransform"] = dict(zip(("source", "dest"), config.subject_transform, strict=True))
    if config.persist_async:
        spec["persistMode"] = "async"
    return _resource("Stream", config.name, spec, account)


def _source(source: Source) -> Manifest:
    if len(source.filters) == 1:
        return {"name": source.name, "filterSubject": source.filters[0]}
    kept = [{"source": each, "dest": ""} for each in source.filters]
    return {"name": source.name, **({"subjectTransforms": kept} if kept else {})}


def _consumer(stream: str, config: ConsumerConfig, account: str) -> Manifest:
    spec = {
        "streamName": stream,
        "durableName": config.name,
        "ackPolicy": "explicit",
        "deliverPolicy": "all",
        "filterSubject": config.filter_subject,
        "ackWait": duration(config.ack_wait_s),
        "maxDeliver": config.max_deliver,
        "maxAckPending": config.max_ack_pending,
    }
    return _resource("Consumer", f"{stream}-{config.name}", spec, account)
