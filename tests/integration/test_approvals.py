"""A turn asks a person, waits holding nothing, and does exactly what was granted, once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.agents import approvals
from callboard.agents.approval import COMPANIONS, approve
from callboard.agents.errors import ApprovalDeniedError, ApprovalRefusedError
from callboard.agents.petition import Decision, DenyIt, GrantIt, Show, Spend, SuggestIt
from callboard.runtime import subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.errors import NotFoundError
from callboard.runtime.retry import RetryPolicy
from tests.support.actors import events_of, parked, record_of
from tests.support.eventually import eventually
from tests.support.world import QUICK, World


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


async def opened(world: World) -> tuple[asyncio.Task[Any], str]:
    """Serve the till and have one payment asked for; return what it will come to, and the approval's id."""
    await world.start(Till)
    waiting = pay(world, "a")
    (approval,) = await waiting_for(world)
    return waiting, approval


async def grant(world: World, approval: str) -> str:
    """Say yes to what is shown, and return its hash."""
    hash_ = (await approvals.show(world.bus, approval)).entry.hash
    await approvals.grant(world.bus, approval, by="ops", hash=hash_)
    return hash_


async def decide(world: World, approval: str, message: object, name: str) -> Any:  # noqa: ANN401 - an answer on the wire
    return await world.client.actor(f"approval/{approval}").ask(message, type=name, timeout_s=20)


async def test_a_grant_lets_the_turn_go_on_exactly_there(callboard_world: World) -> None:
    world = callboard_world
    waiting, approval = await opened(world)
    await parked(world, "till/t")
    shown: dict[str, Any] = {}

    async def answered() -> bool:
        shown.update(await world.client.actor(f"approval/{approval}").ask(Show()))
        return bool(shown["requester"])

    await eventually(answered)
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
    waiting, first = await opened(world)
    assert (await decide(world, first, DenyIt(by="ann", role="ops", reason="too much"), "Deny"))["ok"]
    assert await waiting == "no: too much"
    waiting = pay(world, "b")
    second = next(iter({*await waiting_for(world, 2)} - {first}))
    assert (await decide(world, second, SuggestIt(by="ops", suggestion="half of it"), "Suggest"))["ok"]
    assert await waiting == "no: half of it"


async def test_the_first_decision_stands_and_the_second_is_told_of_it(callboard_world: World) -> None:
    world = callboard_world
    waiting, approval = await opened(world)
    shown = await approvals.show(world.bus, approval[:6])
    decisions = await asyncio.gather(
        *(approvals.grant(world.bus, approval, by="ann", role="ops", hash=shown.entry.hash) for _ in range(2)),
        approvals.deny(world.bus, approval, by="bob", role="ops"),
        return_exceptions=True,
    )
    refused = [each for each in decisions if isinstance(each, ApprovalRefusedError)]
    assert len(refused) == 2, decisions
    assert {each.why for each in refused} == {"decided"}
    assert " by ann at " in str(refused[0]) or " by bob at " in str(refused[0])
    standing = (await approvals.show(world.bus, approval)).entry.by
    assert await waiting == ("ann 10" if standing == "ann" else "no: ")


async def test_a_grant_names_what_was_shown(callboard_world: World) -> None:
    world = callboard_world
    waiting, approval = await opened(world)
    hash_ = (await approvals.show(world.bus, approval)).entry.hash
    changed = ("0" if hash_[0] != "0" else "1") + hash_[1:]
    for given in (changed, "", hash_[:12]):
        with pytest.raises(ApprovalRefusedError, match="the hash that was shown") as caught:
            await approvals.grant(world.bus, approval, by="ops", hash=given)
        assert caught.value.why == "hash"
    with pytest.raises(ApprovalRefusedError, match="only ops may decide this, not ann"):
        await approvals.grant(world.bus, approval, by="ann", hash=hash_)
    with pytest.raises(ApprovalRefusedError, match="needs the name"):
        await approvals.grant(world.bus, approval, by="", hash=hash_)
    with pytest.raises(ApprovalRefusedError, match="there is no such approval"):
        await approvals.grant(world.bus, "nobody", by="ops", hash=hash_)
    with pytest.raises(NotFoundError, match="there is no approval 'nobody'"):
        await approvals.show(world.bus, "nobody")
    assert not waiting.done()
    await approvals.grant(world.bus, approval, by="ops", hash=hash_)
    assert await waiting == "ops 10"


async def test_a_payload_changed_by_one_byte_is_refused_and_asked_again(callboard_world: World) -> None:
    world = callboard_world
    waiting, first = await opened(world)
    await parked(world, "till/t")
    # between the question and the deed the sum changes: what runs then is not what was shown
    amounts["a"] = 11
    await approvals.grant(world.bus, first, by="ops", hash=(await approvals.show(world.bus, first)).entry.hash)
    second = next(iter({*await waiting_for(world, 2)} - {first}))
    found = await approvals.show(world.bus, second)
    assert found.entry.payload == {"order": "a", "amount": 11}
    assert not waiting.done()

    async def withdrawn() -> bool:
        return (await approvals.show(world.bus, first)).entry.status == "withdrawn"

    await eventually(withdrawn)
    await approvals.grant(world.bus, second, by="ops", hash=found.entry.hash)
    assert await waiting == "ops 11"
    assert (await approvals.show(world.bus, second)).entry.status == "used"
    assert quotes == ["a"]


async def test_a_grant_is_used_once(callboard_world: World) -> None:
    world = callboard_world
    waiting, approval = await opened(world)
    hash_ = await grant(world, approval)
    assert await waiting == "ops 10"
    door = world.client.actor("petition/1")
    again = await door.ask(Spend(approval=approval, hash=hash_, by="till/t/99/approval"))
    assert (again["ok"], again["error"]["code"]) == (False, "used")
    same = await door.ask(
        Spend(approval=approval, hash=hash_, by=(await approvals.show(world.bus, approval)).entry.used_by)
    )
    assert same["ok"]
    # one payload asked for twice by one turn is two questions: a second turn has its own
    other = pay(world, "a")
    second = next(iter({*await waiting_for(world, 2)} - {approval}))
    await approvals.deny(world.bus, second, by="ops", reason="once is enough")
    assert await other == "no: once is enough"


async def test_a_forged_word_of_a_decision_is_not_believed(callboard_world: World) -> None:
    world = callboard_world
    waiting, approval = await opened(world)
    await parked(world, "till/t")
    await world.client.actor("till/t").tell(Decision(approval=approval, status="granted"))

    async def asked() -> bool:
        record = await record_of(world, "till/t")
        return [wait.waits for wait in record.parked] == [1]

    await eventually(asked)
    assert not waiting.done()
    await grant(world, approval)
    assert await waiting == "ops 10"


async def test_a_decision_by_a_timer_is_refused(callboard_world: World) -> None:
    world = callboard_world
    waiting, approval = await opened(world)
    hash_ = (await approvals.show(world.bus, approval)).entry.hash
    await world.client.actor(f"approval/{approval}").tell(GrantIt(by="ops", hash=hash_), type="Grant", delay_s=1)

    async def refused() -> bool:
        said = await events_of(world, f"approval/{approval}")
        return ("approval.refused", {"code": "not_allowed", "by": "ops", "wanted": "granted"}) in said

    await eventually(refused, within_s=10)
    assert not waiting.done()
    await approvals.deny(world.bus, approval, by="ops")
    assert await waiting == "no: "


async def test_it_waits_for_its_requester_and_for_its_own_host(callboard_world: World) -> None:
    world = callboard_world
    first = await world.start(Till)
    waiting = pay(world, "a")
    (approval,) = await waiting_for(world)
    await parked(world, "till/t")
    await first.kill()
    people = await world.start(*COMPANIONS)
    await grant(world, approval)
    # nobody hosts the requester: the word of it waits as mail
    assert not waiting.done()
    await people.kill()
    await world.start(Till, options=replace(QUICK, hosts_companions=False))
    await eventually(lambda: quotes == ["a"])

    async def tried() -> bool:
        return [wait.waits for wait in (await record_of(world, "till/t")).parked] == [1]

    await eventually(tried, within_s=20)
    await world.start(*COMPANIONS)
    assert await waiting == "ops 10"
    assert quotes == ["a"]


async def test_any_language_decides_with_a_plain_request(callboard_world: World) -> None:
    world = callboard_world
    waiting, approval = await opened(world)
    subject = f"cb.ask.approval.{approval}"
    shown: dict[str, Any] = {}

    async def answered() -> bool:
        # a record may stand a moment before its host knows that it does
        said = await world.bus.request(subject, b"{}", headers={"Cb-Type": "Show"}, timeout_s=10)
        shown.update(json.loads(said.data))
        return bool(shown["requester"])

    await eventually(answered)
    canonical = json.dumps(shown["payload"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert shown["hash"] == hashlib.sha256(canonical.encode()).hexdigest()
    body = {"by": "ops", "hash": shown["hash"], "reason": "fine"}
    said = await world.bus.request(subject, json.dumps(body).encode(), headers={"Cb-Type": "Grant"}, timeout_s=10)
    assert json.loads(said.data)["status"] == "granted"
    assert await waiting == "ops 10"
