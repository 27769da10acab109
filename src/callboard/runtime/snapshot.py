"""A stream as one file and back: the server's own snapshot protocol, spoken over plain subjects.

A snapshot is asked for with a subject to deliver to; the server sends pieces there, each with a subject that says the
piece has been written, and an empty one at the end. It sends no more than a window ahead. A restore is the same the
other way round. The pieces, joined, are what the server made (a compressed archive); nothing here looks inside.

A stream that is written to cannot be copied that way. The server copies block after block, those that it had when it
was asked, and goes on deleting: a state that is replaced meanwhile is gone from its block before that is copied, and
its successor stands in a block that is too new to be (seen with nats-server 2.15.1: 549 of 4,000 actors' states were
missing). So a mirror is made first, in which nothing is ever deleted, and the snapshot is one of the mirror. Not of a
work queue: its mirror takes the messages away from it (seen with the same server). There nothing replaces what goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import (
    BackupError,
    BusTimeoutError,
    NoRespondersError,
    PermissionDeniedError,
)

Json = dict[str, Any]
MIRROR = "CB_BACKUP"
Progress = Callable[[str, int], None]
"""Told a stream's name and the bytes of it that are written or read so far."""

PIECE_BYTES = 128 << 10
ANSWER_S = 10.0
# A piece of a large stream takes a disk's time; after this silence nobody is sending or taking.
SILENCE_S = 30.0

_LOOK_S = 0.05
_OK_STATUS = "204"


class Taken(Struct, frozen=True, kw_only=True):
    """A snapshot that is on disk.

    Attributes:
        state: What it began with, in the API's form; what came while it was taken may be in it too.
        sha256: Checksum of the file, in hexadecimal.
    """

    state: Json
    size_bytes: int
    sha256: str


async def settings(bus: Bus, stream: str) -> Json:
    """Return a stream's settings in the API's form.

    Raises:
        BackupError: If it does not exist.
    """
    answer = await _ask(bus, f"$JS.API.STREAM.INFO.{stream}", {}, stream=stream)
    config: Json = answer["config"]
    return config


async def mirror(bus: Bus, stream: str) -> None:
    """Begin to copy ``stream`` to the stream ``CB_BACKUP`` of the same server, which keeps every message and number.

    Never of a work queue: it would lose its messages.

    Raises:
        BackupError: If there is such a stream already, or no room for it.
        PermissionDeniedError: If our user may not.
    """
    wanted = {
        "name": MIRROR,
        "mirror": {"name": stream},
        "storage": "file",
        "num_replicas": 1,
        "retention": "limits",
        "discard": "old",
        "persist_mode": "async",  # it is gone in a moment, and an fsync for each message takes hours
    }
    await _ask(bus, f"$JS.API.STREAM.CREATE.{MIRROR}", wanted, stream=stream)


async def take(bus: Bus, stream: str, target: Path, *, progress: Progress, source: str = "") -> Taken:
    """Write a snapshot of ``source`` to ``target`` and flush it to disk; ``stream``, if that is its mirror, is named.

    Raises:
        BackupError: If the server refused, or the link broke: the file is then of no use, and one may try again.
        PermissionDeniedError: If our user may not.
        BusTimeoutError: If the server fell silent.
    """
    pieces: asyncio.Queue[Message] = asyncio.Queue()  # the server sends at most a window of 8 MiB ahead
    box = bus.inbox()
    began = bus.connected_at
    heard = await bus.subscribe(box, pieces.put_nowait)
    try:
        wanted = {"deliver_subject": box, "no_consumers": True, "jsck": True, "chunk_size": PIECE_BYTES}
        answer = await _ask(bus, f"$JS.API.STREAM.SNAPSHOT.{source or stream}", wanted, stream=stream)
        digest, size_bytes = hashlib.sha256(), 0
        with target.open("wb") as file:
            while (piece := await _next(pieces, stream)).data:
                file.write(piece.data)
                digest.update(piece.data)
                size_bytes += len(piece.data)
                progress(stream, size_bytes)
                if piece.reply:
                    await bus.publish(piece.reply)
            _check_end(piece, stream)
            file.flush()
            os.fsync(file.fileno())
        if bus.connected_at != began:
            message = f"{stream}: the link to the server broke while the snapshot was taken; pieces may be missing"
            raise BackupError(message, stream=stream)
    finally:
        await heard.close()
    return Taken(state=answer["state"], size_bytes=size_bytes, sha256=digest.hexdigest())


async def put_back(bus: Bus, source: Path, taken: Taken, *, config: Json, progress: Progress) -> None:
    """Make the stream of a snapshot anew, with its messages and numbering, under ``config``.

    Raises:
        BackupError: If the server refused, for example because a stream of that name exists.
        PermissionDeniedError: If our user may not.
        BusTimeoutError: If the server fell silent.
    """
    stream = str(config["name"])
    wanted = {"config": config, "state": taken.state}
    answer = await _ask(bus, f"$JS.API.STREAM.RESTORE.{stream}", wanted, stream=stream)
    box = str(answer["deliver_subject"])
    done = 0
    with source.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            _check_answer((await _send(bus, box, piece, stream=stream, is_first=not done)).data, stream)
            done += len(piece)
            progress(stream, done)
    _check_answer((await _send(bus, box, b"", stream=stream)).data, stream)


async def _ask(bus: Bus, subject: str, body: Json, *, stream: str) -> Json:
    try:
        answer = await bus.request(subject, msgspec.json.encode(body), timeout_s=ANSWER_S)
    except PermissionDeniedError as error:
        message = f"{stream}: {error}; backup and restore take the role `operator` of a server set up by this version"
        raise PermissionDeniedError(message, subject=error.subject) from error
    return _check_answer(answer.data, stream)


async def _send(bus: Bus, box: str, piece: bytes, *, stream: str, is_first: bool = False) -> Message:
    until = SYSTEM_CLOCK.monotonic() + ANSWER_S
    try:
        while True:
            try:
                return await bus.request(box, piece, timeout_s=SILENCE_S)
            except NoRespondersError:
                # that another server of the cluster listens has not come round yet
                if not is_first or SYSTEM_CLOCK.monotonic() >= until:
                    raise
                await SYSTEM_CLOCK.sleep(_LOOK_S)
    except NoRespondersError as error:
        message = f"{stream}: the server has given the restore up; its log says why"
        raise BackupError(message, stream=stream) from error


async def _next(pieces: asyncio.Queue[Message], stream: str) -> Message:
    try:
        return await asyncio.wait_for(pieces.get(), SILENCE_S)
    except TimeoutError as error:
        message = f"{stream}: the server sent no piece of the snapshot for {SILENCE_S:g} s"
        raise BusTimeoutError(message) from error


def _check_end(last: Message, stream: str) -> None:
    """Refuse a snapshot that the server broke off: then the empty piece bears a status."""
    headers = last.headers or {}
    status = headers.get("Status", _OK_STATUS)
    if status != _OK_STATUS:
        message = f"{stream}: the server broke the snapshot off: {status} {headers.get('Description', '')}".rstrip()
        raise BackupError(message, stream=stream)


def _check_answer(data: bytes, stream: str) -> Json:
    answer: Json = msgspec.json.decode(data) if data else {}
    failure = answer.get("error")
    if failure:
        message = f"{stream}: {failure.get('description', 'refused')} ({failure.get('err_code', failure.get('code'))})"
        raise BackupError(message, stream=stream, err_code=int(failure.get("err_code", 0)))
    return answer
