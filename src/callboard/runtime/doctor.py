"""Is everything as it should be? Checks that each give a finding, and the finding says what to do."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import urllib.request
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from callboard.runtime import actor_doctor, dead, deep_doctor, lookup, roster, server_binary, subjects
from callboard.runtime.actor import archive
from callboard.runtime.beat import Beat
from callboard.runtime.bus import provision, topology
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.config import Settings
from callboard.runtime.control import CONFIG_BUCKET
from callboard.runtime.errors import BusError, CallboardError
from callboard.runtime.finding import Finding, count
from callboard.runtime.host import Connect
from callboard.runtime.labels import told
from callboard.runtime.server_folder import RunningServer, profile_of, running
from callboard.runtime.version import VERSION

MIN_PAYLOAD_BYTES = 1 << 20
MIN_FREE_BYTES = 1 << 30
MAX_SKEW_S = 2.0
MAX_AUDIT_LAG_S = 60.0
_CLOCK_KEY = "doctor.clock"
_HTTP_TIMEOUT_S = 2.0
_PROBE_TIMEOUT_S = 1.0


async def examine(
    settings: Settings, connect: Connect, *, is_deep: bool = False, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[Finding]:
    """Yield the findings of all checks, as they come. Takes about two seconds, most of it listening for beats.

    Writes nothing but one key of the settings bucket, whose time tells how far the clocks are apart; with ``is_deep``
    also what ``deep_doctor`` writes and takes away again.
    """
    yield _binary(settings)
    if _here(settings) is not None:
        yield _disk(settings.server.data_dir)
    try:
        bus = await connect("doctor")
    except CallboardError as error:
        if settings.server.data_dir.is_dir() and running(settings.server.data_dir) is None:
            # a full disk may be why it is away
            yield _disk(settings.server.data_dir)
        yield await _unreachable(settings, error)
        return
    try:
        async for finding in _examine_broker(bus, settings, clock, is_deep=is_deep):
            yield finding
    finally:
        await bus.close()


async def _examine_broker(bus: Bus, settings: Settings, clock: Clock, *, is_deep: bool) -> AsyncIterator[Finding]:
    yield _server(bus)
    yield _payload(bus)
    yield await _sync(bus, settings)
    try:
        for finding in await _streams(bus, settings, clock):
            yield finding
    except BusError as error:
        yield Finding(check="streams", level="problem", text=str(error), fix="see the server's log")
        return
    heard = await roster.heard(bus, clock=clock)
    beats = heard.alive
    looks = [_clock(bus, clock), _dead(bus), _work(bus, heard), _paused(bus), _consumers(bus, settings)]
    if settings.actors.audit:
        looks.append(_audit(bus, clock))
    for look in looks:
        try:
            yield await look
        except BusError as error:
            yield Finding(check=error.code, level="problem", text=str(error), fix=provision.REMEDY)
    further = [actor_doctor.examine(bus, beats, clock)]
    if is_deep:
        further.append(deep_doctor.examine(bus, settings, beats, clock))
    for checks in further:
        try:
            async for finding in checks:
                yield finding
        except BusError as error:
            yield Finding(check=error.code, level="problem", text=str(error), fix=provision.REMEDY)
    for finding in _workers(beats, heard.skews_s):
        yield finding


# --- this machine


def _binary(settings: Settings) -> Finding:
    try:
        found = server_binary.find(settings.server.binary)
    except CallboardError as error:
        return Finding(check="server_binary", level="warning", text=str(error), fix="needed by `callboard up` only")
    return Finding(check="server_binary", level="ok", text=f"nats-server {found.version_text} ({found.origin})")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free >> 20} MiB free for {folder}"
    if free < MIN_FREE_BYTES:
        fix = "free some space, or set server.data_dir to another disk: at its limit the server refuses writes"
        return Finding(check="disk", level="problem", text=text, fix=fix)
    return Finding(check="disk", level="ok", text=text)


def _here(settings: Settings) -> RunningServer | None:
    """Return the server that runs on our data folder, when it is the one that the settings lead to."""
    found = running(settings.server.data_dir)
    return found if found is not None and found.url == settings.nats.url else None


async def _unreachable(settings: Settings, error: CallboardError) -> Finding:
    if error.code != "bus_connect":
        fix = "check nats.user, nats.password, nats.token or nats.creds_file" if error.code == "bus_auth" else ""
        return Finding(check="server", level="problem", text=f"{settings.nats.url}: {error}", fix=fix)
    address = urlsplit(settings.nats.url.split(",", maxsplit=1)[0])
    host, port = address.hostname or "127.0.0.1", address.port or 4222
    if await asyncio.to_thread(_listens, host, port):
        text = f"something listens on {host}:{port}, and it does not answer as a NATS server: {error}"
        fix = "another program may have taken the port: stop it, or set nats.url to the right one"
    else:
        text = f"nothing listens on {host}:{port}"
        fix = "run `callboard up` for a server here, or set nats.url (--nats) to one that runs"
    return Finding(check="server", level="problem", text=text, fix=fix)


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_PROBE_TIMEOUT_S):
            return True
    except OSError:
        return False


# --- the server


def _server(bus: Bus) -> Finding:
    info = bus.server
    text = f"{info.name} {info.version} at {info.url}"
    if not info.jetstream:
        return Finding(check="server", level="problem", text=f"{text}: JetStream is off", fix="start it with -js")
    return Finding(check="server", level="ok", text=text)


def _payload(bus: Bus) -> Finding:
    limit = bus.server.max_payload_bytes
    if limit < MIN_PAYLOAD_BYTES:
        text = f"max_payload is {limit} bytes; records of up to {MIN_PAYLOAD_BYTES} would be refused"
        return Finding(check="max_payload", level="problem", text=text, fix="set max_payload: 1MB in the server's file")
    return Finding(check="max_payload", level="ok", text=f"max_payload is {limit >> 10} KiB")


async def _sync(bus: Bus, settings: Settings) -> Finding:
    here = _here(settings)
    profile = here.profile if here is not None else profile_of(bus.server.name)
    if profile:
        if profile == "durable":
            return Finding(check="sync", level="ok", text="every write is synced to disk (profile durable)")
        fix = "start it with --profile durable, unless two minutes of work may be lost"
        return Finding(
            check="sync", level="warning", text="writes are synced every two minutes (profile fast)", fix=fix
        )
    host = urlsplit(settings.nats.url.split(",", maxsplit=1)[0]).hostname
    interval = await asyncio.to_thread(_sync_interval, f"http://{host}:{settings.server.http_port or 8222}/varz")
    if interval is None:
        fix = "look for `sync_interval: always` in the server's file: without it a power cut may lose two minutes"
        return Finding(check="sync", level="note", text="no monitoring port answers, so syncing is unknown", fix=fix)
    if interval == "always":
        return Finding(check="sync", level="ok", text="every write is synced to disk")
    text = f"writes are synced every {interval}: a power cut loses what came since"
    return Finding(check="sync", level="warning", text=text, fix="set sync_interval: always in the section jetstream")


def _sync_interval(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT_S) as answer:  # noqa: S310 - http, built by us
            config = json.load(answer).get("jetstream", {}).get("config", {})
    except (OSError, ValueError, AttributeError):
        return None
    if config.get("sync_always"):
        return "always"
    nanoseconds = config.get("sync_interval")
    return f"{nanoseconds / 1e9:g} s" if isinstance(nanoseconds, int) else None


async def _clock(bus: Bus, clock: Clock) -> Finding:
    bucket = Bucket(bus, CONFIG_BUCKET)
    before = clock.now()
    _ = await bucket.put(_CLOCK_KEY, str(os.getpid()).encode())
    after = clock.now()
    entry = await bucket.get(_CLOCK_KEY)
    if entry is None:
        return Finding(check="clock", level="note", text="the clocks could not be compared")
    middle = before + (after - before) / 2
    skew_s = (entry.time - middle).total_seconds()
    text = f"the server's clock is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} ours"
    if abs(skew_s) > MAX_SKEW_S:
        fix = "set both by NTP: deadlines and schedules are wall times"
        return Finding(check="clock", level="problem", text=text, fix=fix)
    return Finding(check="clock", level="ok", text=text)


# --- what is stored


async def _streams(bus: Bus, settings: Settings, clock: Clock) -> list[Finding]:
    findings = []
    now = clock.now()
    for config in topology.declared(settings.topology, audit=settings.actors.audit).streams:
        info = await bus.stream_info(config.name)
        if info is None:
            text = f"stream {config.name} does not exist"
            findings.append(Finding(check="streams", level="problem", text=text, fix="run `callboard provision`"))
            continue
        faults = provision.promise_faults(info.config, partitions=settings.topology.partitions)
        findings += [Finding(check="streams", level="problem", text=text, fix=provision.REMEDY) for text in faults]
        findings += _headroom(topology.headroom(info, now=now), name=config.name, size=info.size_bytes)
    if not any(finding.level == "problem" for finding in findings):
        findings.insert(0, Finding(check="streams", level="ok", text="all streams keep their promises"))
    return findings


def _headroom(room: topology.Headroom, *, name: str, size: int) -> list[Finding]:
    if room.bytes_left is None:
        return []
    used = size / max(1, size + room.bytes_left)
    hours = f", {room.hours_left:.1f} h at the present rate" if room.hours_left is not None else ""
    text = f"{name}: {room.bytes_left >> 20} MiB left ({used:.0%} used){hours}; when full, {room.when_full}"
    fix = "raise its limit (topology.*_max_bytes, then `callboard provision`), shorten its age, or add workers"
    if room.bytes_left == 0:
        return [Finding(check="headroom", level="problem", text=text, fix=fix)]
    if topology.is_low(used=used, hours_left=room.hours_left):
        return [Finding(check="headroom", level="warning", text=text, fix=fix)]
    return [Finding(check="headroom", level="ok", text=text)]


async def _dead(bus: Bus) -> Finding:
    number = sum((await bus.subject_counts(subjects.DEAD, "cb.dead.>")).values())
    if not number:
        return Finding(check="dead_letters", level="ok", text="no dead letter")
    newest = await dead.letters(bus, limit=1)
    last = f"; the last one: {newest[0].letter.task}: {newest[0].letter.cause.message[:100]}" if newest else ""
    fix = (
        "`callboard dead ls`, then requeue or discard them; those of actors: `callboard log --subject 'cb.dead.mail.>'`"
    )
    return Finding(check="dead_letters", level="warning", text=f"{count(number, 'dead letter')}{last}", fix=fix)


async def _consumers(bus: Bus, settings: Settings) -> Finding:
    names = [queue.capability for queue in await lookup.queues(bus) if queue.has_consumer]
    wanted = topology.declared(settings.topology, capabilities=names, work=settings.work, audit=settings.actors.audit)
    planned = await provision.plan(bus, wanted)
    wrong = [change.name for change in planned.changes if change.consumer]
    if wrong:
        text = f"{len(wrong)} consumers differ from the settings: {', '.join(wrong[:5])}"
        return Finding(check="consumers", level="warning", text=text, fix=provision.REMEDY)
    return Finding(check="consumers", level="ok", text="the consumers of all capabilities are as declared")


async def _audit(bus: Bus, clock: Clock) -> Finding:
    extent = await archive.extent(bus)
    if extent.problem:
        fix = "until then handled mail and old states are not swept"
        return Finding(check="audit", level="warning", text=extent.problem, fix=fix)
    found = [await bus.get_next(subjects.ACTORS, extent.upto + 1, subject) for subject in subjects.AUDITED]
    oldest = min((stored.time for stored in found if stored is not None), default=None)
    lag_s = (clock.now() - oldest).total_seconds() if oldest is not None else 0.0
    if lag_s > MAX_AUDIT_LAG_S:
        text = f"the audit copy of the actors is {lag_s:.0f} s behind"
        fix = (
            f"see the server's log for {subjects.AUDIT}; a source goes on by itself within a minute of a leader change"
        )
        return Finding(check="audit", level="warning", text=text, fix=fix)
    return Finding(check="audit", level="ok", text="the audit copy of the actors keeps up")


# --- who works


async def _work(bus: Bus, heard: roster.Roster) -> Finding:
    lonely = [q for q in await lookup.queues(bus) if q.waiting and not heard.serving(q.capability)]
    if lonely:
        text = ", ".join(f"{told(q.capability)} ({q.waiting} waiting)" for q in lonely)
        fix = "start a worker that has the capability and the labels; the tasks wait and are not lost"
        return Finding(check="unoffered", level="problem", text=f"nobody alive offers {text}", fix=fix)
    return Finding(check="unoffered", level="ok", text="every capability with waiting work is offered")


async def _paused(bus: Bus) -> Finding:
    held = [q for q in await lookup.queues(bus) if q.paused is not None]
    if not held:
        return Finding(check="paused", level="ok", text="no capability is paused")
    text = ", ".join(f"{q.capability} ({q.waiting} waiting; {q.paused})" for q in held)
    fix = "`callboard resume CAPABILITY` lets it go on"
    return Finding(check="paused", level="warning", text=f"held back by `callboard pause`: {text}", fix=fix)


def _workers(beats: list[Beat], skews_s: Mapping[str, float]) -> list[Finding]:
    if not beats:
        fix = "start one: `callboard worker start MODULE`"
        return [Finding(check="workers", level="note", text="no worker was heard", fix=fix)]
    findings = [Finding(check="workers", level="ok", text=f"{count(len(beats), 'worker')} alive")]
    for beat in beats:
        if beat.status == "deaf":
            text = f"worker {beat.worker} is connected and gets no work"
            fix = "see its log; restart it if it does not recover"
            findings.append(Finding(check="workers", level="problem", text=text, fix=fix))
        skew_s = skews_s.get(beat.worker, 0.0)
        if abs(skew_s) > MAX_SKEW_S:
            way = "behind" if skew_s > 0 else "ahead of"
            text = f"the clock of worker {beat.worker} is {abs(skew_s):.0f} s {way} ours"
            findings.append(
                Finding(check="clock", level="problem", text=text, fix=f"set the clock of {beat.host} by NTP")
            )
        if beat.version != VERSION:
            text = f"worker {beat.worker} runs version {beat.version}, this is {VERSION}"
            findings.append(Finding(check="version", level="note", text=text))
    return findings
