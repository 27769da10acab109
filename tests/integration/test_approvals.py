"""A turn asks a person, waits holding nothing, and does exactly what was granted, once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from callboard.agents.approval import COMPANIONS, approve
from callboard.agents.errors import ApprovalDeniedError
from callboard.agents.petition import DenyIt, GrantIt, Show, SuggestIt
from callboard.runtime import subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import events_of, parked
from tests.support.eventually import eventually
from tests.support.world import World


class Refund(Struct):
    order: str
    amount: int


class Pay(Struct):
    order: str
    timeout: float | None = None


amounts: dict[str, int] = {}
quotes: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    amounts.clear()
    quotes.clear()


async def quote(order: str) -> int:
    quotes.append(order)
    return 10


class Till(Actor, retry=RetryPolicy(attempts=3, gaps_s=(0.02,))):
    companions = COMPANIONS

    class State(Struct):
        paid: list[str] = []

    @on
    async def pay(self, m: Pay) -> str:
        price = await self.step("quote", quote, m.order)
        refund = Refund(m.order, amounts.get(m.order, price))
        try:
            grant = await approve(self, refund, to="ops", timeout=m.timeout, context={"why": "late"})
        except ApprovalDeniedError as error:
            return f"no: {error.reason}"
        grant.check(refund)
        self.state.paid.append(f"{m.order} {refund.amount}")
        return f"{grant.by} {refund.amount}"


async def waiting_for(world: World, count: int = 1) -> list[str]:
    """Return the ids of all approvals once there are so many."""

    async def ids() -> list[str]:
        found = await world.bus.subject_counts(subjects.ACTORS, "cb.state.approval.*")
        return sorted(subjects.actor_of(subject)[1] for subject in found)

    async def there() -> bool:
        return len(await ids()) >= count

    await eventually(there, within_s=20, what=f"{count} approvals")
    return await ids()


def pay(world: World, order: str, timeout: float | None = None) -> asyncio.Task[Any]:
    return asyncio.create_task(world.client.actor("till/t").ask(Pay(order, timeout), timeout_s=60))


async def decide(world: World, approval: str, message: object, name: str) -> Any:  # noqa: ANN401 - an answer on the wire
    return await world.client.actor(f"approval/{approval}").ask(message, type=name, timeout_s=20)


async def test_a_grant_lets_the_turn_go_on_exactly_there(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Till)
    waiting = pay(world, "a")
    (approval,) = await waiting_for(world)
    await parked(world, "till/t")
    shown = await world.client.actor(f"approval/{approval}").ask(Show())
    assert shown["payload"] == {"order": "a", "amount": 10}
    assert (shown["requester"], shown["action"], shown["context"]) == ("till/t", "Refund", {"why": "late"})
    answer = await decide(world, approval, GrantIt(by="ops", hash=shown["hash"]), "Grant")
    assert answer["ok"], answer
    assert await waiting == "ops 10"
    assert quotes == ["a"]
    names = [name for name, _ in await events_of(world, f"approval/{approval}")]
    assert names == ["approval.requested", "approval.granted", "approval.used"]


async def test_a_denial_and_a_suggestion_end_it(callboard_world: World) -> None:
    world = callboard_world
    await world.start(Till)
    waiting = pay(world, "a")
    (first,) = await waiting_for(world)
    assert (await decide(world, first, DenyIt(by="ann", role="ops", reason="too much"), "Deny"))["ok"]
    assert await waiting == "no: too much"
    waiting = pay(world, "b")
    second = next(iter({*await waiting_for(world, 2)} - {first}))
    assert (await decide(world, second, SuggestIt(by="ops", suggestion="half of it"), "Suggest"))["ok"]
    assert await waiting == "no: half of it"
