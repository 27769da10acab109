"""Promises of the bus port: what actors ask of one stream that holds mail, state, steps, events and timers."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import pytest_asyncio
from msgspec.structs import replace

from callboard.runtime.bus import header, topology
from callboard.runtime.bus.base import Bus, PubAck, Source, Stored, StreamConfig, Write
from callboard.runtime.bus.pattern import partition_of
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import TopologySettings
from callboard.runtime.contract.broker import cas, fill
from callboard.runtime.contract.eventually import eventually
from callboard.runtime.errors import BusError, ConflictError

PARTITIONS = 4


STATE = "cb.state.greeter.ann"


MAIL = "cb.mail.greeter.ann"


TIMER = "cb.timer.greeter.ann.wake"


def mbox(key: str) -> str:
    return f"cb.mbox.greeter.{partition_of(PARTITIONS, 'greeter', key)}.{key}"


def at(delay_s: float, target: str = MAIL, **more: str) -> dict[str, str]:
    return header.at(SYSTEM_CLOCK.now() + timedelta(seconds=delay_s), target) | more


async def last_seq(bus: Bus) -> int:
    info = await bus.stream_info(topology.ACTORS)
    assert info is not None
    return info.last_seq


async def last(bus: Bus, subject: str) -> Stored:
    found = await bus.get_last(topology.ACTORS, subject)
    assert found is not None
    return found


async def counts(bus: Bus, subject: str = ">") -> dict[str, int]:
    return await bus.subject_counts(topology.ACTORS, subject)


def turn(expected_seq: int, *, timer_s: float = 1.0) -> list[Write]:
    """Return what a turn commits: its state, a mail, a timer, an event and a step."""
    timer = at(timer_s) | {header.TIMER: "wake", header.TIMER_GENERATION: "2", header.MAIL_KIND: "timer"}
    return [
        Write("cb.mail.greeter.bob", b"tell", {"Cb-Type": "Hello"}),
        cas(STATE, b"state", expected_seq),
        Write(TIMER, b"due", timer),
        Write("cb.event.greeter.ann", b"event", header.build(ttl_s=1)),
        Write("cb.step.greeter.ann.7.model.abc.0", b"step", header.build(expected_seq=0, ttl_s=60)),
    ]


def header_of_timer(generation: str) -> dict[str, str]:
    return {header.TIMER: "wake", header.TIMER_GENERATION: generation}


async def _has(bus: Bus, subject: str) -> bool:
    return await bus.get_last(topology.ACTORS, subject) is not None


async def copies(bus: Bus) -> list[Stored]:
    return [stored async for stored in bus.read("COPY")]


class BusForActors:
    """Tests; needs the fixtures ``broker`` and ``bus`` of ``BusContract``."""

    @pytest_asyncio.fixture
    async def actors_bus(self, bus: Bus) -> Bus:
        """Return a connection to a broker with the stream of the actors."""
        found = {stream.name: stream for stream in topology.declared(TopologySettings(partitions=PARTITIONS)).streams}
        await bus.create_stream(found[topology.ACTORS])
        return bus

    @pytest.mark.parametrize("place", [0, 1, 2])
    async def test_one_stale_state_anywhere_refuses_the_whole_batch(self, actors_bus: Bus, place: int) -> None:
        for key in "abc":
            await actors_bus.store(cas(f"cb.state.greeter.{key}", b"1", 0))
        expected = [1, 2, 3]
        expected[place] = 0
        keys = [f"cb.state.greeter.{key}" for key in "abc"]
        with pytest.raises(ConflictError) as caught:
            await actors_bus.store_batch([cas(key, b"2", seq) for key, seq in zip(keys, expected, strict=True)])
        assert caught.value.last_seq == place + 1
        assert await last_seq(actors_bus) == 3
        assert await actors_bus.store_batch(
            [cas(key, b"2", seq) for key, seq in zip(keys, [1, 2, 3], strict=True)]
        ) == PubAck(topology.ACTORS, 6, count=3)

    async def test_of_two_stale_states_the_first_is_named(self, actors_bus: Bus) -> None:
        await actors_bus.store_batch([Write("cb.state.greeter.a", b""), Write("cb.state.greeter.b", b"")])
        with pytest.raises(ConflictError) as caught:
            await actors_bus.store_batch([cas("cb.state.greeter.b", b"", 9), cas("cb.state.greeter.a", b"", 9)])
        assert caught.value.last_seq == 2

    async def test_a_subject_cannot_be_expected_after_it_was_written_in_the_same_batch(self, actors_bus: Bus) -> None:
        await actors_bus.store(cas(STATE, b"1", 0))
        other = {header.EXPECTED_SUBJECT_SEQ: "1", "Nats-Expected-Last-Subject-Sequence-Subject": STATE}
        refused = (
            [cas(STATE, b"2", 1), cas(STATE, b"3", 2)],
            [Write(STATE, b"2"), cas(STATE, b"3", 1)],
            [Write(STATE, b"2"), Write("cb.event.greeter.ann", b"", other)],
        )
        for writes in refused:
            with pytest.raises(ConflictError, match="10164") as caught:
                await actors_bus.store_batch(writes)
            # Nobody else's write stands there, so none is named.
            assert caught.value.last_seq == 0
        assert await last_seq(actors_bus) == 1
        await actors_bus.store_batch(
            [Write("cb.event.greeter.ann", b"", other), cas(STATE, b"2", 1), Write(STATE, b"3")]
        )
        assert await counts(actors_bus, STATE) == {STATE: 3}
        with pytest.raises(ConflictError):
            await actors_bus.store_batch(
                [Write("cb.event.greeter.ann", b"", other), Write("cb.event.greeter.ann", b"")]
            )

    async def test_mail_is_expected_under_the_name_it_is_stored_by(self, actors_bus: Bus) -> None:
        await actors_bus.store(Write(MAIL, b"1"))
        with pytest.raises(ConflictError) as caught:
            await actors_bus.store(cas(MAIL, b"2", 0))
        assert caught.value.last_seq == 1
        await actors_bus.store_batch([Write(STATE, b""), cas(MAIL, b"2", 1)])
        assert await counts(actors_bus) == {mbox("ann"): 2, STATE: 1}

    async def test_a_turn_with_all_that_it_sends_is_one_batch(self, actors_bus: Bus) -> None:
        stored = await actors_bus.store_batch(turn(0))
        assert (stored.seq, stored.count) == (5, 5)
        event = "cb.event.greeter.ann"
        assert set(await counts(actors_bus)) == {STATE, TIMER, mbox("bob"), event, "cb.step.greeter.ann.7.model.abc.0"}
        sent = await last(actors_bus, mbox("bob"))
        assert (sent.data, header.without_batch(sent.headers)) == (b"tell", {"Cb-Type": "Hello"})
        # The state is stale, then the step is taken: nothing of the turn may be there.
        for refused in (turn(0), [*turn(2)[:4], turn(2)[4]]):
            with pytest.raises(ConflictError):
                await actors_bus.store_batch(refused)
        assert await last_seq(actors_bus) == 5

        async def has_fired() -> bool:
            found = await counts(actors_bus)
            return mbox("ann") in found and event not in found and TIMER not in found

        await eventually(has_fired, within_s=5)
        fired = await last(actors_bus, mbox("ann"))
        assert fired.data == b"due"
        assert header.without_batch(fired.headers) == {
            header.TIMER: "wake",
            header.TIMER_GENERATION: "2",
            header.MAIL_KIND: "timer",
            header.SCHEDULER: TIMER,
            header.SCHEDULE_NEXT: "purge",
        }

    async def test_a_rollup_in_a_batch_leaves_what_comes_after_it(self, actors_bus: Bus) -> None:
        await fill(actors_bus, b"1", b"2", b"3", subject=STATE)
        rollup = header.build(expected_seq=3, rollup=True)
        await actors_bus.store_batch([Write(STATE, b"4", rollup), Write(MAIL, b""), Write(STATE, b"5")])
        assert await counts(actors_bus) == {STATE: 2, mbox("ann"): 1}
        with pytest.raises(ConflictError):
            await actors_bus.store_batch([Write(STATE, b"6", rollup), Write(MAIL, b"")])
        assert await counts(actors_bus) == {STATE: 2, mbox("ann"): 1}

    @pytest.mark.parametrize(
        "pair",
        [
            ({}, {"Nats-Rollup": "sub"}),
            ({"Nats-Rollup": "sub"}, {"Nats-Rollup": "sub"}),
            ({}, at(60)),
            (at(60), at(60)),
            (at(60), header.cancel_schedule()),
            (header.cancel_schedule(), at(60)),
        ],
    )
    async def test_a_batch_replaces_a_subject_before_it_writes_there_or_not_at_all(
        self, actors_bus: Bus, pair: tuple[dict[str, str], dict[str, str]]
    ) -> None:
        with pytest.raises(BusError, match="10111"):
            await actors_bus.store_batch([Write(TIMER, b"", headers) for headers in pair])
        assert await last_seq(actors_bus) == 0
        await actors_bus.store_batch([Write(TIMER, b"", pair[1]), Write(f"{TIMER}.other", b"", pair[0])])

    async def test_a_fired_schedule_is_filed_as_mail_without_its_message_id(self, actors_bus: Bus) -> None:
        headers = at(1.0) | header_of_timer("3") | {header.MSG_ID: "m1", header.EXPECTED_SUBJECT_SEQ: "0"}
        await actors_bus.store(Write(TIMER, b"due", headers))
        await eventually(lambda: _has(actors_bus, mbox("ann")), within_s=5)
        fired = await last(actors_bus, mbox("ann"))
        assert fired.headers == header_of_timer("3") | {header.SCHEDULER: TIMER, header.SCHEDULE_NEXT: "purge"}
        assert await counts(actors_bus) == {mbox("ann"): 1}

    async def test_a_schedule_set_again_fires_as_it_was_set_last(self, actors_bus: Bus) -> None:
        await actors_bus.store(Write(TIMER, b"1", at(1.0) | header_of_timer("1")))
        await actors_bus.store_batch([Write(STATE, b""), Write(TIMER, b"2", at(1.5, "cb.mail.greeter.bob"))])
        assert await counts(actors_bus, TIMER) == {TIMER: 1}
        await eventually(lambda: _has(actors_bus, mbox("bob")), within_s=5)
        assert await counts(actors_bus) == {STATE: 1, mbox("bob"): 1}

    async def test_cancelled_schedules_do_not_fire(self, actors_bus: Bus) -> None:
        names = ["purged", "single", "batched", "carried", "again", "kept"]
        for name in names:
            await actors_bus.store(Write(f"cb.timer.greeter.{name}.t", b"", at(1.2, f"cb.mail.greeter.{name}")))
        await actors_bus.purge(topology.ACTORS, subject="cb.timer.greeter.purged.t")
        await actors_bus.store(Write("cb.timer.greeter.single.t", b"", header.cancel_schedule()))
        cancel = [Write(f"cb.timer.greeter.{name}.t", b"", header.cancel_schedule()) for name in ("batched", "never")]
        await actors_bus.store_batch([cas(STATE, b"", 0), *cancel])
        ended = "cb.timer.greeter.carried.t"
        carrier = {header.SCHEDULER: ended, header.SCHEDULE_NEXT: "purge", header.EXPECTED_SUBJECT_SEQ: "0"}
        await actors_bus.store_batch(
            [Write("cb.state.greeter.carried", b"", carrier), Write("cb.event.greeter.carried", b"")]
        )
        assert ended not in await counts(actors_bus)
        itself = {header.SCHEDULER: "cb.timer.greeter.kept.t", header.SCHEDULE_NEXT: "purge"}
        with pytest.raises(BusError, match="10212"):
            await actors_bus.store(Write("cb.timer.greeter.kept.t", b"", itself))
        await actors_bus.store(Write("cb.timer.greeter.again.t", b"", header.cancel_schedule()))
        await actors_bus.store(Write("cb.timer.greeter.again.t", b"", at(1.4, "cb.mail.greeter.again")))

        async def is_over() -> bool:
            return await counts(actors_bus, "cb.timer.>") == {}

        await eventually(is_over, within_s=5)
        assert await counts(actors_bus, "cb.mbox.>") == {mbox("again"): 1, mbox("kept"): 1}

    async def test_schedules_that_recur_fire_until_they_are_cancelled(self, actors_bus: Bus) -> None:
        every = header.recurring("@every 1s", "cb.mail.greeter.every") | header_of_timer("1")
        cron = header.recurring("* * * * * *", "cb.mail.greeter.cron", time_zone="Europe/Berlin")
        await actors_bus.store_batch([Write(STATE, b""), Write("cb.timer.greeter.every.t", b"x", every)])
        await actors_bus.store(Write("cb.timer.greeter.cron.t", b"y", cron))

        async def have_fired() -> bool:
            found = await counts(actors_bus)
            return found.get(mbox("every"), 0) >= 2 and found.get(mbox("cron"), 0) >= 2

        await eventually(have_fired, within_s=6)
        fired = await last(actors_bus, mbox("every"))
        headers = dict(header.without_batch(fired.headers) or {})
        assert datetime.fromisoformat(headers.pop(header.SCHEDULE_NEXT)) > fired.time
        assert headers == header_of_timer("1") | {header.SCHEDULER: "cb.timer.greeter.every.t"}
        subjects = ["cb.timer.greeter.every.t", "cb.timer.greeter.cron.t"]
        await actors_bus.store_batch([Write(subject, b"", header.cancel_schedule()) for subject in subjects])
        before = await counts(actors_bus, "cb.mbox.>")
        await actors_bus.store(Write("cb.timer.greeter.later.t", b"", at(1.5, "cb.mail.greeter.later")))
        await eventually(lambda: _has(actors_bus, mbox("later")), within_s=5)
        assert await counts(actors_bus, "cb.mbox.>") == before | {mbox("later"): 1}

    @pytest.mark.parametrize("rule", ["@every 500ms", "* * * * *", "@at tomorrow", "@never"])
    async def test_a_batch_with_an_unusable_schedule_is_refused(self, actors_bus: Bus, rule: str) -> None:
        with pytest.raises(BusError):
            await actors_bus.store_batch([cas(STATE, b"", 0), Write(TIMER, b"", header.recurring(rule, MAIL))])
        with pytest.raises(BusError):
            await actors_bus.store_batch([cas(STATE, b"", 0), Write(TIMER, b"", at(1, "elsewhere"))])
        assert await last_seq(actors_bus) == 0

    async def test_old_versions_of_one_subject_are_purged_below_a_sequence(self, actors_bus: Bus) -> None:
        for number in range(4):
            await actors_bus.store(Write(STATE, b"%d" % number))
            await actors_bus.store(Write("cb.state.greeter.bob", b"%d" % number))
        current = await last(actors_bus, STATE)
        assert await actors_bus.purge(topology.ACTORS, subject=STATE, below_seq=current.seq) == 3
        assert await actors_bus.purge(topology.ACTORS, subject=STATE, below_seq=current.seq) == 0
        assert await counts(actors_bus) == {STATE: 1, "cb.state.greeter.bob": 4}
        assert await last(actors_bus, STATE) == current
        # What was purged is no longer the last, but what stands still guards the subject.
        await actors_bus.store(cas(STATE, b"new", current.seq))

    async def test_copies_tell_their_origin_and_outlive_it(self, actors_bus: Bus) -> None:
        filters = ("cb.mbox.>", "cb.state.>", "cb.event.>")
        audit = StreamConfig(
            name="COPY",
            sources=(Source(topology.ACTORS, filters),),
            duplicate_window_s=0.0,
            allow_direct=True,
            deny_delete=True,
            deny_purge=True,
            persist_async=True,
        )
        await actors_bus.create_stream(audit)
        await actors_bus.store_batch([Write(MAIL, b"1"), cas(STATE, b"1", 0)])
        await actors_bus.store(Write("cb.timer.greeter.none", b""))
        await actors_bus.store_batch([cas(STATE, b"2", 2), Write("cb.event.greeter.ann", b"", header.build(ttl_s=1))])

        async def are_copied(count: int) -> bool:
            return len(await copies(actors_bus)) == count

        await eventually(lambda: are_copied(4), within_s=10)
        # A copy is made behind the write: what is replaced or purged before that is not copied.
        await actors_bus.store(Write(STATE, b"3", header.build(expected_seq=4, rollup=True)))
        await eventually(lambda: are_copied(5), within_s=10)
        found = await copies(actors_bus)
        origins = [(stored.headers or {})[header.STREAM_SOURCE].split(" ")[:2] for stored in found]
        assert origins == [[topology.ACTORS, str(seq)] for seq in (1, 2, 4, 5, 6)]
        assert [stored.subject for stored in found] == [mbox("ann"), STATE, STATE, "cb.event.greeter.ann", STATE]
        kept = [set(stored.headers or {}) - {header.STREAM_SOURCE} for stored in found]
        assert kept == [set(), set(), set(), {header.TTL}, {header.ROLLUP}]
        await actors_bus.purge(topology.ACTORS)

        async def is_gone() -> bool:
            return await counts(actors_bus) == {}

        await eventually(is_gone)
        assert await copies(actors_bus) == found
        with pytest.raises(BusError):
            await actors_bus.purge("COPY")
        replaced = replace(audit, sources=(Source(topology.ACTORS, filters[:1]),))
        assert (await actors_bus.update_stream(replaced)).config.sources == replaced.sources
