"""Everything Callboard does runs with the users of the written configuration, each with the least it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.beat import decode_beat, encode_beat
from callboard.runtime.bus.base import KvEntry, Message, Write
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.capability import Capability, capability
from callboard.runtime.client import Client
from callboard.runtime.control import Order
from callboard.runtime.errors import PermissionDeniedError, TopologyError
from callboard.runtime.host import run_worker
from callboard.runtime.roster import listening, live_workers, order
from callboard.runtime.worker import Worker
from tests.support.eventually import eventually
from tests.support.secured import Secured, planned, secured


class Hello(Struct):
    name: str


@capability("search")
async def search(text: str) -> str:
    return text.upper()


class Greeter(Actor, name="greeter"):
    class State(Struct):
        greeted: int = 0

    @on
    async def hello(self, message: Hello) -> str:
        found = await self.step("look", str.title, message.name)
        self.state.greeted += 1
        return f"{found} {self.state.greeted}"


@asynccontextmanager
async def worker(
    servers: Secured, user: str, parts: Sequence[Capability[..., Any]] = (), actors: Sequence[type[Actor]] = ()
) -> AsyncIterator[Worker]:
    ready: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_worker(servers.settings(user), parts, actors=actors, on_ready=ready.set_result, health_port=0)
    )
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    running = ready.result()
    try:
        yield running
    finally:
        running.stop(now=True)
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_each_role_does_its_work(tmp_path: Path) -> None:
    plan = planned(pools=["gpu=search"], hosts=["desk=greeter"])
    async with (
        secured(tmp_path, plan, "search") as servers,
        worker(servers, "worker-gpu", [search]) as pool,
        worker(servers, "host-desk", actors=[Greeter]) as host,
    ):
        assert pool.id.startswith("worker-gpu.")
        submitter = await servers.bus("submitter")
        client = Client(submitter)
        assert await client.call("search", "abc", timeout_s=20) == "ABC"
        big = "x" * 700_000
        assert await client.call("search", big, timeout_s=20) == big.upper()
        greeter = client.actor("greeter/front")
        assert await greeter.ask(Hello("ann"), timeout_s=20) == "Ann 1"
        await greeter.tell(Hello("bo"))
        assert await greeter.ask(Hello("cy"), timeout_s=20) == "Cy 3"
        auditor = await servers.bus("auditor")
        assert len([each async for each in auditor.read(subjects.LEDGER)]) == 2
        assert [each.subject async for each in auditor.read(subjects.ACTORS, subjects=("cb.mbox.greeter.>",))]
        operator = await servers.bus("operator")
        heard = await live_workers(operator, until=lambda roster: len(roster.beats) == 2)
        assert {beat.worker for beat in heard} == {pool.id, host.id}
        await order(operator, pool.id, Order(op="drain"))
        await eventually(lambda: pool.status == "stopped")
        assert "Violation" not in servers.log(), "a role lacks something that it used"


async def test_look_ups_reach_who_keeps_the_registry(tmp_path: Path) -> None:
    async with secured(tmp_path, planned(has_tls=False)) as servers:
        desk = await servers.bus("registry")
        caller = await servers.bus("submitter")

        answers: list[asyncio.Future[None]] = []

        def answer(message: Message) -> None:
            answers.append(asyncio.ensure_future(desk.publish(message.reply, b"found")))

        await desk.subscribe("cb.registry.*", answer)
        assert (await caller.request("cb.registry.find", b"{}")).data == b"found"
        await Bucket(desk, "CB_REGISTRY").put("agent.greeter.ann", b"{}")
        entry = await Bucket(caller, "CB_REGISTRY").get("agent.greeter.ann")
        assert entry is not None
        watched: list[KvEntry] = []
        await Bucket(caller, "CB_REGISTRY").watch("agent.", watched.append)
        await eventually(lambda: bool(watched))


async def test_three_servers_talk_tls_among_themselves(tmp_path: Path) -> None:
    plan = planned(servers=3, pools=["gpu=search"])
    async with secured(tmp_path, plan, "search") as servers, worker(servers, "worker-gpu", [search]):
        client = Client(await servers.bus("submitter"))
        assert await client.call("search", "abc", timeout_s=30) == "ABC"
        info = await (await servers.bus("operator")).stream_info(subjects.WORK)
        assert info is not None
        assert info.config.replicas == 3


async def test_a_worker_without_its_consumers_is_told_who_makes_them(tmp_path: Path) -> None:
    async with secured(tmp_path, planned(pools=["gpu=search"], has_tls=False)) as servers:
        with pytest.raises(TopologyError, match="callboard provision --capability search"):
            async with worker(servers, "worker-gpu", [search]):
                pass


async def test_a_forged_beat_moves_nobody(tmp_path: Path) -> None:
    plan = planned(pools=["gpu=search", "cpu=embed"], has_tls=False)
    async with secured(tmp_path, plan, "search") as servers, worker(servers, "worker-gpu", [search]) as mine:
        forger = await servers.bus("worker-cpu")
        farewell = replace(decode_beat(mine.beat()), status="stopped")
        with pytest.raises(PermissionDeniedError):
            await forger.request(subjects.beat(mine.id), encode_beat(farewell), timeout_s=1)
        operator = await servers.bus("operator")
        async with listening(operator) as roster:
            await eventually(lambda: mine.id in roster.beats)
            await forger.publish("cb.beat.worker-cpu.x", encode_beat(farewell))
            honest = replace(farewell, worker="worker-cpu.x", status="ready")
            await forger.publish("cb.beat.worker-cpu.x", encode_beat(honest))
            await eventually(lambda: "worker-cpu.x" in roster.beats)
            assert mine.id in roster.beats
            assert mine.id not in roster.gone


async def test_what_a_consumer_delivers_onto_a_foreign_subject_is_no_order(tmp_path: Path) -> None:
    async with secured(tmp_path, planned(has_tls=False)) as servers:
        forger, hearer, witness = [await servers.bus(user) for user in ("registry", "worker-default", "operator")]
        await forger.store(Write("cb.state.registry.x", b"forged"))
        heard: list[Message] = []
        await hearer.subscribe("cb.ctl.cancel", heard.append)
        config = {
            "name": "push",
            "durable_name": "push",
            "deliver_subject": "cb.ctl.cancel",
            "ack_policy": "none",
            "deliver_policy": "all",
            "filter_subject": "cb.state.registry.x",
        }
        body = msgspec.json.encode({"stream_name": "CB_ACTORS", "config": config, "action": ""})
        await forger.request("$JS.API.CONSUMER.CREATE.CB_ACTORS.push", body)

        async def delivered() -> bool:
            answer = await witness.request("$JS.API.CONSUMER.INFO.CB_ACTORS.push", b"")
            return bool(msgspec.json.decode(answer.data)["delivered"]["consumer_seq"] == 1)

        await eventually(delivered)
        await witness.publish("cb.ctl.cancel", b"real")
        await eventually(lambda: bool(heard))
        assert [message.data for message in heard] == [b"real"]
