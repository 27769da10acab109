"""Claim checks: content comes back whole or not at all, and goes only when nobody puts it again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callboard.runtime import blobs
from callboard.runtime.blobs import CHUNK_BYTES, BlobRef, BlobStore, claim_header, parse_claim
from callboard.runtime.bus.base import Write
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.errors import BackpressureError, BlobCorruptError, DecodeError, NotFoundError
from callboard.runtime.testing import FakeClock

STREAM = "OBJ_CB_BLOBS"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture
async def bus(clock: FakeClock) -> AsyncIterator[MemoryBus]:
    bus = MemoryBroker(clock).connect()
    await bus.create_stream(blobs.stream_config(max_bytes=8 << 20))
    yield bus
    await bus.close()


@pytest.fixture
def store(bus: MemoryBus, clock: FakeClock) -> BlobStore:
    return BlobStore(bus, clock=clock)


def content(size_bytes: int) -> bytes:
    return bytes(range(256)) * (size_bytes // 256) + bytes(size_bytes % 256)


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 << 20])
async def test_content_comes_back_whole(store: BlobStore, size_bytes: int) -> None:
    data = content(size_bytes)
    ref = await store.put(data)
    assert ref.size_bytes == size_bytes
    assert await store.get(ref) == data


async def test_a_second_put_stores_nothing_but_renews_the_age(
    bus: MemoryBus, store: BlobStore, clock: FakeClock
) -> None:
    ref = await store.put(content(300_000))
    before = await bus.subject_counts(STREAM)
    await clock.advance(3600)
    assert await store.put(content(300_000)) == ref
    assert await bus.subject_counts(STREAM, "$O.CB_BLOBS.C.>") == {
        subject: count for subject, count in before.items() if ".C." in subject
    }
    assert await store.sweep(60) == 0
    assert await bus.subject_counts(STREAM) == before, "the older record is swept"
    assert await store.get(ref) == content(300_000)


async def test_a_missing_object_is_named(store: BlobStore) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        await store.get(BlobRef("a" * 64, "a" * 64, 1))


async def test_a_lost_or_changed_chunk_is_noticed(bus: MemoryBus, store: BlobStore) -> None:
    ref = await store.put(content(300_000))
    with pytest.raises(BlobCorruptError):
        await store.get(BlobRef(ref.name, ref.sha256, ref.size_bytes - 1))
    with pytest.raises(BlobCorruptError):
        await store.get(BlobRef(ref.name, "0" * 64, ref.size_bytes))
    await bus.delete_message(STREAM, 1)
    with pytest.raises(BlobCorruptError, match="2 of 3 chunks"):
        await store.get(ref)


async def test_a_damaged_record_is_named(bus: MemoryBus, store: BlobStore) -> None:
    ref = await store.put(b"x")
    (subject,) = await bus.subject_counts(STREAM, "$O.CB_BLOBS.M.>")
    await bus.store(Write(subject, b"{"))
    with pytest.raises(BlobCorruptError, match="damaged"):
        await store.get(ref)


async def test_a_deleted_object_is_gone_and_can_be_put_again(bus: MemoryBus, store: BlobStore) -> None:
    ref = await store.put(b"x")
    assert await store.delete(ref.name)
    assert not await store.delete(ref.name)
    assert await bus.subject_counts(STREAM, "$O.CB_BLOBS.C.>") == {}
    with pytest.raises(NotFoundError):
        await store.get(ref)
    assert await store.put(b"x") == ref
    assert await store.get(ref) == b"x"


async def test_a_sweep_takes_the_old_the_orphaned_and_the_markers(
    bus: MemoryBus, store: BlobStore, clock: FakeClock
) -> None:
    old = await store.put(b"old")
    gone = await store.put(b"gone")
    await store.delete(gone.name)
    await bus.store(Write("$O.CB_BLOBS.C.broken", b"left by a put that died"))
    await clock.advance(100)
    young = await store.put(b"young")
    await bus.store(Write("$O.CB_BLOBS.C.running", b"of a put that still runs"))
    assert await store.sweep(50) == 1
    assert await store.get(young) == b"young"
    with pytest.raises(NotFoundError):
        await store.get(old)
    chunks = await bus.subject_counts(STREAM, "$O.CB_BLOBS.C.>")
    assert len(chunks) == 2
    assert "$O.CB_BLOBS.C.running" in chunks
    await clock.advance(100)
    assert await store.sweep(50) == 1
    assert await bus.subject_counts(STREAM, "$O.CB_BLOBS.C.>") == {}


async def test_a_full_store_refuses_and_keeps_no_half(bus: MemoryBus, store: BlobStore) -> None:
    with pytest.raises(BackpressureError):
        await store.put(content(9 << 20))
    assert await bus.subject_counts(STREAM) == {}


async def test_a_missing_bucket_is_named(bus: MemoryBus) -> None:
    with pytest.raises(NotFoundError):
        await BlobStore(bus, "NONE").put(b"x")


def test_a_claim_survives_its_header() -> None:
    ref = BlobRef("name", "ab" * 32, 12)
    assert parse_claim(claim_header(ref)) == ref


@pytest.mark.parametrize("value", ["", "a b c", f"a {'0' * 64}", f"a {'0' * 64} -1", f"a {'0' * 63}G 1", "a  b 1"])
def test_a_malformed_claim_is_refused(value: str) -> None:
    with pytest.raises(DecodeError):
        parse_claim(value)
