"""The gate before steps, and a drain's clock."""

from __future__ import annotations

import asyncio

import pytest

from callboard.runtime.actor.gate import StepGate
from callboard.runtime.actor.shutdown import BUILT_IN, END_WAIT_S, Drain, named
from callboard.runtime.config import WorkerSettings
from callboard.runtime.errors import ConfigError
from tests.support.stage import HastyClock


def test_the_setting_offers_every_strategy_and_no_other() -> None:
    offered = WorkerSettings.model_fields["shutdown"].annotation
    assert set(offered.__args__) == set(BUILT_IN)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="take one of cooperative, immediate, finish-step, checkpoint"):
        named("politely")


@pytest.mark.parametrize(
    ("name", "at_first", "grace_s"),
    [("cooperative", "go_on", 30.0), ("immediate", "cancel", 0.0), ("finish-step", "halt", 30.0)],
)
def test_a_drain_asks_until_its_time_is_over(name: str, at_first: str, grace_s: float) -> None:
    clock = HastyClock()
    drain = Drain(named(name), clock=clock, configured_s=30.0)
    assert drain.decide("turn", "a", "a/k@1") == at_first
    clock.time_s = grace_s
    assert drain.is_over
    assert drain.decide("task", "c", "c/1") == "cancel"
    assert not drain.is_ended
    clock.time_s += END_WAIT_S
    assert drain.is_ended


def test_nobody_waits_after_a_second_signal() -> None:
    is_now = False
    clock = HastyClock()
    drain = Drain(named("cooperative"), clock=clock, configured_s=600.0, is_now=lambda: is_now)
    clock.time_s = 100.0
    assert not drain.is_over
    is_now = True
    assert drain.is_over
    clock.time_s = 100.0 + END_WAIT_S
    assert drain.is_ended


async def test_a_shut_gate_stops_who_wants_in_once_nobody_is_inside() -> None:
    gate = StepGate()
    rests: list[int] = []
    await gate.enter()
    gate.begun()
    gate.shut(lambda: rests.append(1))
    waiting = [asyncio.create_task(gate.enter()) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not rests
    gate.ended()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    assert rests == [1]
    assert (await asyncio.gather(*waiting, return_exceptions=True))[1] is not None


async def test_a_shut_gate_bothers_nobody_who_wants_no_step() -> None:
    gate = StepGate()
    rests: list[int] = []
    gate.begun()
    gate.shut(lambda: rests.append(1))
    gate.ended()
    await asyncio.sleep(0)
    assert not rests
