"""What docs/actors.md shows works as it stands there."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, new_class
from typing import Any

import pytest

from callboard.runtime.actor import inspection
from callboard.runtime.actor.address import Address
from callboard.runtime.loader import load_module
from tests.support.eventually import eventually
from tests.support.world import World

Guide = Any  # a module that exists only here
GUIDE = Path(__file__).parents[2] / "docs" / "actors.md"


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guide]:
    """The Python of the page, as one module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 4
    path = tmp_path / "actors_guide.py"
    path.write_text("\n\n".join(blocks), "utf-8")
    module: ModuleType = load_module(str(path))
    yield module
    del sys.modules["actors_guide"]


async def test_an_actor_answers_and_counts(callboard_world: World, guide: Guide) -> None:
    await callboard_world.start(guide.Greeter)
    ann = callboard_world.client.actor("greeter/ann")
    await ann.tell(guide.Ask("eve"), id="eve-1")
    assert await ann.ask(guide.Ask("bob"), returns=guide.Reply) == guide.Reply("hi bob", 2)


async def test_a_generator_answers_in_parts(callboard_world: World, guide: Guide) -> None:
    await callboard_world.start(guide.Writer)
    assert await guide.read(callboard_world.client) == ["to ", "be "]


async def test_a_step_a_tell_and_a_state_go_together(callboard_world: World, guide: Guide) -> None:
    await callboard_world.start(guide.Till, guide.Greeter)
    paid = await callboard_world.client.actor("till/1").ask(guide.Pay(7), returns=guide.Paid)
    assert paid.receipt.startswith("receipt for 7 (")

    async def was_told() -> bool:
        return [a.turns for a in await inspection.actors(callboard_world.bus, kind="greeter")] == [1]

    await eventually(was_told)


async def test_a_timer_is_set_by_the_turn(callboard_world: World, guide: Guide) -> None:
    await callboard_world.start(guide.Clock)
    assert await callboard_world.client.actor("clock/1").ask(guide.Tick()) == 1
    view = await inspection.show(callboard_world.bus, Address("clock", "1"))
    assert set(view.timers) == {"again", "every:morning"}


async def test_a_turn_waits_for_an_approval(callboard_world: World, guide: Guide) -> None:
    await callboard_world.start(guide.Buyer)
    buyer = callboard_world.client.actor("buyer/1")
    asking = asyncio.create_task(buyer.ask(guide.Order("tea"), timeout_s=20))

    async def is_parked() -> bool:
        return [a.parked for a in await inspection.actors(callboard_world.bus)] == [1]

    await eventually(is_parked)
    await buyer.tell(guide.Approval("coffee", is_granted=False))
    await buyer.tell(guide.Approval("tea", is_granted=True))
    assert await asking == "tea ordered"


async def test_a_supervisor_hears_of_a_failure(callboard_world: World, guide: Guide) -> None:
    brittle = new_class("Brittle", (guide.Fragile,), {"name": "fragile", "restart_budget": 0})
    await callboard_world.start(brittle, guide.Boss)
    await callboard_world.client.actor("fragile/1").tell(guide.Pay(1))

    async def was_told() -> bool:
        return [a.turns for a in await inspection.actors(callboard_world.bus, kind="boss")] == [1]

    await eventually(was_told)
