"""Promises of the bus port: streams and consumers."""

from __future__ import annotations

import pytest

from callboard.runtime.bus.base import Bus, ConsumerConfig, Source, StreamConfig, Write
from callboard.runtime.bus.pattern import partition_of
from callboard.runtime.contract.broker import LOG, ONCE, WORK, fill, hands, work_queue
from callboard.runtime.contract.eventually import eventually
from callboard.runtime.errors import BusError, InvalidNameError, NotFoundError, TopologyError

FULL = StreamConfig(
    name="FULL",
    subjects=("f.>", "g.*"),
    storage="memory",
    discard="new",
    max_age_s=3600.5,
    max_bytes=1 << 20,
    max_msgs=1000,
    max_msgs_per_subject=5,
    max_msg_bytes=1000,
    max_consumers=20,
    duplicate_window_s=30.0,
    allow_atomic=True,
    allow_direct=True,
    allow_rollup=True,
    allow_msg_ttl=True,
    deny_delete=True,
)


class BusAdmin:
    """Tests; needs the fixtures ``broker`` and ``bus`` of ``BusContract``."""

    @pytest.mark.parametrize("config", [WORK, LOG, ONCE, FULL], ids=lambda config: config.name)
    async def test_a_stream_is_what_it_was_asked_to_be(self, bus: Bus, config: StreamConfig) -> None:
        created = await bus.create_stream(config)
        assert created.config == config
        assert (created.messages, created.last_seq, created.consumers) == (0, 0, 0)
        info = await bus.stream_info(config.name)
        assert info is not None
        assert info.config == config
        assert info.leader is not None

    async def test_creating_again_is_harmless_and_with_other_settings_refused(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        await fill(bus, b"1", subject="l.a")
        assert (await bus.create_stream(LOG)).messages == 1
        with pytest.raises(TopologyError, match="max_msgs"):
            await bus.create_stream(StreamConfig(name="L", subjects=("l.>",), max_msgs=5))

    async def test_streams_do_not_share_subjects(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        with pytest.raises(TopologyError):
            await bus.create_stream(StreamConfig(name="OTHER", subjects=("l.a",)))
        assert await bus.stream_names() == ["L"]

    async def test_a_schedule_stream_that_forbids_purging_is_refused(self, bus: Bus) -> None:
        """The server would switch the ban off without a word."""
        config = StreamConfig(name="S", subjects=("s.>",), allow_schedules=True, deny_purge=True)
        with pytest.raises(TopologyError, match="deny_purge"):
            await bus.create_stream(config)

    @pytest.mark.parametrize("name", ["", "a b", "a.b", "a*", "a/b", "a>"])
    async def test_a_name_that_is_none_is_refused(self, bus: Bus, name: str) -> None:
        with pytest.raises(InvalidNameError):
            await bus.create_stream(StreamConfig(name=name, subjects=("x",)))

    async def test_a_stream_can_be_changed_and_keeps_what_it_holds(self, bus: Bus) -> None:
        await bus.create_stream(StreamConfig(name="A", subjects=("a",), max_msgs=5))
        await fill(bus, b"1", subject="a")
        wider = StreamConfig(name="A", subjects=("a", "b"), max_msgs=10, max_age_s=600)
        assert (await bus.update_stream(wider)).config == wider
        await fill(bus, b"2", subject="b")
        info = await bus.stream_info("A")
        assert info is not None
        assert (info.messages, info.first_seq, info.last_seq) == (2, 1, 2)
        assert info.first_time is not None
        assert info.size_bytes > 0
        with pytest.raises(TopologyError):
            await bus.update_stream(StreamConfig(name="A", subjects=("a", "b"), storage="memory"))
        with pytest.raises(NotFoundError):
            await bus.update_stream(StreamConfig(name="NONE", subjects=("x",)))

    async def test_missing_things_are_none_or_false(self, bus: Bus) -> None:
        assert await bus.stream_info("NONE") is None
        assert await bus.delete_stream("NONE") is False
        assert await bus.consumer_info("NONE", "c") is None
        await bus.create_stream(LOG)
        assert await bus.consumer_info("L", "c") is None
        assert await bus.delete_consumer("L", "c") is False
        assert await bus.delete_message("L", 7) is False
        with pytest.raises(NotFoundError):
            await bus.purge("NONE")
        with pytest.raises(NotFoundError):
            await bus.subject_counts("NONE")
        with pytest.raises(NotFoundError):
            await bus.consumers("NONE")
        with pytest.raises(NotFoundError):
            await bus.delete_message("NONE", 1)

    async def test_streams_are_listed_by_name_and_can_be_deleted(self, bus: Bus) -> None:
        for name in ("C", "A", "B"):
            await bus.create_stream(StreamConfig(name=name, subjects=(name,)))
        assert await bus.stream_names() == ["A", "B", "C"]
        assert await bus.delete_stream("B") is True
        assert await bus.stream_names() == ["A", "C"]

    async def test_messages_are_counted_by_subject(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        assert await bus.subject_counts("L") == {}
        await fill(bus, b"1", b"2", subject="l.a.x")
        await fill(bus, b"3", subject="l.b.x")
        assert await bus.subject_counts("L") == {"l.a.x": 2, "l.b.x": 1}
        assert await bus.subject_counts("L", "l.a.*") == {"l.a.x": 2}
        assert await bus.subject_counts("L", "l.none") == {}

    async def test_messages_are_purged_by_subject_and_by_sequence(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        for subject in ("l.a", "l.b", "l.a", "l.b", "l.a"):
            await fill(bus, b"x", subject=subject)
        assert await bus.purge("L", below_seq=1) == 0
        assert await bus.purge("L", subject="l.a", below_seq=3) == 1
        assert [stored.seq async for stored in bus.read("L")] == [2, 3, 4, 5]
        assert await bus.purge("L", below_seq=3) == 1
        assert await bus.purge("L", subject="l.b") == 1
        assert [stored.seq async for stored in bus.read("L")] == [3, 5]
        assert await bus.purge("L") == 2
        assert (await bus.store(Write("l.a", b""))).seq == 6

    async def test_a_ban_on_deleting_does_not_ban_purging(self, bus: Bus) -> None:
        await bus.create_stream(StreamConfig(name="D", subjects=("d",), deny_delete=True))
        await bus.create_stream(StreamConfig(name="P", subjects=("p",), deny_purge=True))
        await fill(bus, b"1", subject="d")
        await fill(bus, b"1", subject="p")
        with pytest.raises(BusError):
            await bus.delete_message("D", 1)
        assert await bus.purge("D") == 1
        with pytest.raises(BusError):
            await bus.purge("P")
        assert await bus.delete_message("P", 1) is True

    async def test_a_consumer_is_what_it_was_asked_to_be(self, bus: Bus) -> None:
        await bus.create_stream(WORK)
        config = ConsumerConfig(name="c", filter_subject="t.a", ack_wait_s=2.5, max_ack_pending=17, max_deliver=5)
        await fill(bus, b"1", b"2")
        await fill(bus, b"3", subject="t.b")
        created = await bus.create_consumer("W", config)
        assert (created.stream, created.config, created.pending, created.ack_pending) == ("W", config, 2, 0)
        assert await bus.create_consumer("W", config) == created
        changed = ConsumerConfig(name="c", filter_subject="t.a", ack_wait_s=9, max_ack_pending=100, max_deliver=5)
        assert (await bus.create_consumer("W", changed)).config == changed
        assert [info.config.name for info in await bus.consumers("W")] == ["c"]
        info = await bus.stream_info("W")
        assert info is not None
        assert info.consumers == 1
        assert await bus.delete_consumer("W", "c") is True
        assert await bus.consumers("W") == []

    async def test_consumers_of_a_work_queue_do_not_overlap(self, bus: Bus) -> None:
        await work_queue(bus)
        with pytest.raises(TopologyError):
            await bus.create_consumer("W", ConsumerConfig(name="other", filter_subject="t.*"))
        await bus.create_consumer("W", ConsumerConfig(name="other", filter_subject="t.b"))
        with pytest.raises(NotFoundError):
            await bus.create_consumer("NONE", ConsumerConfig(name="c", filter_subject="a"))

    async def test_a_consumer_tells_what_is_in_hand(self, bus: Bus) -> None:
        await work_queue(bus, ack_wait_s=0.3)
        await fill(bus, b"1", b"2", b"3")
        taken = await hands(bus, credit=1)
        await taken.have(1)
        info = await bus.consumer_info("W", "c")
        assert info is not None
        assert (info.pending, info.ack_pending, info.redelivered) == (2, 1, 0)
        taken.pull.grant(2)
        await taken.have(3)
        await bus.ack(taken.tokens[1:], confirm=True)
        taken.pull.grant(1)
        await taken.have(4)
        info = await bus.consumer_info("W", "c")
        assert info is not None
        assert (info.pending, info.ack_pending, info.redelivered) == (0, 1, 1)

    async def test_a_subject_transform_files_mail_by_its_key(self, bus: Bus) -> None:
        transform = ("mail.*.*", "mbox.{{wildcard(1)}}.{{partition(64,1,2)}}.{{wildcard(2)}}")
        config = StreamConfig(name="M", subjects=("mail.*.*",), subject_transform=transform, allow_direct=True)
        assert (await bus.create_stream(config)).config == config
        for key in ("ann", "bob", "ann"):
            await fill(bus, b"", subject=f"mail.greeter.{key}")
        counts = await bus.subject_counts("M")
        partitions = {subject.rsplit(".", 1)[1]: int(subject.split(".")[2]) for subject in counts}
        assert sorted(counts.values()) == [1, 2]
        # Fixed for life: a change here would part actors from their mail.
        assert partitions == {key: partition_of(64, "greeter", key) for key in ("ann", "bob")}

    async def test_a_stream_copies_from_its_sources(self, bus: Bus) -> None:
        await bus.create_stream(LOG)
        audit = StreamConfig(
            name="AUDIT", sources=(Source("L", ("l.a.>", "l.b.*")),), deny_delete=True, deny_purge=True
        )
        assert (await bus.create_stream(audit)).config == audit
        one = StreamConfig(name="ONE", sources=(Source("L", ("l.c",)),))
        assert (await bus.create_stream(one)).config == one
        for subject in ("l.a.1.2", "l.b.1", "l.c", "l.b.1.2"):
            await fill(bus, b"x", subject=subject)

        async def is_copied() -> bool:
            info, other = await bus.stream_info("AUDIT"), await bus.stream_info("ONE")
            return info is not None and other is not None and info.messages == 2 and other.messages == 1

        await eventually(is_copied)
        assert set(await bus.subject_counts("AUDIT")) == {"l.a.1.2", "l.b.1"}
