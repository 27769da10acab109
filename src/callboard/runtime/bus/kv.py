"""Key-value buckets on the bus port, wire-compatible with NATS KV."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, KvEntry, Stored, StreamConfig, Write
from callboard.runtime.bus.header import Headers
from callboard.runtime.errors import BusError, ConflictError, InvalidNameError

OPERATION = "KV-Operation"
MARKER_REASON = "Nats-Marker-Reason"

_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")
_BUCKET = re.compile(r"[a-zA-Z0-9_-]+")
# A key that keeps changing hands between a refused create and the look at what stands there.
_CREATE_TRIES = 5


def stream_name(bucket: str) -> str:
    """Return the name of the stream behind a bucket.

    Raises:
        InvalidNameError: If the bucket's name has a character outside ``[a-zA-Z0-9_-]``.
    """
    if not _BUCKET.fullmatch(bucket):
        message = f"bucket {bucket[:80]!r} is not usable: take a-z, A-Z, 0-9, '_' and '-'"
        raise InvalidNameError(message, name=bucket)
    return f"KV_{bucket}"


def stream_config(
    bucket: str,
    *,
    history: int = 1,
    max_age_s: float = 0.0,
    max_bytes: int = -1,
    replicas: int = 1,
    allow_atomic: bool = False,
) -> StreamConfig:
    """Return the settings of the stream behind a bucket.

    Args:
        bucket: Its name.
        history: Revisions kept of each key, 1 to 64. Only with 1 may entries carry a TTL: with more, the revision
            before would come back to life when the newest one expires.
        max_age_s: Lifetime of every entry; 0 keeps them for ever.
        max_bytes: Size at which writes are refused.
        replicas: Servers that hold it.
        allow_atomic: Let one batch write several keys.
    """
    return StreamConfig(
        name=stream_name(bucket),
        subjects=(f"$KV.{bucket}.>",),
        discard="new",
        max_age_s=max_age_s,
        max_bytes=max_bytes,
        max_msgs_per_subject=history,
        replicas=replicas,
        allow_direct=True,
        allow_rollup=True,
        allow_msg_ttl=history == 1,
        allow_atomic=allow_atomic,
        deny_delete=True,
    )


class Watch:
    """A running ``Bucket.watch``."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        """Take over the task that follows the stream."""
        self._task = task

    @property
    def problem(self) -> str | None:
        """Why nothing reaches the sink any more (bucket deleted, bus closed), or None while it works."""
        if not self._task.done():
            return None
        if self._task.cancelled():
            return "the watch was closed"
        error = self._task.exception()
        return str(error) if error else "the stream ended"

    async def close(self) -> None:
        """End it; nothing reaches the sink afterwards. Closing twice is harmless."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Bucket:
    """One bucket. Keys are tokens of ``[-/_=a-zA-Z0-9]`` joined by dots; values are bytes.

    It holds no connection and no state of its own: any number may stand on one bus.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        """Use an existing bucket; create its stream from ``stream_config`` before."""
        self.name = name
        self._bus = bus
        self._stream = stream_name(name)
        self._prefix = f"$KV.{name}."

    async def get(self, key: str) -> KvEntry | None:
        """Return the current entry, or None when the key was never written, was deleted or expired. One direct get.

        May be answered by a follower, so it can be a moment old: a condition (``update``) decides, not a read.

        Raises:
            InvalidNameError: If the key is not usable.
            NotFoundError: If the bucket does not exist.
        """
        found = await self._bus.get_last(self._stream, self._subject(key))
        return None if found is None or _is_marker(found.headers) else self._entry(found)

    async def put(self, key: str, data: bytes, *, ttl_s: float | None = None) -> int:
        """Write unconditionally; return the revision.

        Args:
            key: The key.
            data: The value.
            ttl_s: Lifetime in whole seconds, at least 1; only in buckets with a history of 1.

        Raises:
            InvalidNameError: If the key is not usable.
            BusError: If it was refused.
        """
        return await self._write(key, data, header.build(ttl_s=ttl_s))

    async def create(self, key: str, data: bytes, *, ttl_s: float | None = None) -> int:
        """Write if the key has no value now (never written, deleted or expired); return the revision.

        One round trip, three more when a delete marker stands there.

        Raises:
            InvalidNameError: If the key is not usable.
            ConflictError: If it has a value; ``last_seq`` is its revision.
        """
        expected = 0
        for _ in range(_CREATE_TRIES):
            try:
                return await self._write(key, data, header.build(expected_seq=expected, ttl_s=ttl_s))
            except ConflictError as error:
                found = await self._bus.get_seq(self._stream, error.last_seq) if error.last_seq else None
                if found is not None and not _is_marker(found.headers):
                    message = f"key {key} of bucket {self.name} exists at revision {found.seq}"
                    raise ConflictError(message, last_seq=found.seq) from error
                # A marker, or something that went away meanwhile: what stands now is what we may replace.
                expected = found.seq if found is not None else 0
        message = f"key {key} of bucket {self.name} keeps changing; try again"
        raise ConflictError(message)

    async def update(self, key: str, data: bytes, revision: int, *, ttl_s: float | None = None) -> int:
        """Write if ``revision`` is the key's last; return the new revision. With ``ttl_s``, a lease renewed by CAS.

        Raises:
            InvalidNameError: If the key is not usable.
            ConflictError: If another write stands; ``last_seq`` is its revision. Also after this very call, when its
                answer was lost and it was repeated: read before giving up.
        """
        return await self._write(key, data, header.build(expected_seq=revision, ttl_s=ttl_s))

    async def delete(self, key: str, *, revision: int | None = None) -> int:
        """Put a delete marker, which watchers see; return its revision. Deleting a missing key does the same.

        Raises:
            InvalidNameError: If the key is not usable.
            ConflictError: If ``revision`` is given and not the key's last.
        """
        return await self._write(key, b"", header.build(expected_seq=revision, extra={OPERATION: "DEL"}))

    async def purge(self, key: str, *, revision: int | None = None) -> int:
        """Delete a key with its history; return the marker's revision.

        Raises:
            InvalidNameError: If the key is not usable.
            ConflictError: If ``revision`` is given and not the key's last.
        """
        headers = header.build(expected_seq=revision, rollup=True, extra={OPERATION: "PURGE"})
        return await self._write(key, b"", headers)

    async def entries(self, prefix: str = "") -> list[KvEntry]:
        """Return the current entries whose key begins with ``prefix``, by revision. One request per 500 keys or so.

        Raises:
            NotFoundError: If the bucket does not exist.
        """
        found = await self._bus.get_many(self._stream, [self._filter(prefix)])
        entries = [self._entry(stored) for stored in found if not _is_marker(stored.headers)]
        return [entry for entry in entries if entry.key.startswith(prefix)]

    async def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix`` and have a value, sorted. Costs as much as ``entries``.

        Raises:
            NotFoundError: If the bucket does not exist.
        """
        return sorted(entry.key for entry in await self.entries(prefix))

    async def watch(self, prefix: str, sink: Callable[[KvEntry], None]) -> Watch:
        """Hand the current entries below ``prefix`` to ``sink``, then return; after that, every change in order.

        Deleted keys come with ``data`` None, in the snapshot not at all. No change is missed across reconnects. A key
        that runs out of its TTL is reported only if the bucket was made (by another tool) with limit markers.

        Args:
            prefix: Beginning of the keys to watch; "" for all. It need not end at a dot.
            sink: Plain function, called on the loop; it must not block and must not raise.

        Raises:
            NotFoundError: If the bucket does not exist.
        """
        info = await self._bus.stream_info(self._stream)
        last_seq = info.last_seq if info else 0
        # The fold may see writes after ``last_seq``; following from there and skipping what is known leaves no gap,
        # whatever a follower or a fresh leader says about the end of the stream.
        known: dict[str, Stored] = {}
        async for stored in self._bus.read(self._stream, subjects=(self._filter(prefix),)):
            known[stored.subject] = stored
        for stored in sorted(known.values(), key=lambda stored: stored.seq):
            if not _is_marker(stored.headers):
                self._show(stored, sink, prefix)
        seen = {subject: stored.seq for subject, stored in known.items() if stored.seq > last_seq}
        follow = self._follow(sink, prefix, start_seq=last_seq + 1, seen=seen)
        return Watch(asyncio.create_task(follow, name=f"kv-watch-{self.name}"))

    async def _follow(
        self, sink: Callable[[KvEntry], None], prefix: str, *, start_seq: int, seen: dict[str, int]
    ) -> None:
        subjects = (self._filter(prefix),)
        async for stored in self._bus.read(self._stream, subjects=subjects, start_seq=start_seq, follow=True):
            if stored.seq > seen.get(stored.subject, 0):
                self._show(stored, sink, prefix)

    def _show(self, stored: Stored, sink: Callable[[KvEntry], None], prefix: str) -> None:
        entry = self._entry(stored)
        if entry.key.startswith(prefix):
            sink(entry)

    def _entry(self, stored: Stored) -> KvEntry:
        data = None if _is_marker(stored.headers) else stored.data
        return KvEntry(stored.subject.removeprefix(self._prefix), data, stored.seq, stored.time)

    def _filter(self, prefix: str) -> str:
        # Subjects filter by whole tokens; the rest of the prefix is compared on our side.
        tokens, dot, _ = prefix.rpartition(".")
        return f"{self._prefix}{tokens}{dot}>"

    def _subject(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            message = f"key {key[:80]!r} is not usable: take tokens of a-z, A-Z, 0-9 and -/_= joined by dots"
            raise InvalidNameError(message, name=key)
        return self._prefix + key

    async def _write(self, key: str, data: bytes, headers: Headers | None) -> int:
        ack = await self._bus.store(Write(self._subject(key), data, headers))
        if ack.stream != self._stream:
            message = f"bucket {self.name}: the write went to stream {ack.stream}, which took its subjects"
            raise BusError(message)
        return ack.seq


def _is_marker(headers: Headers | None) -> bool:
    return headers is not None and (headers.get(OPERATION, "") in ("DEL", "PURGE") or MARKER_REASON in headers)
