"""Hosts that compete for the same actors over a broker that misbehaves: each mail has its effect once and in order."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.runtime.bus.base import Stored
from callboard.runtime.bus.memory import MemoryBroker
from tests.support.turns import (
    FAULTS,
    TURNS,
    Fault,
    FaultyBus,
    HastyClock,
    Turn,
    committing,
    everything,
    host,
    problems,
)

pytestmark = pytest.mark.property

ACTORS = ("ann", "bob", "cid")
MAILS = 4

faults = st.lists(st.sampled_from(FAULTS), max_size=12)


async def compete(plans: list[list[Fault]], *, outputs: int, max_group: int, has_guard: bool = True) -> list[str]:
    """Let one host for each plan of faults handle all mails of all actors; return what went wrong."""
    clock = HastyClock()
    broker = MemoryBroker(clock)
    watch = broker.connect()
    await watch.create_stream(TURNS)
    async with AsyncExitStack() as stack:
        buses = [FaultyBus(broker.connect(), plan, has_guard=has_guard) for plan in plans]
        committers = [
            await stack.enter_async_context(committing(bus.as_bus, clock=clock, max_group=max_group)) for bus in buses
        ]
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            for number, (bus, committer) in enumerate(zip(buses, committers, strict=True)):
                for actor in ACTORS:
                    tasks.create_task(
                        host(f"host-{number}", committer, bus.as_bus, actor, mails=MAILS, outputs=outputs)
                    )
        for bus in buses:
            await bus.settled()
        assert [committer.backlog for committer in committers] == [0] * len(plans)
    found = problems(await everything(watch), ACTORS, mails=MAILS, outputs=outputs)
    await watch.close()
    return found


@settings(max_examples=150)
@given(
    plans=st.lists(faults, min_size=1, max_size=3), outputs=st.integers(0, 2), max_group=st.sampled_from([1, 4, 1000])
)
def test_each_mail_has_its_effect_once_and_in_order(plans: list[list[Fault]], outputs: int, max_group: int) -> None:
    assert asyncio.run(compete(plans, outputs=outputs, max_group=max_group)) == []


@pytest.mark.parametrize("plans", [[["late"]], [[], []]])
def test_without_the_guard_an_effect_is_doubled(plans: list[list[Fault]]) -> None:
    """Negative control: a write that comes late, or a second host, is seen when nothing keeps the stale out."""
    found = asyncio.run(compete(plans, outputs=1, max_group=1000, has_guard=False))
    assert any("doubled" in problem for problem in found), found
    assert asyncio.run(compete(plans, outputs=1, max_group=1000)) == []


def test_the_checker_sees_what_is_lost_and_what_is_out_of_order() -> None:
    """Negative control."""
    time = HastyClock().now()
    said = [Stored("t.out.ann", b"%d.0" % mail, 2 * mail, time) for mail in (1, 2)]
    states = [Stored("t.state.ann", msgspec.json.encode(Turn("a", mail, mail)), 2 * mail - 1, time) for mail in (1, 2)]
    assert problems([*states, *said], ["ann"], mails=2) == []
    assert problems([*states, *said[:1]], ["ann"], mails=2) == ["ann: lost [b'2.0']"]
    assert problems([*states, *said[::-1]], ["ann"], mails=2) == ["ann: out of order [b'2.0', b'1.0']"]
    assert problems([*states[:1], *said], ["ann"], mails=2) == ["ann: states went [1]"]
    assert problems([*states, *said, said[0]], ["ann"], mails=2) == ["ann: doubled [b'1.0']"]
