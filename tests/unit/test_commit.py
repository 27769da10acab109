"""Group commit chooses by measurement and tells everybody the truth."""

from __future__ import annotations

import asyncio
from functools import partial

from callboard.runtime.bus.base import StreamConfig, Write
from callboard.runtime.bus.memory import MemoryBroker
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.commit import (
    TRIAL_EVERY_S,
    TRIAL_FIRST_EVERY_S,
    TRIALS_KEPT,
    Chooser,
    Committer,
    Refused,
    Result,
    Stands,
)
from tests.support.eventually import eventually


def learned(*, single_s: float, batch_s: float, count: int = 32) -> Chooser:
    chooser = Chooser()
    chooser.learn(count=count, singles_s=count * single_s, batch_s=batch_s)
    return chooser


def test_a_broker_that_syncs_every_write_gets_batches_from_the_size_where_they_pay() -> None:
    chooser = learned(single_s=160e-6, batch_s=1.5e-3)
    assert chooser.choose(64) == "batch"
    assert chooser.choose(5) == "single"


def test_a_broker_that_does_not_gets_single_writes() -> None:
    chooser = learned(single_s=15e-6, batch_s=0.6e-3)
    assert chooser.choose(32) == "single"
    assert chooser.choose(1000) == "single"


def test_it_tries_both_before_it_knows_and_now_and_then() -> None:
    chooser = Chooser()
    assert chooser.choose(100) == "single"
    assert chooser.wants_trial(6, 100.0)
    assert not chooser.wants_trial(5, 100.0)
    now_s = 100.0
    for _ in range(TRIALS_KEPT):
        assert chooser.wants_trial(100, now_s)
        chooser.began_trial(now_s)
        chooser.learn(count=32, singles_s=1.0, batch_s=1.0)
        assert not chooser.wants_trial(100, now_s + TRIAL_FIRST_EVERY_S / 2)
        now_s += TRIAL_FIRST_EVERY_S
    assert not chooser.wants_trial(100, now_s)
    assert chooser.wants_trial(100, now_s + TRIAL_EVERY_S)


def test_it_notices_when_the_broker_changes() -> None:
    chooser = learned(single_s=15e-6, batch_s=0.6e-3)
    for _ in range(TRIALS_KEPT):
        chooser.learn(count=32, singles_s=32 * 200e-6, batch_s=1e-3)
    assert chooser.choose(64) == "batch"


def test_a_trial_that_other_work_made_longer_changes_nothing() -> None:
    chooser = learned(single_s=270e-6, batch_s=4e-3)
    chooser.learn(count=32, singles_s=32 * 500e-6, batch_s=20e-3)
    assert chooser.is_batch_better
    assert chooser.batch_s == 4e-3
    chooser = learned(single_s=270e-6, batch_s=20e-3)
    assert not chooser.is_batch_better
    chooser.learn(count=32, singles_s=32 * 500e-6, batch_s=4e-3)
    assert chooser.is_batch_better


def test_what_a_trial_says_does_not_hang_on_its_size() -> None:
    for count in (8, 24, 64):
        assert learned(single_s=1e-3, batch_s=25e-3, count=count).is_batch_better
        assert not learned(single_s=15e-6, batch_s=0.6e-3, count=count).is_batch_better


async def test_a_record_that_is_too_large_is_refused_alone() -> None:
    bus = MemoryBroker(SYSTEM_CLOCK).connect(name="ledger")
    await bus.create_stream(StreamConfig(name="LEDGER", subjects=("r.*",), allow_direct=True, allow_atomic=True))
    committer = Committer(bus, stream="LEDGER", clock=SYSTEM_CLOCK)
    results: dict[int, Result] = {}
    for number, size in enumerate((10, 3 << 20, 10)):
        committer.add(Write(f"r.{number}", b"x" * size), partial(results.__setitem__, number))
    running = asyncio.create_task(committer.run())
    await eventually(lambda: len(results) == 3)
    running.cancel()
    assert isinstance(results[1], Refused)
    assert results[1].error.code == "payload_too_large"
    assert results[0] == results[2] == Stands(is_ours=True)
    await bus.close()
