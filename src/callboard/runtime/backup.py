"""A backup: a folder with one file per stream, their checksums, and a manifest that says what they are.

It is written under a temporary name and renamed at the end, so that a folder of the given name is a whole backup.
Streams are copied one after the other while work goes on. The order is chosen so that what was acknowledged before the
backup began is in it: where work moves from one stream to another, the one that it leaves is copied first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import snapshot
from callboard.runtime.bus import topology
from callboard.runtime.bus.base import Bus, ConsumerConfig, StreamInfo, Write
from callboard.runtime.clock import Clock
from callboard.runtime.errors import BackupError, BusTimeoutError
from callboard.runtime.snapshot import Progress, Taken
from callboard.runtime.version import VERSION

FORMAT = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"

# Audit before its source, which may have gone on: the source is then copied again from where the audit ends. The post
# becomes mail; a queue's tasks become mail, delayed tasks, records, dead letters; all of them point to blobs.
ORDER = (
    topology.AUDIT,
    topology.POST,
    topology.WORK,
    topology.LATER,
    topology.ACTORS,
    topology.GAPS,
    topology.LEDGER,
    topology.DEAD,
    topology.CONTEXT,
    topology.CONFIG,
    topology.REGISTRY,
    topology.BLOBS,
)

# Streams whose sequences other streams know: records of tasks, positions of the post, copies in the audit. A message
# that nobody reads, on these subjects, marks how far their numbering is; it is deleted at once.
NUMBERED: Mapping[str, str] = {
    topology.POST: "cb.tell.~backup.~",
    topology.WORK: "cb.task.~backup",
    topology.LATER: "cb.due.~backup",
    topology.ACTORS: "cb.timer.~backup.~",
}

_ATTEMPTS = 3
_QUIET_ATTEMPTS = 20
_LOOK_S = 0.1
# A copy that has not grown for so long will not.
_STUCK_S = 60.0
_READ_BYTES = 1 << 20


class StreamCopy(Struct, frozen=True, kw_only=True):
    """One stream of a backup.

    Attributes:
        config: Its settings in the API's form.
        taken: What it held when its copy began, and the file's size and checksum.
        consumers: Its durable consumers.
        is_quiet: Whether nothing in it can have been missed. False for delayed tasks when some fell due each time that
            they were copied: those of that moment may be missing.
        number: The last sequence that was given out when the whole backup ended: a restored stream goes on above it,
            because other streams of the backup may know messages by these numbers.
    """

    stream: str
    file: str
    config: dict[str, Any]
    taken: Taken
    consumers: tuple[ConsumerConfig, ...] = ()
    began: datetime
    ended: datetime
    is_quiet: bool = True
    number: int = 0

    @property
    def messages(self) -> int:
        """Messages that the stream held when its copy began."""
        return int(self.taken.state.get("messages", 0))

    @property
    def last_seq(self) -> int:
        """The last sequence when its copy began."""
        return int(self.taken.state.get("last_seq", 0))


class Manifest(Struct, frozen=True, kw_only=True):
    """What a backup is.

    Attributes:
        callboard: Version of Callboard that made it.
        server: Version of the nats-server that made it.
        absent: Streams of this version that were not on the server.
    """

    format: int = FORMAT
    callboard: str
    server: str
    began: datetime
    ended: datetime
    streams: tuple[StreamCopy, ...]
    absent: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of all streams' files."""
        return sum(copy.taken.size_bytes for copy in self.streams)


async def back_up(bus: Bus, target: Path, *, clock: Clock, progress: Progress, needs: Sequence[str] = ()) -> Manifest:
    """Copy every stream of Callboard to the new folder ``target``.

    The streams serve meanwhile. Needs as much disk here as the streams hold, compressed, and on the server as much as
    the largest of them holds. An attempt whose link broke is made again, three times a stream. Cancelled or failed, it
    leaves nothing of the name ``target``.

    Args:
        bus: A connection whose user may do it: the role ``operator``.
        target: Must not exist.
        clock: Tells the times in the manifest.
        progress: Told of each piece.
        needs: Streams that must be there.

    Raises:
        BackupError: If ``target`` exists, a needed stream is missing, or the server refused.
        PermissionDeniedError: If the user may not.
        BusTimeoutError: If the server fell silent.
    """
    if await asyncio.to_thread(os.path.lexists, target):
        message = f"{target} exists: a backup takes a folder of its own, name a new one"
        raise BackupError(message)
    found = {name: info for name in ORDER if (info := await bus.stream_info(name)) is not None}
    missing = [name for name in needs if name in ORDER and name not in found]
    if missing or not found:
        names = ", ".join(missing or ORDER)
        message = f"the server has no stream {names}: is it the right one? `callboard provision` makes them"
        raise BackupError(message, stream=(missing or ORDER)[0])
    if await bus.stream_info(snapshot.MIRROR) is not None:
        message = f"stream {snapshot.MIRROR} exists: another backup is under way; if it died, say --clear"
        raise BackupError(message, stream=snapshot.MIRROR)
    began = clock.now()
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        copies = [await _copy(bus, name, partial, clock=clock, progress=progress) for name in found]
        numbered = tuple([replace(copy, number=_number(await bus.stream_info(copy.stream))) for copy in copies])
        manifest = Manifest(
            callboard=VERSION,
            server=bus.server.version,
            began=began,
            ended=clock.now(),
            streams=numbered,
            absent=tuple(name for name in ORDER if name not in found),
        )
        _write(partial, manifest)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(target.parent)
    return manifest


async def clear(bus: Bus) -> None:
    """Delete what a backup keeps on the server while it runs. Harmless when there is nothing."""
    await bus.delete_stream(snapshot.MIRROR)


def check(folder: Path) -> Manifest:
    """Return the manifest of a backup after every checksum was compared. Reads all of it once.

    Raises:
        BackupError: If it is no backup, is of a newer format, or a file is missing, cut short or changed; names it.
    """
    try:
        sums = _sums((folder / SUMS).read_text("utf-8"))
        text = (folder / MANIFEST).read_bytes()
    except (OSError, ValueError) as error:
        message = f"{folder} is no whole backup: {error}"
        raise BackupError(message) from error
    if hashlib.sha256(text).hexdigest() != sums.get(MANIFEST):
        message = f"{folder / MANIFEST} is not what was written: its checksum differs; take another backup"
        raise BackupError(message)
    manifest = _decode(text, folder)
    for copy in manifest.streams:
        _check_file(folder / copy.file, copy)
    return manifest


async def _copy(bus: Bus, stream: str, folder: Path, *, clock: Clock, progress: Progress) -> StreamCopy:
    target = folder / f"{stream}.snapshot"
    for left in range(_ATTEMPTS - 1, -1, -1):
        try:
            return await _try_copy(bus, stream, target, clock=clock, progress=progress)
        except (BackupError, BusTimeoutError):
            target.unlink(missing_ok=True)
            if not left:
                raise
    raise AssertionError


async def _try_copy(bus: Bus, stream: str, target: Path, *, clock: Clock, progress: Progress) -> StreamCopy:
    began = clock.now()
    config = await snapshot.settings(bus, stream)
    found = await bus.consumers(stream)
    if config.get("retention") == "workqueue":
        taken, is_quiet = await _take_quiet(bus, stream, target, progress=progress)
    else:
        is_quiet = True
        try:
            await snapshot.mirror(bus, stream)
            await _catch_up(bus, stream, clock)
            if stream in NUMBERED:
                await bus.purge(stream, subject=NUMBERED[stream])
            taken = await snapshot.take(bus, stream, target, progress=progress, source=snapshot.MIRROR)
        finally:
            await clear(bus)
    return StreamCopy(
        stream=stream,
        file=target.name,
        config=config,
        taken=taken,
        consumers=tuple(each.config for each in found),
        began=began,
        ended=clock.now(),
        is_quiet=is_quiet,
    )


async def _take_quiet(bus: Bus, stream: str, target: Path, *, progress: Progress) -> tuple[Taken, bool]:
    """Take a queue as it is. Where the server moves messages inside of it, best while it moves none.

    A schedule that fires is deleted, and what it stood for is written at the end, which the snapshot may have passed.
    """
    for _ in range(_QUIET_ATTEMPTS if stream == topology.LATER else 1):
        taken = await snapshot.take(bus, stream, target, progress=progress)
        is_quiet = _number(await bus.stream_info(stream)) == int(taken.state.get("last_seq", 0))
        if is_quiet:
            break
    return taken, is_quiet or stream != topology.LATER


async def _catch_up(bus: Bus, stream: str, clock: Clock) -> None:
    """Wait until the mirror holds what the stream held when this was called."""
    goal = await _mark(bus, stream)
    seen, moved_at = 0, clock.monotonic()
    while True:
        info = await bus.stream_info(snapshot.MIRROR)
        at = info.last_seq if info is not None else 0
        # numbers at the end whose messages are gone do not come
        if at >= goal or await bus.get_next(stream, at + 1, ">", from_leader=True) is None:
            return
        if at > seen:
            seen, moved_at = at, clock.monotonic()
        elif clock.monotonic() - moved_at > _STUCK_S:
            message = f"{stream}: its mirror stands at {at} of {goal} for {_STUCK_S:g} s; is the server's disk full?"
            raise BackupError(message, stream=stream)
        await clock.sleep(_LOOK_S)


async def _mark(bus: Bus, stream: str) -> int:
    """Return the last number of a stream; of those whose numbers matter, one that the mirror is sure to see."""
    if stream in NUMBERED:
        return (await bus.store(Write(NUMBERED[stream], b""))).seq
    return _number(await bus.stream_info(stream))


def _number(info: StreamInfo | None) -> int:
    if info is None:
        message = "a stream was deleted while it was backed up: nothing was kept, start again"
        raise BackupError(message)
    return info.last_seq


def _write(folder: Path, manifest: Manifest) -> None:
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    sums = {MANIFEST: hashlib.sha256(text).hexdigest()} | {copy.file: copy.taken.sha256 for copy in manifest.streams}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    for name, content in ((MANIFEST, text), (SUMS, lines.encode())):
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sums(text: str) -> dict[str, str]:
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


def _decode(text: bytes, folder: Path) -> Manifest:
    class Head(Struct):
        format: int

    try:
        written = msgspec.json.decode(text, type=Head).format
        if written != FORMAT:
            message = f"{folder} has format {written}, this version reads {FORMAT}: restore it with {_maker(text)}"
            raise BackupError(message)
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.DecodeError as error:
        message = f"{folder / MANIFEST} cannot be read: {error}"
        raise BackupError(message) from error


def _maker(text: bytes) -> str:
    return f"Callboard {msgspec.json.decode(text).get('callboard', 'of the version that made it')}"


def _check_file(path: Path, copy: StreamCopy) -> None:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != copy.taken.size_bytes:
            message = (
                f"{path} of stream {copy.stream} has {size_bytes} bytes instead of {copy.taken.size_bytes}: "
                "it was cut short or added to; take another backup"
            )
            raise BackupError(message, stream=copy.stream)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    except OSError as error:
        message = f"the file of stream {copy.stream} cannot be read: {error}; take another backup"
        raise BackupError(message, stream=copy.stream) from error
    if digest.hexdigest() != copy.taken.sha256:
        message = f"{path} of stream {copy.stream} is not what was written: its checksum differs; take another backup"
        raise BackupError(message, stream=copy.stream)
