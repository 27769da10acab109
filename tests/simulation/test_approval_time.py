"""Approvals and time: hours pass, the server's timers fire, workers die meanwhile."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from msgspec import Struct

from callboard.agents import approvals
from callboard.agents.approval import COMPANIONS, Escalation, approve
from callboard.agents.decision import Policy, Risk
from callboard.agents.errors import ApprovalDeniedError, ApprovalRefusedError
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.testing import World, simulate

HOUR_S = 3600.0


class Do(Struct):
    what: str
    policy: str = "deny"
    timeout: float | None = None
    risk: Risk = "medium"
    valid_s: float = 86400.0


class Doer(Actor, name="doer"):
    companions = COMPANIONS

    class State(Struct):
        said: list[str] = []

    @on
    async def do(self, m: Do) -> str:
        policy: Policy = (
            Escalation(chain=("lead", "boss"), each="1h") if m.policy == "chain" else m.policy  # type: ignore[assignment]
        )
        try:
            grant = await approve(
                self,
                m.what,
                to="ops",
                timeout=m.timeout,
                on_timeout=policy,
                risk=m.risk,
                valid=m.valid_s,
            )
        except ApprovalDeniedError as error:
            self.state.said.append(f"no: {error.reason}")
            return error.reason
        self.state.said.append(f"yes by {grant.by}")
        return grant.by


async def tell(world: World, job: Do) -> None:
    await world.client.actor("doer/d").tell(job)


async def said(world: World) -> list[str]:
    stored = await world.bus.get_last("CB_ACTORS", "cb.state.doer.d", from_leader=True)
    state = msgspec.json.decode(stored.data).get("state") if stored is not None else None
    return list(state["said"]) if state else []


async def hours_pass(world: World, seconds: float) -> None:
    """Let time pass while no worker lives: the server alone holds the timers."""
    await world.clock.sleep(5)
    world.crash("a")
    await world.clock.sleep(seconds - 5)
    await world.start(Doer, name="a")
    await world.clock.sleep(20)


async def only(world: World) -> approvals.Approval:
    (found,) = await approvals.ls(world.bus, status=())
    return found


@pytest.mark.parametrize(
    ("job", "after_h"),
    [
        (Do("x"), 4),
        (Do("x", timeout=2 * HOUR_S), 2),
        (Do("x", policy="tiered", risk="low"), 1),
    ],
)
def test_nobody_decides_and_it_is_denied_in_time(job: Do, after_h: float) -> None:
    async def main(world: World) -> None:
        await world.start(Doer, name="a")
        await tell(world, job)
        await hours_pass(world, after_h * HOUR_S - 120)
        assert await said(world) == []
        assert (await only(world)).entry.status == "pending"
        await world.clock.sleep(120)
        assert await said(world) == ["no: nobody decided in time; asked ops"]
        entry = (await only(world)).entry
        assert (entry.status, entry.by) == ("denied", "time-out")

    simulate(main, seed=3)


@pytest.mark.parametrize("job", [Do("x", policy="wait"), Do("x", policy="tiered", risk="critical")])
def test_what_waits_for_ever_waits(job: Do) -> None:
    async def main(world: World) -> None:
        await world.start(Doer, name="a")
        await tell(world, job)
        await hours_pass(world, 5 * HOUR_S)
        found = await only(world)
        await approvals.grant(world.bus, found.id, by="ops", hash=found.entry.hash)
        await world.clock.sleep(5)
        assert await said(world) == ["yes by ops"]

    simulate(main, seed=4)


def test_a_chain_of_people_is_asked_one_after_the_other_while_nobody_hosts_it() -> None:
    async def main(world: World) -> None:
        await world.start(Doer, name="a")
        await tell(world, Do("x", policy="chain"))
        await hours_pass(world, HOUR_S / 2)
        assert (await only(world)).entry.to == "ops"
        await hours_pass(world, HOUR_S)
        found = await only(world)
        assert found.entry.to == "lead"
        with pytest.raises(ApprovalRefusedError, match="only lead"):
            await approvals.grant(world.bus, found.id, by="ops", hash=found.entry.hash)
        await hours_pass(world, HOUR_S)
        assert (await only(world)).entry.to == "boss"
        await approvals.grant(world.bus, found.id, by="boss", hash=found.entry.hash)
        await world.clock.sleep(10)
        assert await said(world) == ["yes by boss"]

    simulate(main, seed=5)


def test_the_end_of_a_chain_denies() -> None:
    async def main(world: World) -> None:
        await world.start(Doer, name="a")
        await tell(world, Do("x", policy="chain"))
        # each stage begins when its timer is heard
        for _ in range(3):
            await hours_pass(world, HOUR_S + 60)
        assert await said(world) == ["no: nobody decided in time; asked ops, then lead, then boss"]

    simulate(main, seed=7)


def test_a_grant_that_lapsed_before_its_turn_went_on_is_asked_for_again() -> None:
    async def main(world: World) -> None:
        await world.start(Doer, name="a")
        await tell(world, Do("x", valid_s=HOUR_S))
        await world.clock.sleep(60)
        world.crash("a")
        await world.start(*COMPANIONS, name="people")
        await world.clock.sleep(60)
        first = await only(world)
        await approvals.grant(world.bus, first.id, by="ops", hash=first.entry.hash)
        world.crash("people")
        await world.clock.sleep(2 * HOUR_S)
        await world.start(Doer, name="b")
        await world.clock.sleep(60)
        assert await said(world) == []
        by_id = {found.id: found for found in await approvals.ls(world.bus, status=())}
        assert by_id.pop(first.id).entry.status == "expired"
        (again,) = by_id.values()
        assert again.entry.hash == first.entry.hash
        await approvals.grant(world.bus, again.id, by="ops", hash=again.entry.hash)
        await world.clock.sleep(60)
        assert await said(world) == ["yes by ops"]

    simulate(main, seed=8)


@pytest.mark.parametrize("seed", range(6))
def test_decisions_at_the_very_moment_of_the_time_out_have_one_outcome(seed: int) -> None:
    async def main(world: World) -> None:
        await world.start(Doer, name="a")
        await world.start(Doer, name="b")
        await tell(world, Do("x", timeout=60))
        await world.clock.sleep(30)
        found = await only(world)
        await world.clock.sleep((found.entry.until - world.clock.now()).total_seconds() - 0.01)  # type: ignore[operator]
        calls = (
            approvals.grant(world.bus, found.id, by="ops", hash=found.entry.hash),
            approvals.deny(world.bus, found.id, by="ops", reason="by hand"),
        )
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await world.clock.sleep(30)
        entry = (await only(world)).entry
        taken = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(taken) == (0 if entry.by == "time-out" else 1)
        assert all(isinstance(o, ApprovalRefusedError) for o in outcomes if isinstance(o, BaseException))
        wanted = "yes by ops" if entry.status == "used" else f"no: {entry.reason}"
        assert await said(world) == [wanted]

    simulate(main, seed=seed)
