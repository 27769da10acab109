"""Discovery as NATS services: every worker answers ``$SRV.PING``, ``INFO`` and ``STATS`` for itself.

A worker is an instance of the service ``callboard-worker``; its endpoints are the capabilities of its pools and the
actor types that it hosts. The one that leads the registry is an instance of ``callboard-registry`` as well. Each
speaks for itself under its own id, so that what is gathered is right whoever leads, and without a leader too.

The answers follow the services protocol of NATS (ADR-32): the verbs, with the name, and with name and id.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct

from callboard.runtime import subjects
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.bus.standing import Subscription
from callboard.runtime.control import answer
from callboard.runtime.metrics import WorkerView
from callboard.runtime.registry import message as messages
from callboard.runtime.version import VERSION

Verb = Literal["PING", "INFO", "STATS"]

WORKER_SERVICE = "callboard-worker"
REGISTRY_SERVICE = "callboard-registry"
SUBJECTS = "$SRV.>"
_VERBS: tuple[Verb, ...] = ("PING", "INFO", "STATS")
_DESCRIPTIONS = {
    WORKER_SERVICE: "runs tasks on pools and hosts actors",
    REGISTRY_SERVICE: "knows which agents are there, what they can do and how busy they are",
}
_REGISTRY = (
    messages.REGISTER,
    messages.DEREGISTER,
    messages.BEAT,
    messages.FIND,
    messages.PICK,
    messages.LIST,
)
_RELEASE = re.compile(r"(\d+\.\d+\.\d+)\.?(.*)")
_NS = 1_000_000_000
# an actor too, and a service by itself
_OURS = "registry"


class Endpoint(Struct, frozen=True, kw_only=True):
    """Something that a service can be asked for.

    Attributes:
        name: ``task-<capability>`` or ``ask-<actor type>``, or what the registry does.
        subject: Where.
        queue_group: Of those that listen on it; "" where the broker hands out from a stream.
        metadata: Facts, as texts.
        requests: Runs of the handler since the process began.
        errors: Those that failed, further attempts counted each.
        time_s: Time in the handler, in all.
    """

    name: str
    subject: str
    queue_group: str = ""
    metadata: dict[str, str] = {}
    requests: int = 0
    errors: int = 0
    time_s: float = 0.0


class Service(Struct, frozen=True, kw_only=True):
    """One instance of a service: what this process says of itself."""

    name: str
    id: str
    started: datetime
    metadata: dict[str, str]
    endpoints: tuple[Endpoint, ...]


async def serve(
    bus: Bus,
    describe: Callable[[], Sequence[Service]],
    fire: Callable[[Coroutine[Any, Any, None], str], None],
) -> Subscription:
    """Answer for the services that ``describe`` returns at the time, until the subscription is closed.

    Args:
        bus: Where.
        describe: Called for each request that is for us.
        fire: Starts a task under a name.
    """

    def on_request(message: Message) -> None:
        question = parse(message.subject)
        if question is None or not message.reply:
            return
        verb, name, identity = question
        for service in describe():
            if name in ("", service.name) and identity in ("", service.id):
                fire(answer(bus, message, response(service, verb)), "discovery")

    return await bus.subscribe(SUBJECTS, on_request)


def parse(subject: str) -> tuple[Verb, str, str] | None:
    """Return verb, name and id that a request names, "" for those that it does not; None when it is no request."""
    parts = subject.split(".")
    # an id has a dot where the server has users: $SRV.<verb>.<name>.<user>.<id>
    if not 2 <= len(parts) <= 5:  # noqa: PLR2004 - see above
        return None
    verb = next((verb for verb in _VERBS if verb == parts[1]), None)
    return None if verb is None else (verb, parts[2] if parts[2:] else "", ".".join(parts[3:]))


def response(service: Service, verb: Verb) -> dict[str, object]:
    """Return the answer to a verb as the protocol has it."""
    body: dict[str, object] = {
        "type": f"io.nats.micro.v1.{verb.lower()}_response",
        "name": service.name,
        "id": service.id,
        "version": release(VERSION),
        "metadata": service.metadata,
    }
    if verb == "INFO":
        body["description"] = _DESCRIPTIONS[service.name]
        body["endpoints"] = [
            {"name": e.name, "subject": e.subject, "queue_group": e.queue_group, "metadata": e.metadata}
            for e in service.endpoints
        ]
    elif verb == "STATS":
        body["started"] = msgspec.to_builtins(service.started)
        body["endpoints"] = [_stats(endpoint) for endpoint in service.endpoints]
    return body


def services(
    view: WorkerView,
    *,
    started: datetime,
    labels: Mapping[str, str],
    leads_registry: bool,
) -> list[Service]:
    """Return what a worker answers for.

    Args:
        view: Its counters at this moment.
        started: When it began.
        labels: Its labels, which its metadata hold as ``label.<name>``.
        leads_registry: Whether it answers for the registry now.
    """
    facts = {
        "host": socket.gethostname(),
        "ready": str(view.is_ready).lower(),
        **{f"label.{k}": v for k, v in labels.items()},
    }
    pools = [
        Endpoint(
            name=f"task-{pool.capability}",
            subject=subjects.task(pool.capability),
            metadata={"kind": "pool", "slots": str(pool.slots), "busy": str(pool.running)},
            requests=pool.stats.started,
            errors=pool.stats.endings["failed"] + pool.stats.endings["retried"],
            time_s=pool.stats.run_time.sum_s,
        )
        for pool in view.pools
    ]
    actors = [
        Endpoint(
            name=f"ask-{actor.kind}",
            subject=subjects.ask(actor.kind),
            queue_group=subjects.ASK_GROUP,
            metadata={"kind": "actor", "partitions": str(actor.partitions), "busy": str(actor.running)},
            requests=actor.stats.started,
            errors=actor.stats.failed,
            time_s=actor.stats.run_time.sum_s,
        )
        for actor in view.actors
        if actor.kind != _OURS
    ]
    found = [Service(name=WORKER_SERVICE, id=view.worker, started=started, metadata=facts, endpoints=(*pools, *actors))]
    if leads_registry:
        endpoints = tuple(Endpoint(name=subject.rpartition(".")[2], subject=subject) for subject in _REGISTRY)
        found.append(
            Service(name=REGISTRY_SERVICE, id=view.worker, started=started, metadata=facts, endpoints=endpoints)
        )
    return found


def release(version: str) -> str:
    """Return a version of Python's kind as a semantic one: ``0.2.0.dev1`` is ``0.2.0-dev1``."""
    found = _RELEASE.fullmatch(version)
    if found is None:
        return "0.0.0"
    rest = re.sub(r"[^0-9A-Za-z-]+", "-", found[2]).strip("-")
    return f"{found[1]}-{rest}" if rest else found[1]


def _stats(endpoint: Endpoint) -> dict[str, object]:
    total = round(endpoint.time_s * _NS)
    return {
        "name": endpoint.name,
        "subject": endpoint.subject,
        "queue_group": endpoint.queue_group,
        "num_requests": endpoint.requests,
        "num_errors": endpoint.errors,
        "last_error": "",
        "processing_time": total,
        "average_processing_time": total // endpoint.requests if endpoint.requests else 0,
    }
