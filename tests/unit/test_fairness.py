"""A flood of one tenant leaves the others their share, and idle shares are nobody's loss."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from callboard.runtime.capability import Capability, capability
from callboard.runtime.fairness import Claimant, Fairness, divide
from tests.support.eventually import eventually
from tests.support.world import QUICK, World, open_world

SLOTS = 4
FLOOD = 600
FEW = 10

_CLAIMANTS = st.lists(
    st.builds(
        Claimant,
        wanted=st.integers(1, 50),
        taken=st.integers(0, 8),
        weight=st.integers(1, 5),
        cap=st.none() | st.integers(1, 9),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize(
    ("wanted", "weights", "shares"),
    [
        ([100, 100], [1, 1], [4, 4]),
        ([100, 1], [1, 1], [7, 1]),
        ([100, 3], [1, 1], [5, 3]),
        ([100, 100], [3, 1], [6, 2]),
        ([100, 100, 100], [1, 1, 2], [2, 2, 4]),
        ([2, 2], [1, 1], [2, 2]),
    ],
)
def test_slots_go_by_weight_among_those_who_have_work(wanted: list[int], weights: list[int], shares: list[int]) -> None:
    claimants = [Claimant(wanted=want, taken=0, weight=weight) for want, weight in zip(wanted, weights, strict=True)]
    assert divide(8, claimants) == shares


def test_what_another_has_in_use_is_not_given_out_yet() -> None:
    assert divide(8, [Claimant(wanted=100, taken=7), Claimant(wanted=10, taken=1)]) == [4, 1]
    assert divide(8, [Claimant(wanted=100, taken=5), Claimant(wanted=10, taken=1)]) == [4, 3]


def test_a_cap_holds_even_when_all_else_is_idle() -> None:
    assert divide(8, [Claimant(wanted=100, taken=0, cap=2), Claimant(wanted=1, taken=0)]) == [2, 1]


@given(st.integers(1, 40), _CLAIMANTS)
def test_every_division_keeps_its_limits(slots: int, claimants: list[Claimant]) -> None:
    shares = divide(slots, claimants)
    assert all(share >= 1 for share in shares)
    assert all(each.cap is None or share <= each.cap for share, each in zip(shares, claimants, strict=True))
    idle = divide(slots, [replace(each, taken=0) for each in claimants])
    assert sum(idle) <= max(slots, len(claimants))
    # nothing is left over while somebody could use it
    limits = [min(each.wanted, each.cap or each.wanted) for each in claimants]
    assert sum(idle) >= min(slots, sum(max(1, limit) for limit in limits))


@asynccontextmanager
async def two_tenants(
    folder: Path, work: Capability[..., Any], *, is_fair: bool, weight: int = 1
) -> AsyncIterator[tuple[World, World]]:
    """Run one process that serves two brokers; without fairness each tenant's worker has its slots for itself."""
    fairness = Fairness()
    async with AsyncExitStack() as stack:
        worlds = [await stack.enter_async_context(open_world("memory", folder / name)) for name in ("a", "b")]
        for name, world in zip("ab", worlds, strict=True):
            seat = fairness.seat(name, weight=weight if name == "b" else 1) if is_fair else None
            await world.start(work, options=replace(QUICK, concurrency=SLOTS, seat=seat))
        yield worlds[0], worlds[1]


async def test_a_few_tasks_pass_a_flood_of_another_tenant(tmp_path: Path) -> None:
    ended: list[str] = []
    running = most = 0

    @capability("work")
    async def work(tenant: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        ended.append(tenant)

    async with two_tenants(tmp_path, work, is_fair=True) as (a, b):
        await a.client.submit_many("work", ["a"] * FLOOD)
        await eventually(lambda: len(ended) >= 3 * SLOTS)
        begun = len(ended)
        await b.client.submit_many("work", ["b"] * FEW)
        await eventually(lambda: ended.count("b") == FEW)
        passed = ended[begun:].index("b"), ended[begun:].count("a")
        last = len(ended) - 1 - ended[::-1].index("b")
        between = ended[begun : last + 1].count("a")
        assert between <= 4 * FEW, passed
        assert ended.count("a") < FLOOD
        await eventually(lambda: ended.count("a") == FLOOD, within_s=30)
    # the slots are those of the process: never more than its number and the one that an idle tenant keeps
    assert most <= SLOTS + 1


async def test_in_one_queue_the_few_would_wait_for_the_flood(tmp_path: Path) -> None:
    """Negative control: the same load without tenants."""
    ended: list[str] = []

    @capability("work")
    async def work(tenant: str) -> None:
        await asyncio.sleep(0.002)
        ended.append(tenant)

    async with open_world("memory", tmp_path) as world:
        await world.start(work, options=replace(QUICK, concurrency=SLOTS))
        await world.client.submit_many("work", ["a"] * FLOOD)
        await world.client.submit_many("work", ["b"] * FEW)
        await eventually(lambda: ended.count("b") == FEW, within_s=30)
        assert ended[: ended.index("b")].count("a") > 4 * FEW


async def test_an_idle_tenant_costs_the_busy_one_no_more_than_a_slot(tmp_path: Path) -> None:
    gate = asyncio.Event()
    running: list[str] = []

    @capability("work")
    async def work(tenant: str) -> None:
        running.append(tenant)
        await gate.wait()

    async with two_tenants(tmp_path, work, is_fair=True) as (a, b):
        await a.client.submit_many("work", ["a"] * 20)
        await eventually(lambda: len(running) == SLOTS - 1)
        await b.client.submit_many("work", ["b"] * 5)
        await eventually(lambda: "b" in running)
        assert len(running) == SLOTS
        gate.set()
        await a.all_recorded("work", 20)
        await b.all_recorded("work", 5)
