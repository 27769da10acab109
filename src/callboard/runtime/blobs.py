"""Claim checks: payloads too large for a message, kept in an object store named by their hash.

Wire-compatible with the NATS object store: stream ``OBJ_<bucket>``, chunks on ``$O.<bucket>.C.<nuid>``, one metadata
record on ``$O.<bucket>.M.<base64url name>``. What reads objects there reads ours; who writes must leave out the header
that rolls the record up, which the stream refuses: with it whoever may store one object deletes them all. The name is
the SHA-256 of the content, so a repeated put changes nothing but the object's age.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Struct

from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Stored, StreamConfig, Write
from callboard.runtime.clock import SYSTEM_CLOCK, Clock
from callboard.runtime.errors import (
    BlobCorruptError,
    BusError,
    ConflictError,
    DecodeError,
    NotFoundError,
    PermissionDeniedError,
)
from callboard.runtime.ids import new_token

BUCKET = "CB_BLOBS"
CLAIM_CHECK_BYTES = 256 * 1024
CHUNK_BYTES = 128 * 1024

_DIGEST = "SHA-256="
_CLAIM = re.compile(r"([^ ]+) ([0-9a-f]{64}) ([0-9]{1,18})")
# Chunks in flight at once: 2 MiB, well under the server's per-client buffer.
_CHUNKS_IN_FLIGHT = 16
# Concurrent puts and sweeps of the very same content; each refusal means that one of them got through.
_PUT_TRIES = 5


class BlobRef(Struct, frozen=True):
    """Where an object is and what it must turn out to be."""

    name: str
    sha256: str
    size_bytes: int


class _Options(Struct, omit_defaults=True):
    max_chunk_size: int = 0


class _Meta(Struct):
    """The metadata record, in the object store's spelling; fields we have no use for are dropped."""

    name: str
    bucket: str
    nuid: str
    size: int = 0
    chunks: int = 0
    digest: str = ""
    mtime: str = ""
    deleted: bool = False
    options: _Options | None = None


def stream_config(
    bucket: str = BUCKET, *, max_age_s: float = 0.0, max_bytes: int = -1, replicas: int = 1
) -> StreamConfig:
    """Return the settings of the stream behind an object store.

    With ``max_age_s`` set, chunks go before their record does, so prefer ``BlobStore.sweep``.
    """
    return StreamConfig(
        name=f"OBJ_{bucket}",
        subjects=(f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"),
        discard="new",
        max_age_s=max_age_s,
        max_bytes=max_bytes,
        replicas=replicas,
        allow_direct=True,
    )


def claim_header(ref: BlobRef) -> str:
    """Return the value of ``Cb-Claim-Check`` for an object."""
    return f"{ref.name} {ref.sha256} {ref.size_bytes}"


def parse_claim(value: str) -> BlobRef:
    """Return what a ``Cb-Claim-Check`` header refers to.

    Raises:
        DecodeError: If it is not ``<name> <sha256 hex> <bytes>``.
    """
    found = _CLAIM.fullmatch(value)
    if found is None:
        message = f"{header.CLAIM_CHECK} {value[:200]!r} is not '<name> <sha256 hex> <bytes>'"
        raise DecodeError(message)
    return BlobRef(found[1], found[2], int(found[3]))


class BlobStore:
    """The objects of one bucket. Holds no connection and no state of its own."""

    def __init__(self, bus: Bus, bucket: str = BUCKET, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Use an existing bucket; create its stream from ``stream_config`` before."""
        self.bucket = bucket
        self._bus = bus
        self._clock = clock
        self._stream = f"OBJ_{bucket}"

    async def put(self, data: bytes) -> BlobRef:
        """Store ``data`` and return its reference; a second put of the same content renews its age.

        Two round trips when it exists, else two and one more for every 2 MiB. Running twice is harmless. When it is
        cut short, chunks without a record stay behind until a ``sweep``.

        Raises:
            BackpressureError: If the store is full.
            NotFoundError: If the bucket does not exist.
            BusError: If a chunk was refused; what had been stored of it is removed again.
        """
        digest = hashlib.sha256(data).digest()
        ref = BlobRef(digest.hex(), digest.hex(), len(data))
        for _ in range(_PUT_TRIES):
            standing, meta = await self._meta(ref.name)
            expected = standing.seq if standing is not None else 0
            if meta is not None and not meta.deleted and (meta.size, meta.digest) == (len(data), _encode(digest)):
                # A new record makes the object young again, so that a sweep cannot take it from under this put. The
                # older ones stay for that sweep: most users may not purge.
                if await self._write_meta(meta, expected):
                    return ref
                continue
            if await self._put_new(ref, data, digest, expected):
                return ref
        message = f"object {ref.name} of {self.bucket} keeps changing; try again"
        raise ConflictError(message)

    async def get(self, ref: BlobRef) -> bytes:
        """Return the content after checking size and hash. A round trip, and one for each chunk of 128 KiB.

        By single gets, not by a consumer: who may make one may have it deliver anywhere, which is too much to allow a
        program that only fetches a result.

        Raises:
            NotFoundError: If the object (or the bucket) does not exist.
            BlobCorruptError: If the bytes are not what ``ref`` promises, or chunks are missing.
        """
        _, meta = await self._meta(ref.name)
        if meta is None or meta.deleted:
            raise self._missing(ref.name)
        parts: list[bytes] = []
        subject, seq = self._chunk_subject(meta.nuid), 1
        while len(parts) < meta.chunks:
            chunk = await self._bus.get_next(self._stream, seq, subject)
            if chunk is None:
                # another server may not have it yet
                chunk = await self._bus.get_next(self._stream, seq, subject, from_leader=True)
            if chunk is None:
                break
            parts.append(chunk.data)
            seq = chunk.seq + 1
        data = b"".join(parts)
        if len(data) != ref.size_bytes or hashlib.sha256(data).hexdigest() != ref.sha256:
            message = (
                f"object {ref.name} of {self.bucket} has {len(data)} bytes in {len(parts)} of {meta.chunks} chunks "
                f"and another hash than its reference of {ref.size_bytes} bytes: restore it or submit the payload again"
            )
            raise BlobCorruptError(message)
        return data

    async def delete(self, name: str) -> bool:
        """Delete an object; False when there was none. Three round trips.

        Raises:
            NotFoundError: If the bucket does not exist.
            ConflictError: If it was written again meanwhile.
        """
        standing, meta = await self._meta(name)
        if standing is None or meta is None or meta.deleted:
            return False
        if not await self._delete(standing, meta):
            message = f"object {name} of {self.bucket} was written again while it was being deleted"
            raise ConflictError(message)
        return True

    async def sweep(self, older_than_s: float) -> int:
        """Delete the objects last put more than ``older_than_s`` ago, and what broken puts left; return how many.

        Sweep only what every stream that can point here has aged out. An object that is put again while the sweep
        runs stays. Reads every record of the bucket.

        Raises:
            NotFoundError: If the bucket does not exist.
        """
        limit = self._clock.now() - timedelta(seconds=older_than_s)
        # Chunks first: a put that finishes in between then shows its record below.
        chunk_subjects = await self._bus.subject_counts(self._stream, self._chunk_subject(">"))
        kept: set[str] = set()
        swept = 0
        metas: dict[str, Stored] = {}
        repeated: set[str] = set()
        async for stored in self._bus.read(self._stream, subjects=(f"$O.{self.bucket}.M.>",)):
            if stored.subject in metas:
                repeated.add(stored.subject)
            metas[stored.subject] = stored
        for stored in metas.values():
            meta = _decode(stored)
            if stored.subject in repeated:
                await self._bus.purge(self._stream, subject=stored.subject, below_seq=stored.seq)
            if stored.time >= limit:
                kept.add(meta.nuid)
            elif meta.deleted:
                await self._bus.purge(self._stream, subject=stored.subject, below_seq=stored.seq + 1)
            elif await self._delete(stored, meta):
                swept += 1
            else:
                kept.add(meta.nuid)
        for subject in chunk_subjects:
            if subject.rpartition(".")[2] not in kept:
                await self._sweep_orphan(subject, limit)
        return swept

    async def _put_new(self, ref: BlobRef, data: bytes, digest: bytes, expected: int) -> bool:
        nuid = new_token(11)
        subject = self._chunk_subject(nuid)
        writes = [Write(subject, data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)]
        meta = _Meta(
            name=ref.name,
            bucket=self.bucket,
            nuid=nuid,
            size=len(data),
            chunks=len(writes),
            digest=_encode(digest),
            options=_Options(max_chunk_size=CHUNK_BYTES),
        )
        try:
            for at in range(0, len(writes), _CHUNKS_IN_FLIGHT):
                for answer in await self._bus.store_many(writes[at : at + _CHUNKS_IN_FLIGHT]):
                    if isinstance(answer, BusError):
                        raise answer
        except BusError:
            # The reason of the failure matters more than what it leaves for a sweep.
            with suppress(BusError):
                await self._bus.purge(self._stream, subject=subject)
            raise
        if await self._write_meta(meta, expected):
            return True
        # most users may not purge; then it is left for a sweep
        with suppress(PermissionDeniedError):
            await self._bus.purge(self._stream, subject=subject)
        return False

    async def _delete(self, standing: Stored, meta: _Meta) -> bool:
        marker = _Meta(name=meta.name, bucket=self.bucket, nuid=meta.nuid, deleted=True)
        if not await self._write_meta(marker, standing.seq):
            return False
        await self._bus.purge(self._stream, subject=self._chunk_subject(meta.nuid))
        return True

    async def _sweep_orphan(self, subject: str, limit: datetime) -> None:
        last = await self._bus.get_last(self._stream, subject)
        if last is not None and last.time < limit:
            await self._bus.purge(self._stream, subject=subject)

    async def _write_meta(self, meta: _Meta, expected: int) -> bool:
        meta.mtime = self._clock.now().astimezone(UTC).isoformat().replace("+00:00", "Z")
        headers = header.build(expected_seq=expected)
        try:
            await self._bus.store(Write(self._meta_subject(meta.name), msgspec.json.encode(meta), headers))
        except ConflictError:
            return False
        return True

    async def _meta(self, name: str) -> tuple[Stored | None, _Meta | None]:
        stored = await self._bus.get_last(self._stream, self._meta_subject(name))
        return stored, _decode(stored) if stored is not None else None

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self.bucket}.M.{urlsafe_b64encode(name.encode()).decode()}"

    def _chunk_subject(self, nuid: str) -> str:
        return f"$O.{self.bucket}.C.{nuid}"

    def _missing(self, name: str) -> NotFoundError:
        return NotFoundError(f"object {name} of {self.bucket} does not exist: it was never put, deleted or swept")


def _encode(digest: bytes) -> str:
    return _DIGEST + urlsafe_b64encode(digest).decode()


def _decode(stored: Stored) -> _Meta:
    try:
        return msgspec.json.decode(stored.data, type=_Meta)
    except msgspec.MsgspecError as error:
        message = f"the object record on {stored.subject} is damaged: {error}"
        raise BlobCorruptError(message) from error
