"""Group commit chooses by measurement and tells everybody the truth."""

from __future__ import annotations

from callboard.runtime.commit import TRIAL_EVERY_S, Chooser


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
    chooser.began_trial(100.0)
    assert not chooser.wants_trial(100, 101.0)
    assert chooser.wants_trial(100, 100.0 + TRIAL_EVERY_S)


def test_it_notices_when_the_broker_changes() -> None:
    chooser = learned(single_s=15e-6, batch_s=0.6e-3)
    chooser.learn(count=32, singles_s=32 * 200e-6, batch_s=1e-3)
    assert chooser.choose(64) == "batch"


def test_what_a_trial_says_does_not_hang_on_its_size() -> None:
    for count in (8, 24, 64):
        assert learned(single_s=1e-3, batch_s=25e-3, count=count).is_batch_better
        assert not learned(single_s=15e-6, batch_s=0.6e-3, count=count).is_batch_better
