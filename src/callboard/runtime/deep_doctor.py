"""The thorough checks of ``doctor --deep``: each looks at one way in which a deployment goes wrong without a word."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from urllib.parse import urlsplit

from msgspec import Struct

from callboard.runtime import census, lookup, subjects
from callboard.runtime.actor import archive
from callboard.runtime.actor import cursor as cursors
from callboard.runtime.beat import Beat
from callboard.runtime.bus import header, provision, topology
from callboard.runtime.bus.base import Bus, Message, StreamInfo, Write
from callboard.runtime.clock import Clock
from callboard.runtime.config import Settings
from callboard.runtime.errors import BusError, CallboardError, DecodeError, RegistryAwayError
from callboard.runtime.finding import Finding, Level, count
from callboard.runtime.lookup import Queue
from callboard.runtime.registry.actor import TYPE
from callboard.runtime.registry.message import Query
from callboard.runtime.server_folder import DataFolder, running

# No capability or actor type can be called so: nobody ever takes what is stored there.
PROBE_TASK = "cb.task.~doctor"
PROBE_ENTRY = "cb.timer.client.~doctor.probe"
MAX_WAIT_S = 60.0
LOW_HOURS = 24.0
FULL_SHARE = 0.8
# below this a rate says little: the first hour of a large import looks like the end
EARLY_SHARE = 0.4
MANY_RESTARTS = 3
MAX_AGENTS = 10_000
_PROBE_TTL = "60s"
_PROBE_TIMEOUT_S = 2.0
_TICK_S = 0.005
_HTTP_TIMEOUT_S = 2.0
_SHOWN = 5
# What is stored in these is never deleted one by one: a hole is a loss.
_WHOLE = (subjects.LEDGER, subjects.AUDIT, subjects.GAPS)


class Store(Struct, frozen=True, kw_only=True):
    """The room that all streams share; None where there is no limit, or none that can be seen."""

    used_bytes: int
    limit_bytes: int | None


async def examine(bus: Bus, settings: Settings, beats: Sequence[Beat], clock: Clock) -> AsyncIterator[Finding]:
    """Yield the findings of the thorough checks. A few dozen requests.

    Writes two messages that nobody takes and deletes them at once; if it dies between, they expire after a minute.
    """
    infos, silent = await _infos(bus, settings)
    if silent:
        text = f"{_list(silent)} do not answer: no leader, or a server that hangs"
        fix = "a majority of the servers must be up and see each other; what else is found depends on it"
        yield Finding(check="replicas", level="problem", text=text, fix=fix)
    looks: list[Awaitable[list[Finding]]] = [
        _plain(bus, clock),
        _stored(bus, clock),
        _settings(bus, settings),
        _queues(bus, beats, clock),
        _missing(bus, beats),
        _now(_cluster(infos)),
        _now(_damage(infos)),
        _end(bus),
        _store(bus, settings, infos, clock),
        _now(_restarts(beats)),
        _registry(bus, beats),
        _agents(bus),
    ]
    for look in looks:
        try:
            for finding in await look:
                yield finding
        except BusError as error:
            yield Finding(check=error.code, level="problem", text=str(error), fix=provision.REMEDY)


async def _now(findings: list[Finding]) -> list[Finding]:
    return findings


async def _infos(bus: Bus, settings: Settings) -> tuple[list[StreamInfo], list[str]]:
    """Return what the streams say, and the names of those that do not answer."""
    declared = topology.declared(settings.topology, audit=settings.actors.audit).streams
    looks = (bus.stream_info(config.name, with_damage=True) for config in declared)
    found = await asyncio.gather(*looks, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException) and not isinstance(each, BusError):
            raise each
    silent = [config.name for config, each in zip(declared, found, strict=True) if isinstance(each, BusError)]
    return [each for each in found if isinstance(each, StreamInfo)], silent


# --- does it carry anything


async def _plain(bus: Bus, clock: Clock) -> list[Finding]:
    """Send a message to ourselves."""
    heard: list[Message] = []
    subject = bus.inbox()
    subscription = await bus.subscribe(subject, heard.append)
    try:
        begun_s = clock.monotonic()
        await bus.publish(subject, b"?")
        while not heard and clock.monotonic() - begun_s < _PROBE_TIMEOUT_S:
            await clock.sleep(_TICK_S)
        took_s = clock.monotonic() - begun_s
    finally:
        await subscription.close()
    if not heard:
        text = f"a message to ourselves did not come back within {_PROBE_TIMEOUT_S:g} s"
        fix = "see the server's log for permissions of this user, and whether the server hangs"
        return [Finding(check="probe_messages", level="problem", text=text, fix=fix)]
    return [Finding(check="probe_messages", level="ok", text=f"a message comes back in {_ms(took_s)}")]


async def _stored(bus: Bus, clock: Clock) -> list[Finding]:
    """Store a message in the queue and in the actors' stream, read it from the leader, and delete it."""
    findings = []
    for stream, subject in ((subjects.WORK, PROBE_TASK), (subjects.ACTORS, PROBE_ENTRY)):
        check = f"probe_{stream.removeprefix('CB_').lower()}"
        try:
            begun_s = clock.monotonic()
            ack = await bus.store(Write(subject, b"{}", {header.TTL: _PROBE_TTL}))
            took_s = clock.monotonic() - begun_s
            found = await bus.get_seq(stream, ack.seq, from_leader=True)
            await bus.delete_message(stream, ack.seq)
        except CallboardError as error:
            fix = "the other findings say why: a full stream, no leader, missing permissions or streams"
            text = f"{stream} does not take a message: {error}"
            findings.append(Finding(check=check, level="problem", text=text, fix=fix))
            continue
        if found is None:
            text = f"{stream} confirmed message {ack.seq} and does not have it"
            fix = "do not trust this server's disk: look at its log, and move the stream to another server"
            findings.append(Finding(check=check, level="problem", text=text, fix=fix))
        else:
            findings.append(Finding(check=check, level="ok", text=f"{stream} stores a message in {_ms(took_s)}"))
    return findings


# --- is it as declared


async def _settings(bus: Bus, settings: Settings) -> list[Finding]:
    wanted = topology.declared(settings.topology, audit=settings.actors.audit)
    planned = await provision.plan(bus, wanted)
    findings = []
    for change in planned.changes:
        if change.action == "create":
            # the check of streams says so
            continue
        fields = ", ".join(f"{field.field} is {field.old!r} and not {field.new!r}" for field in change.fields)
        findings.append(
            Finding(check="declared", level="warning", text=f"{change.name}: {fields}", fix=provision.REMEDY)
        )
    if planned.unknown:
        text = f"streams that bear our prefix and are not declared: {', '.join(planned.unknown)}"
        fix = "delete them if an older Callboard left them; nothing here reads them"
        findings.append(Finding(check="declared", level="note", text=text, fix=fix))
    return findings or [Finding(check="declared", level="ok", text="all streams are as declared")]


async def _queues(bus: Bus, beats: Sequence[Beat], clock: Clock) -> list[Finding]:
    queues = await lookup.queues(bus, with_age=True)
    return [*_consumers(queues, beats), *_waiting(queues, beats, clock)]


def _consumers(queues: Sequence[Queue], beats: Collection[Beat]) -> list[Finding]:
    offered = {load.name for beat in beats for load in beat.capabilities}
    idle = [queue.capability for queue in queues if queue.has_consumer and queue.capability not in offered]
    if not idle:
        return [Finding(check="consumers_idle", level="ok", text="every capability with consumers has a worker")]
    text = f"consumers without a worker: {_list(idle)}"
    fix = "start a worker; or for a capability that is gone for good, delete its consumers with the nats tool"
    return [Finding(check="consumers_idle", level="note", text=text, fix=fix)]


async def _missing(bus: Bus, beats: Collection[Beat]) -> list[Finding]:
    """Look for workers whose consumers are gone: they are connected and get nothing."""
    there = {info.config.name for stream in (subjects.WORK, subjects.LATER) for info in await bus.consumers(stream)}
    findings = []
    for name in sorted({load.name for beat in beats for load in beat.capabilities}):
        wanted = [*(subjects.consumer(name, lane) for lane in subjects.LANES), subjects.due_consumer(name)]
        gone = [consumer for consumer in wanted if consumer not in there]
        if gone:
            workers = [beat.worker for beat in beats if any(load.name == name for load in beat.capabilities)]
            text = f"{_list(workers)} offer {name}, and these consumers do not exist: {', '.join(gone)}"
            fix = "restart the workers, which make them; tasks on those lanes wait and are not lost"
            findings.append(Finding(check="consumers_gone", level="problem", text=text, fix=fix))
    return findings or [Finding(check="consumers_gone", level="ok", text="every worker has its consumers")]


def _waiting(queues: Sequence[Queue], beats: Sequence[Beat], clock: Clock) -> list[Finding]:
    now = clock.now()
    findings = []
    for queue in queues:
        age_s = (now - queue.oldest).total_seconds() if queue.oldest is not None else 0.0
        if age_s < MAX_WAIT_S:
            continue
        loads = [load for beat in beats for load in beat.capabilities if load.name == queue.capability]
        slots, busy = sum(load.slots for load in loads), sum(load.busy for load in loads)
        if not loads:
            # the check of what is unoffered says so
            continue
        text = f"{queue.capability} has {count(queue.waiting, 'task')} waiting, the oldest for {age_s:.0f} s"
        level: Level = "warning"
        if queue.paused is not None:
            why, fix = "it is paused", f"`callboard resume {queue.capability}`"
        elif busy >= slots:
            why, fix = f"all {slots} slots are busy", "add workers, or slots with `callboard workers scale --slots`"
        else:
            why = f"{slots - busy} of {slots} slots are free"
            fix = "its workers are not served by the broker: see their logs, and restart them if nothing moves"
            level = "problem"
        findings.append(Finding(check="waiting", level=level, text=f"{text}: {why}", fix=fix))
    return findings or [
        Finding(check="waiting", level="ok", text=f"no task that is offered has waited for {MAX_WAIT_S:.0f} s")
    ]


# --- is it whole


def _cluster(infos: Sequence[StreamInfo]) -> list[Finding]:
    findings = []
    for info in infos:
        name = info.config.name
        if info.leader is None:
            text, fix = f"{name} has no leader", "a majority of its servers must be up: start those that are missing"
            findings.append(Finding(check="replicas", level="problem", text=text, fix=fix))
        elif info.lagging:
            text = f"{name}: {', '.join(info.lagging)}; another loss may stop it"
            fix = "bring that server back, or wait until it has caught up; never remove a peer meanwhile"
            findings.append(Finding(check="replicas", level="warning", text=text, fix=fix))
    if findings:
        return findings
    if all(info.config.replicas == 1 for info in infos):
        text = "streams have no replicas: one disk holds the only copy"
        return [Finding(check="replicas", level="note", text=text, fix="run three servers (docs/operations.md)")]
    return [Finding(check="replicas", level="ok", text="every stream has a leader and its replicas are current")]


def _damage(infos: Sequence[StreamInfo]) -> list[Finding]:
    findings = []
    restore = "restore it from a backup or a healthy replica; check that disk before it is used again"
    for info in infos:
        name = info.config.name
        if info.lost_bytes:
            text = f"{name}: the server found {info.lost_bytes} bytes damaged when it started, and dropped them"
            findings.append(Finding(check="damage", level="problem", text=text, fix=restore))
        if name in _WHOLE and info.deleted:
            text = f"{name} has holes: {count(info.deleted, 'message')} between {info.first_seq} and {info.last_seq}"
            findings.append(Finding(check="damage", level="problem", text=f"{text} are gone", fix=restore))
    return findings or [Finding(check="damage", level="ok", text="no stream reports damage or holes")]


async def _end(bus: Bus) -> list[Finding]:
    """Compare the end of the actors' stream with what was read from it: a server that lost its end says nothing."""
    known, who = 0, ""
    for stored in await bus.get_many(subjects.ACTORS, ["cb.cursor.*.*"]):
        try:
            upto = cursors.decode(stored.data).upto
        except DecodeError:
            continue
        if upto > known:
            known, who = upto, stored.subject
    extent = await archive.extent(bus)
    if extent.upto > known:
        known, who = extent.upto, subjects.AUDIT
    # read last: it can only have grown
    info = await bus.stream_info(subjects.ACTORS)
    if info is None or info.leader is None or info.last_seq >= known:
        return [Finding(check="actors_end", level="ok", text=f"{subjects.ACTORS} reaches as far as was read from it")]
    text = f"{subjects.ACTORS} ends at {info.last_seq}, and {who} knows of {known}: its end is lost"
    fix = "stop the workers and restore it; `callboard audit` shows what the audit copy has of the lost part"
    return [Finding(check="actors_end", level="problem", text=text, fix=fix)]


# --- has it room


async def _store(bus: Bus, settings: Settings, infos: Sequence[StreamInfo], clock: Clock) -> list[Finding]:
    """Look at the room that streams without a limit of their own share: the actors' state lies in one."""
    found = await _account(bus)
    if found is None or found.limit_bytes is None:
        found = await _server_store(settings, found) or found
    if found is None or found.limit_bytes is None:
        text = "the server does not tell the limit of its store"
        fix = "set max_file_store, and a monitoring port (http) so that it can be seen"
        return [Finding(check="store", level="note", text=text, fix=fix)]
    now = clock.now()
    rates = [topology.headroom(info, now=now).bytes_per_hour or 0.0 for info in infos]
    left = max(0, found.limit_bytes - found.used_bytes)
    hours = left / sum(rates) if sum(rates) else None
    used = found.used_bytes / max(1, found.limit_bytes)
    text = f"the store has {left >> 20} MiB left ({used:.0%} used)"
    if hours is not None:
        text += f", {hours:.0f} h at the present rate if nothing ages out"
    fix = "give the server more room (max_file_store), shorten ages in topology.*, or move streams to other servers"
    if used > FULL_SHARE or (used > EARLY_SHARE and hours is not None and hours < LOW_HOURS):
        return [Finding(check="store", level="problem" if not left else "warning", text=text, fix=fix)]
    return [Finding(check="store", level="ok", text=text)]


async def _account(bus: Bus) -> Store | None:
    try:
        body = json.loads((await bus.request("$JS.API.INFO", timeout_s=_PROBE_TIMEOUT_S)).data)
        limit = int(body.get("limits", {}).get("max_storage", -1))
        return Store(used_bytes=int(body["storage"]), limit_bytes=limit if limit > 0 else None)
    except (BusError, ValueError, KeyError):
        return None


async def _server_store(settings: Settings, account: Store | None) -> Store | None:
    host = urlsplit(settings.nats.url.split(",", maxsplit=1)[0]).hostname
    found = await asyncio.to_thread(_monitored, f"http://{host}:{settings.server.http_port or 8222}/jsz")
    here = running(settings.server.data_dir)
    if found is None and account is not None and here is not None and here.url == settings.nats.url:
        limit = await asyncio.to_thread(DataFolder(settings.server.data_dir).max_file_bytes, settings.server)
        return Store(used_bytes=account.used_bytes, limit_bytes=limit)
    return found


def _monitored(url: str) -> Store | None:
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S) as answer:  # noqa: S310 - http, built by us
            body = json.load(answer)
            return Store(used_bytes=int(body["storage"]), limit_bytes=int(body["config"]["max_storage"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- the registry


async def _registry(bus: Bus, beats: Collection[Beat]) -> list[Finding]:
    place = await census.leader(bus)
    if any(beat.worker == place.owner for beat in beats):
        text = f"{place.owner} leads the registry (epoch {place.epoch})"
        return [Finding(check="registry", level="ok", text=text)]
    hosts = [beat.worker for beat in beats if any(load.kind == TYPE for load in beat.actors)]
    if not beats:
        # nobody is there at all: the check of workers says so
        return [Finding(check="registry", level="note", text="no worker is there to lead the registry")]
    if hosts:
        text = f"nobody leads the registry, although {_list(hosts)} could"
        fix = "a worker that starts or stops explains it for two seconds; else see their logs for partition.unplaced"
    else:
        text = "no worker hosts the registry: agents are neither registered nor found"
        fix = "run `callboard worker start --registry`, or set registry.host to true on some workers"
    return [Finding(check="registry", level="problem", text=text, fix=fix)]


async def _agents(bus: Bus) -> list[Finding]:
    """Look for agents that are registered and cannot be reached."""
    away = Query(status=["offline"], limit=MAX_AGENTS)
    try:
        found = (await census.find(bus, away)).agents
    except RegistryAwayError as error:
        return [Finding(check="agents_away", level="note", text=f"agents could not be looked at: {error}")]
    unhosted = sorted({view.record.type for view in found if view.record.is_hosted})
    findings = []
    if unhosted:
        number = sum(view.record.is_hosted for view in found)
        text = f"{count(number, 'agent')} registered of types that nobody hosts: {_list(unhosted)}"
        fix = "start a worker that hosts the type; records of types that are gone for good are forgotten after a day"
        findings.append(Finding(check="agents_away", level="warning", text=text, fix=fix))
    silent = [view.record.address for view in found if not view.record.is_hosted]
    if silent:
        text = f"{count(len(silent), 'agent')} that run by themselves are silent: {_list(silent)}"
        fix = "start them again, or deregister them (cb.registry.deregister); after a day they are forgotten"
        findings.append(Finding(check="agents_away", level="warning", text=text, fix=fix))
    return findings or [Finding(check="agents_away", level="ok", text="every registered agent can be reached")]


def _restarts(beats: Collection[Beat]) -> list[Finding]:
    often = [beat for beat in beats if beat.restarts >= MANY_RESTARTS]
    if not often:
        return [Finding(check="restarts", level="ok", text="no worker was started anew three times or more")]
    text = ", ".join(f"{beat.worker} ({beat.restarts} times)" for beat in often[:_SHOWN])
    fix = "see the log of its parent for how each process ended; a handler that kills its process is the usual cause"
    return [Finding(check="restarts", level="warning", text=f"processes were started anew: {text}", fix=fix)]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
