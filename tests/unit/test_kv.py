"""Buckets: revisions, markers, prefixes and watches without gaps."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callboard.runtime.bus.base import KvEntry
from callboard.runtime.bus.kv import Bucket, stream_config
from callboard.runtime.bus.memory import MemoryBroker, MemoryBus
from callboard.runtime.errors import BusError, ConflictError, InvalidNameError, NotFoundError
from callboard.runtime.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest_asyncio.fixture
async def bus(clock: FakeClock) -> AsyncIterator[MemoryBus]:
    bus = MemoryBroker(clock).connect()
    await bus.create_stream(stream_config("B"))
    yield bus
    await bus.close()


@pytest.fixture
def bucket(bus: MemoryBus) -> Bucket:
    return Bucket(bus, "B")


async def test_a_value_is_read_back_with_its_revision(bucket: Bucket) -> None:
    assert await bucket.get("a.b") is None
    revision = await bucket.put("a.b", b"1")
    entry = await bucket.get("a.b")
    assert entry is not None
    assert (entry.key, entry.data, entry.revision) == ("a.b", b"1", revision)


async def test_only_one_create_wins_and_a_deleted_key_can_be_created_again(bucket: Bucket) -> None:
    first = await bucket.create("k", b"1")
    with pytest.raises(ConflictError) as caught:
        await bucket.create("k", b"2")
    assert caught.value.last_seq == first
    await bucket.delete("k")
    assert await bucket.get("k") is None
    assert await bucket.create("k", b"3") == first + 2


async def test_a_create_over_a_purged_key_works(bucket: Bucket) -> None:
    await bucket.create("k", b"1")
    await bucket.purge("k")
    await bucket.create("k", b"2")


async def test_an_update_needs_the_last_revision(bucket: Bucket) -> None:
    first = await bucket.put("k", b"1")
    second = await bucket.update("k", b"2", first)
    with pytest.raises(ConflictError) as caught:
        await bucket.update("k", b"3", first)
    assert caught.value.last_seq == second
    with pytest.raises(ConflictError):
        await bucket.delete("k", revision=first)


async def test_a_lease_lives_as_long_as_it_is_renewed(bucket: Bucket, clock: FakeClock) -> None:
    revision = await bucket.create("lease", b"me", ttl_s=5)
    for _ in range(3):
        await clock.advance(4)
        revision = await bucket.update("lease", b"me", revision, ttl_s=5)
    await clock.advance(5)
    assert await bucket.get("lease") is None
    with pytest.raises(ConflictError):
        await bucket.update("lease", b"me", revision, ttl_s=5)
    await bucket.create("lease", b"you", ttl_s=5)


async def test_a_ttl_is_refused_where_an_older_revision_would_come_back(bus: MemoryBus) -> None:
    await bus.create_stream(stream_config("H", history=5))
    with pytest.raises(BusError):
        await Bucket(bus, "H").put("k", b"", ttl_s=1)


async def test_keys_are_listed_by_prefix_without_the_deleted(bucket: Bucket) -> None:
    for key in ("w.1", "w.2", "w.10", "x.1"):
        await bucket.put(key, b"")
    await bucket.delete("w.2")
    assert await bucket.keys() == ["w.1", "w.10", "x.1"]
    assert await bucket.keys("w.1") == ["w.1", "w.10"]
    assert await bucket.keys("w.") == ["w.1", "w.10"]


@pytest.mark.parametrize("key", ["", ".", "a.", "a..b", "a b", "a*", ">", "ä"])
async def test_an_unusable_key_is_named(bucket: Bucket, key: str) -> None:
    with pytest.raises(InvalidNameError):
        await bucket.put(key, b"")


async def test_a_watch_gives_the_snapshot_then_every_change(bucket: Bucket, clock: FakeClock) -> None:
    await bucket.put("w.1", b"old")
    await bucket.put("w.1", b"new")
    await bucket.put("w.2", b"gone")
    await bucket.delete("w.2")
    await bucket.put("x", b"other")
    seen: list[KvEntry] = []
    watch = await bucket.watch("w.", seen.append)
    assert [(entry.key, entry.data) for entry in seen] == [("w.1", b"new")]
    await bucket.put("w.3", b"3")
    await bucket.put("x", b"other")
    await bucket.delete("w.1")
    await clock.settle()
    assert [(entry.key, entry.data) for entry in seen[1:]] == [("w.3", b"3"), ("w.1", None)]
    await watch.close()
    await watch.close()
    await bucket.put("w.4", b"4")
    await clock.settle()
    assert len(seen) == 3


async def test_a_watch_misses_nothing_across_a_broken_link(bus: MemoryBus, clock: FakeClock) -> None:
    other = bus.broker.connect() if isinstance(bus.broker, MemoryBroker) else pytest.fail("no broker")
    seen: list[KvEntry] = []
    watch = await Bucket(bus, "B").watch("", seen.append)
    bus.cut()
    await Bucket(other, "B").put("k", b"1")
    await clock.settle()
    assert seen == []
    bus.mend()
    await clock.settle()
    assert [entry.data for entry in seen] == [b"1"]
    await watch.close()
    await other.close()


async def test_a_watch_tells_why_it_stopped(bus: MemoryBus, bucket: Bucket, clock: FakeClock) -> None:
    watch = await bucket.watch("", lambda _: None)
    before = watch.problem
    assert before is None
    await bus.delete_stream("KV_B")
    await clock.settle()
    assert "KV_B" in (watch.problem or "")
    with pytest.raises(NotFoundError):
        await bucket.watch("", lambda _: None)
