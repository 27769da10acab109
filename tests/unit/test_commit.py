"""Group commit chooses by measurement and tells everybody the truth."""

from __future__ import annotations

from callboard.runtime.commit import Chooser


def learn(chooser: Chooser, *, single_s: float, batch_s: float) -> None:
    for _ in range(20):
        chooser.observe_single(count=10, seconds=10 * single_s)
        chooser.observe_batch(seconds=batch_s)


def test_a_broker_that_syncs_every_write_gets_batches_from_the_size_where_they_pay() -> None:
    chooser = Chooser()
    learn(chooser, single_s=160e-6, batch_s=3e-3)
    assert chooser.choose(64) == "batch"
    assert chooser.choose(5) == "single"


def test_a_broker_that_does_not_gets_single_writes() -> None:
    chooser = Chooser()
    learn(chooser, single_s=15e-6, batch_s=2.5e-3)
    assert chooser.choose(64) == "single"


def test_it_tries_both_before_it_knows() -> None:
    chooser = Chooser()
    assert chooser.choose(10) == "single"
    chooser.observe_single(count=10, seconds=0.001)
    assert chooser.choose(10) == "batch"


def test_it_notices_when_the_broker_changes() -> None:
    chooser = Chooser()
    learn(chooser, single_s=15e-6, batch_s=2.5e-3)
    choices = [chooser.choose(64) for _ in range(256)]
    assert choices.count("batch") == 2
