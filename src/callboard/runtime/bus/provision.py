"""Bring the broker to the declared topology, safely when many do it at once, and check that it keeps the promises."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from callboard.runtime.bus import topology
from callboard.runtime.bus.base import Bus, ConsumerConfig, ConsumerInfo, StreamConfig, StreamInfo
from callboard.runtime.bus.plan import Change, Plan, diff, differences, render
from callboard.runtime.bus.topology import Topology
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import TopologySettings
from callboard.runtime.errors import (
    BusError,
    BusTimeoutError,
    NoLeaderError,
    NotFoundError,
    PermissionDeniedError,
    TopologyError,
)

REMEDY = "run `callboard provision --plan` to see the difference and `callboard provision` to mend it"

_LOOK_S = 0.25
_ASKS = 3

# What a stream must be for Callboard's promises to hold, whoever made it: setting, value, what breaks otherwise.
_Promise = tuple[str, object, str]
_FILE: _Promise = ("storage", "file", "a restart of the server would lose acknowledged messages")
_SYNCED: _Promise = ("persist_async", False, "acknowledged messages would not be on disk")
_ATOMIC: _Promise = ("allow_atomic", True, "group commit needs atomic batches")
_DIRECT: _Promise = ("allow_direct", True, "records are read with direct gets")
PROMISES: Mapping[str, tuple[_Promise, ...]] = {
    topology.WORK: (
        _FILE,
        _SYNCED,
        ("retention", "workqueue", "finished tasks would run again"),
        ("discard", "new", "a full queue would drop acknowledged tasks"),
        ("max_age_s", 0.0, "waiting tasks would expire"),
        ("max_msgs_per_subject", -1, "waiting tasks would be refused or dropped"),
    ),
    topology.LATER: (
        _FILE,
        _SYNCED,
        ("retention", "workqueue", "finished tasks would run again"),
        ("allow_schedules", True, "delayed and recurring tasks need schedules"),
        ("max_age_s", 0.0, "waiting schedules would expire"),
        ("max_bytes", -1, "waiting schedules would be dropped in silence"),
        ("max_msgs", -1, "waiting schedules would be dropped in silence"),
        ("max_msgs_per_subject", -1, "tasks that fell due would be dropped in silence"),
    ),
    topology.LEDGER: (
        _FILE,
        _SYNCED,
        _ATOMIC,
        _DIRECT,
        ("retention", "limits", "records would vanish when read"),
        ("max_msgs_per_subject", 1, "a task could have two records"),
        ("discard", "new", "a task's record could be overwritten"),
        ("discard_new_per_subject", True, "a task's record could be overwritten"),
    ),
    topology.ACTORS: (
        _FILE,
        _SYNCED,
        _ATOMIC,
        _DIRECT,
        ("retention", "limits", "actor state would vanish when read"),
        ("max_age_s", 0.0, "actor state would be deleted at a restart of the server, even with a TTL of never"),
        ("max_bytes", -1, "the state of idle actors would be dropped in silence"),
        ("max_msgs", -1, "the state of idle actors would be dropped in silence"),
        ("max_msgs_per_subject", -1, "mail to a busy actor would be dropped in silence"),
        ("allow_rollup", True, "old versions of actor state could not be removed"),
        ("allow_msg_ttl", True, "steps and events could not expire"),
        ("allow_schedules", True, "timers need schedules"),
    ),
    topology.POST: (
        _FILE,
        _SYNCED,
        ("retention", "limits", "mail that was handed in would vanish when read"),
        ("discard", "new", "mail that was handed in would be dropped in silence"),
        ("max_age_s", 0.0, "mail that was handed in would expire"),
        ("max_msgs_per_subject", -1, "mail that was handed in would be dropped in silence"),
        ("allow_rollup", False, "whoever hands mail in could delete that of others"),
    ),
    topology.BLOBS: (_FILE, ("allow_rollup", False, "whoever stores one large payload could delete all of them")),
    topology.DEAD: (
        _FILE,
        _SYNCED,
        ("retention", "limits", "dead letters would vanish when read"),
        ("discard", "new", "dead letters would be dropped in silence"),
    ),
}


async def plan(bus: Bus, wanted: Topology) -> Plan:
    """Compare the broker with the declared topology. One request per stream and per consumer; changes nothing.

    Raises:
        TopologyError: If a stream has no leader, so that its settings cannot be trusted now.
        BusTimeoutError: If the broker does not answer.
    """
    streams: dict[str, StreamInfo] = {}
    consumers: dict[tuple[str, str], ConsumerInfo] = {}
    for config in wanted.streams:
        info = await bus.stream_info(config.name)
        if info is None:
            continue
        if info.leader is None:
            message = f"stream {config.name} has no leader now; wait until the cluster is healthy and try again"
            raise TopologyError(message)
        streams[config.name] = info
    for stream, consumer in wanted.consumers:
        found = await _consumer_info(bus, stream, consumer.name)
        if found is not None:
            consumers[stream, consumer.name] = found
    return diff(wanted, streams=streams, consumers=consumers, names=await bus.stream_names())


async def apply(bus: Bus, planned: Plan, *, allow_destructive: bool = False) -> None:
    """Make the planned changes and read each back.

    A change that is optional and would lose data is left out unless that is allowed. Safe to repeat and to run at once
    from many places with the same topology: whoever comes second finds the work done. Nothing is changed when the plan
    is refused. Cancelling leaves the changes made so far.

    Raises:
        TopologyError: If the plan is destructive and that was not allowed, the server refuses a setting, or a setting
            reads back different from what was asked for.
    """
    refused = tuple(change for change in planned.changes if change.is_destructive and not change.is_optional)
    if refused and not allow_destructive:
        text = render(Plan(changes=refused))
        message = f"refused, because stored data would be lost:\n{text}\nallow it with `--allow-destructive`"
        raise TopologyError(message)
    wanted = [change for change in planned.changes if allow_destructive or not change.is_destructive]
    for change in wanted:
        await _apply(bus, change)
    for change in wanted:
        await _check(bus, change)


async def verify(bus: Bus, *, partitions: int | None = None, streams: Sequence[str] = tuple(PROMISES)) -> None:
    """Check that the streams a worker stands on exist and keep the promises. One request per stream, all at once.

    Sizes and times may differ from the declared ones; only what breaks a promise is refused.

    Args:
        bus: Where to look.
        partitions: The count that this process is set to, to compare with the deployment's.
        streams: Which streams to check.

    Raises:
        TopologyError: Naming every fault, what it would break, and the command to run.
    """
    faults: list[str] = []
    infos = await asyncio.gather(*(bus.stream_info(name) for name in streams))
    for name, info in zip(streams, infos, strict=True):
        if info is None:
            faults.append(f"stream {name} does not exist")
        else:
            faults += promise_faults(info.config, partitions=partitions)
    if faults:
        message = "\n".join([*faults, REMEDY])
        raise TopologyError(message)


async def ensure_consumer(bus: Bus, stream: str, config: ConsumerConfig, *, capability: str) -> None:
    """Make the consumer unless it is there. One round trip, or two.

    Raises:
        TopologyError: If it is missing and we may not make it; says how a person who may does.
        NotFoundError: If the stream does not exist.
    """
    if await _has_consumer(bus, stream, config.name):
        return
    try:
        await bus.create_consumer(stream, config)
    except PermissionDeniedError as error:
        message = (
            f"consumer {config.name} of {stream} is missing, and this user may not make it: run `callboard provision "
            f"--capability {capability}` as the operator"
        )
        raise TopologyError(message) from error


async def await_leaders(
    bus: Bus, *, streams: Sequence[str], within_s: float, told: Callable[[str], None], clock: Clock = SYSTEM_CLOCK
) -> None:
    """Wait until every one of these streams that exists has a leader. When all do, one request per stream, at once.

    Args:
        bus: Where to look.
        streams: Which ones.
        within_s: How long an election may take.
        told: Told once what is waited for.
        clock: Time.

    Raises:
        NoLeaderError: If one has none in time.
    """
    deadline = clock.monotonic() + within_s
    was_told = False
    problems = await asyncio.gather(*(_leaderless(bus, name) for name in streams))
    for name, problem in zip(streams, problems, strict=True):
        while problem:
            if clock.monotonic() > deadline:
                message = f"{problem}, and none came within {within_s:g} s: `callboard doctor` looks at the servers"
                raise NoLeaderError(message)
            if not was_told:
                was_told = True
                told(problem)
            await clock.sleep(_LOOK_S)
            problem = await _leaderless(bus, name)  # noqa: PLW2901 - looked at again


async def _leaderless(bus: Bus, name: str) -> str:
    try:
        info = await bus.stream_info(name)
    except BusError as error:
        if not error.retryable:
            raise
        return f"stream {name} does not answer ({error.code})"
    return f"stream {name} has no leader" if info is not None and info.leader is None else ""


def promise_faults(config: StreamConfig, *, partitions: int | None = None) -> list[str]:
    """Say which settings of a stream break a promise, and which; empty when none does."""
    name = config.name
    faults = [
        f"stream {name} has {field} = {getattr(config, field)!r}, must be {value!r}: {reason}"
        for field, value, reason in PROMISES.get(name, ())
        if getattr(config, field) != value
    ]
    missing = [subject for subject in _SUBJECTS.get(name, ()) if subject not in config.subjects]
    if missing:
        faults.append(f"stream {name} does not take {', '.join(missing)}: what is published there would be refused")
    if name == topology.ACTORS:
        faults += _transform_faults(config, partitions)
    return faults


_SUBJECTS = {config.name: config.subjects for config in topology.declared(TopologySettings()).streams}


def _transform_faults(config: StreamConfig, partitions: int | None) -> list[str]:
    if config.subject_transform is None:
        return [f"stream {config.name} has no subject transform: mail would reach no owner"]
    if partitions is None or config.subject_transform == topology.partition_transform(partitions):
        return []
    fault = (
        f"stream {config.name} files mail by {config.subject_transform[1]}, but topology.partitions is {partitions}: "
        "set it to the deployment's count, which is fixed for its life"
    )
    return [fault]


async def _apply(bus: Bus, change: Change) -> None:
    if isinstance(change.config, ConsumerConfig):
        await bus.create_consumer(change.stream, change.config)
        return
    match change.action:
        case "update":
            await _update(bus, change.config)
        case "replace":
            info = await bus.stream_info(change.stream)
            # Look again: another provisioner may have replaced it meanwhile, and it may hold new messages already.
            if info is not None and differences(info.config, change.config):
                await bus.delete_stream(change.stream)
            await _create(bus, change.config)
        case "create":
            await _create(bus, change.config)


async def _create(bus: Bus, config: StreamConfig) -> None:
    try:
        await bus.create_stream(config)
    except TopologyError:
        # Somebody else may have made it since we looked; with the same settings that is what we wanted.
        info = await bus.stream_info(config.name)
        if info is None or differences(info.config, config):
            raise


async def _update(bus: Bus, config: StreamConfig) -> None:
    try:
        await bus.update_stream(config)
    except NotFoundError:
        await _create(bus, config)  # deleted since we looked


async def _check(bus: Bus, change: Change) -> None:
    if isinstance(change.config, ConsumerConfig):
        found = await _consumer_info(bus, change.stream, change.consumer)
        if found is None or found.config != change.config:
            message = f"{change.name} reads back as {found and found.config}, not as {change.config}; {REMEDY}"
            raise TopologyError(message)
        return
    info = await bus.stream_info(change.stream)
    if info is None:
        message = f"{change.name} is gone right after it was made: somebody deleted it, or the cluster is not healthy"
        raise TopologyError(message)
    faults = [
        f"{name} reads back as {getattr(info.config, name)!r}, not as {getattr(change.config, name)!r}"
        for name in differences(info.config, change.config)
    ]
    if faults:
        message = f"{change.name}: {'; '.join(faults)}: the server changed it, or somebody else is provisioning"
        raise TopologyError(message)


async def _has_consumer(bus: Bus, stream: str, name: str) -> bool:
    """Return whether it is there. One that another worker has just made says nothing until it has a leader."""
    for _ in range(_ASKS - 1):
        with contextlib.suppress(BusTimeoutError):
            return await bus.consumer_info(stream, name) is not None
    return await bus.consumer_info(stream, name) is not None


async def _consumer_info(bus: Bus, stream: str, name: str) -> ConsumerInfo | None:
    try:
        return await bus.consumer_info(stream, name)
    except NotFoundError:
        return None  # the stream is missing as well; it stands in the plan
