"""A backup put back: onto a server whose streams never held anything, or in place of those that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from callboard.runtime import roster, snapshot
from callboard.runtime.backup import NUMBERED, ORDER, Manifest, StreamCopy
from callboard.runtime.bus import topology
from callboard.runtime.bus.base import Bus, PubAck, StreamInfo, Write
from callboard.runtime.bus.topology import Topology
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BackupError, BusError
from callboard.runtime.snapshot import Progress

_AT_ONCE = 500
_LED_WITHIN_S = 30.0
_LOOK_S = 0.25
_NO_PEERS = 10005


class Restored(Struct, frozen=True, kw_only=True):
    """A stream that is back.

    Attributes:
        messages: What it holds now. Less than the backup where messages have grown too old meanwhile.
        expected: What it held when its backup began.
        skipped: Sequences left out, so that no number of before is given out again.
    """

    stream: str
    messages: int
    expected: int
    skipped: int


async def restore(
    bus: Bus,
    folder: Path,
    manifest: Manifest,
    wanted: Topology,
    *,
    clock: Clock,
    progress: Progress,
    overwrite: bool = False,
) -> list[Restored]:
    """Make every stream of a checked backup anew, then the others that this version wants.

    Listens for 1.3 s whether workers run. They refuse to start before the last stream is back. When it fails half-way,
    do it again with ``overwrite``.

    Args:
        bus: A connection whose user may do it: the role ``operator``.
        folder: Where the backup is; checked just before.
        manifest: What ``backup.check`` returned.
        wanted: The streams as they shall be: their number of copies is taken from here.
        clock: Paces the wait for leaders.
        progress: Told of each piece.
        overwrite: Delete streams of the backup that exist, with all they hold. Those that never held a message, which
            `callboard up` and `callboard provision` make, are replaced without it.

    Raises:
        BackupError: If workers run, streams were used, the server is older than the backup's, or refused one.
        PermissionDeniedError: If the user may not.
        BusTimeoutError: If the server fell silent.
    """
    _check_version(bus.server.version, manifest.server)
    copies = {copy.stream: copy for copy in manifest.streams}
    await _check_stopped(bus, clock)
    present = [name for name in await bus.stream_names() if name in copies]
    used = [] if overwrite else [name for name in present if await _was_used(bus, name)]
    if used:
        message = f"{', '.join(used)} held messages here: restore onto an empty server, or say --overwrite to lose them"
        raise BackupError(message, stream=used[0])
    for name in present:
        await bus.delete_stream(name)
    replicas = {config.name: config.replicas for config in wanted.streams}
    restored = []
    # actors before the copies of them; the queue last, without which no worker starts
    for name in sorted(copies, key=_rank):
        copy = copies[name]
        config = _settings(copy, replicas=replicas.get(name))
        await _put_back(bus, folder / copy.file, copy, config, clock=clock, progress=progress)
        restored.append(await _carry_on(bus, copy, clock))
        for consumer in copy.consumers:
            await bus.create_consumer(name, consumer)
    for each in wanted.streams:
        if each.name not in copies and await bus.stream_info(each.name) is None:
            await bus.create_stream(each)
    return restored


async def _check_stopped(bus: Bus, clock: Clock) -> None:
    """Refuse while workers, or groups that would start some, stand on the streams that are deleted."""
    found = (await roster.heard(bus, clock=clock)).fleet.names
    if found:
        message = (
            f"{', '.join(found)} run here, and would fail on streams of another time: stop them first, "
            "with `callboard workers drain NAME --wait`"
        )
        raise BackupError(message)


async def _was_used(bus: Bus, stream: str) -> bool:
    """Return whether it ever held a message; one that does not say so counts as used."""
    info = await bus.stream_info(stream)
    return info is not None and (info.leader is None or info.messages > 0 or info.last_seq > 0)


def _settings(copy: StreamCopy, *, replicas: int | None) -> dict[str, Any]:
    config = dict(copy.config)
    if replicas is not None:
        config["num_replicas"] = replicas
    if config.get("num_replicas", 1) > 1:
        # writing without waiting for the disk is for one server only; the audit is then written as all else
        config.pop("persist_mode", None)
    return config


def _rank(stream: str) -> int:
    if stream == topology.ACTORS:
        return -1
    return len(ORDER) if stream == topology.WORK or stream not in ORDER else ORDER.index(stream)


def _check_version(here: str, there: str) -> None:
    if _release(here) < _release(there):
        message = f"the backup was made by nats-server {there}, this one is {here}: restore onto {there} or later"
        raise BackupError(message)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-", 1)[0].split(".")[:2] if part.isdigit())


async def _put_back(
    bus: Bus, source: Path, copy: StreamCopy, config: dict[str, Any], *, clock: Clock, progress: Progress
) -> None:
    """Restore one stream; servers that have just met are given the time to know each other."""
    until = clock.monotonic() + _LED_WITHIN_S
    while True:
        try:
            await snapshot.put_back(bus, source, copy.taken, config=config, progress=progress)
        except BackupError as error:
            if error.err_code != _NO_PEERS or clock.monotonic() >= until:
                raise
            await clock.sleep(_LOOK_S)
        else:
            return


async def _carry_on(bus: Bus, copy: StreamCopy, clock: Clock) -> Restored:
    """Compare a restored stream with the manifest, and bring its numbering to where it was."""
    info = await _led(bus, copy.stream, clock)
    if info.last_seq < copy.last_seq:
        message = f"{copy.stream} ends at {info.last_seq} instead of {copy.last_seq}: the restore is not whole"
        raise BackupError(message, stream=copy.stream)
    skipped = 0
    subject = NUMBERED.get(copy.stream)
    if subject is not None:
        skipped = max(0, copy.number - info.last_seq)
        await _skip(bus, copy, subject, skipped)
    return Restored(stream=copy.stream, messages=info.messages, expected=copy.messages, skipped=skipped)


async def _led(bus: Bus, stream: str, clock: Clock) -> StreamInfo:
    until = clock.monotonic() + _LED_WITHIN_S
    while True:
        info = await bus.stream_info(stream)
        if info is not None and info.leader is not None:
            return info
        if clock.monotonic() >= until:
            message = f"{stream} has no leader {_LED_WITHIN_S:g} s after it was restored; look at the servers' logs"
            raise BackupError(message, stream=stream)
        await clock.sleep(_LOOK_S)


async def _skip(bus: Bus, copy: StreamCopy, subject: str, count: int) -> None:
    """Use up ``count`` numbers by messages that nobody reads, and delete these."""
    try:
        for first in range(0, count, _AT_ONCE):
            fillers = [Write(subject, b"")] * min(_AT_ONCE, count - first)
            if copy.config.get("allow_atomic") and len(fillers) > 1:
                await bus.store_batch(fillers)
                continue
            for answer in await bus.store_many(fillers):
                if not isinstance(answer, PubAck):
                    raise answer
    except BusError as error:
        message = f"{copy.stream}: its numbering could not be carried on: {error}; restore again with --overwrite"
        raise BackupError(message, stream=copy.stream) from error
    await bus.purge(copy.stream, subject=subject)
