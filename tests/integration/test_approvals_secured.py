"""Who may ask cannot decide: the server's permissions stand between an agent and its own approval."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import Struct

from callboard.agents import approvals
from callboard.agents.approval import COMPANIONS, approve
from callboard.agents.petition import GrantIt
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.actor.ref import ActorRef
from callboard.runtime.bus import header
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.client import Client
from callboard.runtime.errors import BusError, PermissionDeniedError
from callboard.runtime.host import connector, worker_options
from callboard.runtime.worker import Worker
from tests.support.eventually import eventually
from tests.support.secured import Secured, planned, secured


class Refund(Struct):
    order: str


class Till(Actor, name="till"):
    companions = COMPANIONS

    @on
    async def pay(self, m: Refund) -> str:
        return (await approve(self, m, to="ops")).by


async def serve(
    servers: Secured, user: str, *actors: type[Actor], companions: bool
) -> tuple[Worker, asyncio.Task[None]]:
    settings = servers.settings(user, actors__companions=companions)
    options = worker_options(settings)
    worker = Worker([], connector(settings), actors=actors, options=options, worker_id=f"{user}.1")
    ready = asyncio.Event()
    task = asyncio.create_task(worker.run(ready.set))
    await asyncio.wait((task, asyncio.create_task(ready.wait())), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    return worker, task


async def forged(bus: Bus, approval: str, hash_: str) -> list[str]:
    """Try every way to decide as a user; return those that the server let pass."""
    body = json.dumps({"by": "ops", "hash": hash_}).encode()
    headers = {"Cb-Type": "Grant"}
    due = datetime.now(UTC) + timedelta(seconds=1)
    timer = header.at(due, f"cb.mail.approval.{approval}") | headers | {"Cb-Reply-To": bus.inbox()}
    passed = []
    for name, call in (
        ("ask", bus.request(f"cb.ask.approval.{approval}", body, headers=headers, timeout_s=2)),
        ("mail", bus.store(Write(f"cb.mail.approval.{approval}", body, headers))),
        ("state", bus.store(Write(f"cb.state.approval.{approval}", body))),
        ("order", bus.request(f"cb.ctl.actor.approval.{approval}", b'{"op":"kill"}', timeout_s=2)),
        ("timer", bus.store(Write("cb.timer.till.x.forged", body, timer))),
    ):
        try:
            await call
        except PermissionDeniedError:
            continue
        except BusError as error:
            passed.append(f"{name}: {error}")
        else:
            passed.append(name)
    return passed


async def test_an_agent_cannot_decide_about_itself(tmp_path: Path) -> None:
    plan = planned(hosts=["till=till", "people=approval,petition"], has_tls=False)
    async with secured(tmp_path, plan) as servers:
        agent, agent_task = await serve(servers, "host-till", Till, companions=False)
        people, people_task = await serve(servers, "host-people", *COMPANIONS, companions=True)
        operator, approver = await servers.bus("operator"), await servers.bus("approver")
        waiting = asyncio.create_task(Client(operator).actor("till/t").ask(Refund("a"), timeout_s=40))

        async def asked() -> bool:
            return len(await approvals.ls(operator)) == 1

        await eventually(asked, within_s=20)
        (found,) = await approvals.ls(approver)
        own = await servers.bus("host-till")
        # its timers it may set: what the server mails for it is no decision
        assert await forged(own, found.id, found.entry.hash) == ["timer"]
        assert await forged(await servers.bus("submitter"), found.id, found.entry.hash) == []

        async def refused() -> bool:
            events = [each async for each in operator.read("CB_ACTORS", subjects=(f"cb.event.approval.{found.id}",))]
            return any(b'"not_allowed"' in each.data for each in events)

        await eventually(refused, within_s=20)
        assert (await approvals.show(approver, found.id)).entry.status == "pending"
        with pytest.raises(PermissionDeniedError, match=r"cb\.ask\.approval"):
            await ActorRef(own, f"approval/{found.id}").ask(
                GrantIt(by="ops", hash=found.entry.hash), type="Grant", timeout_s=5
            )
        with pytest.raises(PermissionDeniedError):
            await approver.store(Write("cb.mail.till.t", b"{}"))
        await approvals.grant(approver, found.id, by="ops", hash=found.entry.hash)
        assert await waiting == "ops"
        for worker, task in ((agent, agent_task), (people, people_task)):
            worker.stop(now=True)
            await task


async def test_the_trial_notices_an_agent_that_may(tmp_path: Path) -> None:
    # the same user hosts approvals as well: it is trusted, and the trial sees that
    async with secured(tmp_path, planned(hosts=["till=till,approval,petition"], has_tls=False)) as servers:
        own = await servers.bus("host-till")
        assert {each.partition(":")[0] for each in await forged(own, "x", "0")} == {"ask", "mail", "state", "timer"}
