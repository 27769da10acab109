"""What `callboard top` shows: rates between beats, times over all workers, and who is silent."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from callboard.cli import top
from callboard.runtime.beat import Beat, CapabilityLoad, encode_beat
from callboard.runtime.bus.base import Delivery, Message, Write
from callboard.runtime.bus.memory import MemoryBroker
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared
from callboard.runtime.config import Settings, TopologySettings
from callboard.runtime.overview import FORGET_S, Observer, percentile
from callboard.runtime.stats import LATEST, SAMPLES, Latest
from callboard.runtime.testing import FakeClock


def beat(clock: FakeClock, worker: str = "a", *, ended: int = 0, times: list[float] | None = None) -> Beat:
    load = CapabilityLoad(
        name="nap",
        pool="default",
        slots=4,
        busy=2,
        unsettled=0,
        backlog=0,
        ended=ended,
        run_times_s=times or [],
    )
    now = clock.now()
    return Beat(
        v=1,
        worker=worker,
        host="h",
        pid=1,
        version="1",
        status="ready",
        started_at=now,
        at=now,
        fetched_at=now,
        labels={},
        capabilities=[load],
        restarts=2,
    )


async def observer(clock: FakeClock) -> tuple[Observer, MemoryBroker]:
    broker = MemoryBroker(clock=clock)
    bus = broker.connect()
    await apply(bus, await plan(bus, declared(TopologySettings(), capabilities=["nap"])))
    return Observer(bus, Settings(), clock), broker


def hear(found: Observer, said: Beat) -> None:
    found.hear(Message("cb.beat.a", encode_beat(said), None, ""))


async def test_rates_are_those_between_two_beats_and_not_between_two_looks() -> None:
    clock = FakeClock()
    found, _ = await observer(clock)
    hear(found, beat(clock, ended=10))
    assert (await found.look()).pools[0].out_per_s is None
    await clock.advance(2.0)
    hear(found, beat(clock, ended=40))
    await clock.advance(0.7)
    assert (await found.look()).pools[0].out_per_s == 15.0
    await clock.advance(0.1)
    # no beat since: the rate stands
    (pool,) = (await found.look()).pools
    assert (pool.out_per_s, pool.slots, pool.busy, pool.workers) == (15.0, 4, 2, 1)


async def test_new_tasks_are_counted_whether_they_wait_or_were_taken() -> None:
    clock = FakeClock()
    found, broker = await observer(clock)
    bus = broker.connect()
    _ = await found.look()
    for _ in range(6):
        _ = await bus.store(Write("cb.task.nap", b"1"))
    await clock.advance(2.0)
    (pool,) = (await found.look()).pools
    assert (pool.waiting, pool.claimed, pool.in_per_s, pool.oldest_s) == (6, 0, 3.0, 2.0)
    got: list[Delivery] = []
    pull = await bus.pull("CB_WORK", "nap-normal", got.append)
    pull.grant(4)
    await clock.settle()
    await clock.advance(2.0)
    (pool,) = (await found.look()).pools
    assert (pool.waiting, pool.claimed, pool.in_per_s, pool.oldest_s) == (2, 4, 0.0, 4.0)


async def test_a_silent_worker_is_suspect_then_offline_then_forgotten() -> None:
    clock = FakeClock()
    found, _ = await observer(clock)
    hear(found, beat(clock))
    seen = []
    for wait_s in (1.0, 2.0, 3.0):
        await clock.advance(wait_s)
        look = await found.look()
        seen.append((look.workers[0].status, look.pools[0].slots))
    assert seen == [("ready", 4), ("suspect", 4), ("offline", 0)]
    await clock.advance(FORGET_S)
    assert (await found.look()).workers == []
    # and may come back
    hear(found, beat(clock))
    assert (await found.look()).workers[0].status == "ready"


def test_times_of_workers_count_by_their_rates() -> None:
    assert percentile([([1.0], 9.0), ([5.0], 1.0)], 0.5) == 1.0
    assert percentile([([1.0], 9.0), ([5.0], 1.0)], 0.95) == 5.0
    assert percentile([([1.0, 2.0, 3.0], 0.0), ([9.0], 0.0)], 0.5) == 2.0
    assert percentile([([], 4.0)], 0.5) is None


def test_a_sample_of_many_times_keeps_their_shares() -> None:
    latest = Latest()
    for number in range(LATEST + 44):
        latest.observe(float(number))
    sample = latest.sample()
    assert len(sample) == SAMPLES
    assert percentile([(sample, 1.0)], 0.5) == pytest.approx(44 + 0.5 * LATEST, abs=LATEST / SAMPLES)
    assert percentile([(sample, 1.0)], 0.95) == pytest.approx(44 + 0.95 * LATEST, abs=LATEST / SAMPLES)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0s"),
        (0.00042, "0.4ms"),
        (0.042, "42ms"),
        (1.25, "1.2s"),
        (42.4, "42s"),
        (192.0, "3.2m"),
        (25_200.0, "7.0h"),
        (864_000.0, "10d"),
    ],
)
def test_lengths_of_time_are_short(seconds: float | None, text: str) -> None:
    assert top.span(seconds) == text


async def test_the_page_shows_what_asks_for_attention() -> None:
    clock = FakeClock()
    found, broker = await observer(clock)
    _ = await broker.connect().store(Write("cb.task.ghost", b"1"))
    hear(found, replace(beat(clock), status="draining"))
    await clock.advance(1.0)
    look = await found.look()
    pools, _, workers, streams = top.sections(look)
    assert pools.rows[0][0] == "ghost"
    assert pools.rows[0][-1] == "nobody offers it"
    assert pools.styles[0] == "red"
    assert workers.rows[0][:5] == ("a", "draining", "2/4", "0", "2")
    assert workers.styles == ["yellow"]
    assert streams.rows[0][0] == "CB_WORK"
    assert "1 workers  2/4 slots busy  1 tasks wait" in top.title(look)
    assert look.at - clock.now() < timedelta(seconds=1)
