"""Everything Callboard does runs with the users of the written configuration, each with the least it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from msgspec.structs import replace

from callboard.runtime import backlog, events, subjects
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.beat import decode_beat, encode_beat
from callboard.runtime.bus.base import KvEntry, Message, Write
from callboard.runtime.bus.kv import Bucket
from callboard.runtime.capability import Capability, capability
from callboard.runtime.client import Client
from callboard.runtime.control import Order
from callboard.runtime.errors import BusError, PermissionDeniedError, TopologyError
from callboard.runtime.group_beat import GroupBeat
from callboard.runtime.host import run_worker
from callboard.runtime.provide import ensure_consumers
from callboard.runtime.roster import listening, live_workers, order
from callboard.runtime.worker import Worker
from tests.support.eventually import eventually
from tests.support.secured import Secured, planned, secured


class Hello(Struct):
    name: str


@capability("search")
async def search(text: str) -> str:
    return text.upper()


class Greeter(Actor, name="greeter", capabilities=["greet"]):
    class State(Struct):
        greeted: int = 0

    @on
    async def hello(self, message: Hello) -> str:
        found = await self.step("look", str.title, message.name)
        self.state.greeted += 1
        return f"{found} {self.state.greeted}"


def encoded_group(name: str) -> bytes:
    now = datetime.now(UTC)
    beat = GroupBeat(
        v=1,
        group=name,
        host="h",
        pid=1,
        version="1",
        status="ready",
        started_at=now,
        at=now,
        labels={},
        wanted=0,
        processes=[],
    )
    return msgspec.json.encode(beat)


@asynccontextmanager
async def worker(
    servers: Secured,
    user: str,
    parts: Sequence[Capability[..., Any]] = (),
    actors: Sequence[type[Actor]] = (),
    **flags: Any,  # noqa: ANN401 - settings
) -> AsyncIterator[Worker]:
    ready: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        run_worker(servers.settings(user, **flags), parts, actors=actors, on_ready=ready.set_result, health_port=0)
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
    plan = planned(pools=["gpu=search"], hosts=["desk=greeter/greet"])
    async with (
        secured(tmp_path, plan, "search", "greet") as servers,
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
        records = Bucket(submitter, "CB_REGISTRY")
        await eventually(partial(records.get, "agent.greeter.front"), what="the host enters its agent, nobody leads")
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


async def test_a_host_deletes_no_records_by_a_roll_up(tmp_path: Path) -> None:
    async with secured(tmp_path, planned(hosts=["desk=greeter"], has_tls=False)) as servers:
        records = Bucket(await servers.bus("registry"), "CB_REGISTRY")
        await records.put("agent.clerk.bob", b"{}")
        host = await servers.bus("host-desk")
        with pytest.raises(BusError, match="rollup"):
            await host.store(Write("$KV.CB_REGISTRY.agent.greeter.ann", b"{}", {"Nats-Rollup": "all"}))
        await Bucket(host, "CB_REGISTRY").put("agent.greeter.ann", b"{}")
        assert await records.keys() == ["agent.clerk.bob", "agent.greeter.ann"]


async def test_the_records_of_an_older_deployment_take_no_roll_up_any_more(tmp_path: Path) -> None:
    async with secured(tmp_path, planned(has_tls=False)) as servers:
        operator = await servers.bus("operator")
        info = await operator.stream_info("KV_CB_REGISTRY")
        assert info is not None
        await operator.update_stream(replace(info.config, allow_rollup=True))
        await servers.provision()
        info = await operator.stream_info("KV_CB_REGISTRY")
        assert info is not None
        assert not info.config.allow_rollup


async def test_a_pool_by_label_that_is_not_ours_is_left_to_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = planned(pools=["gpu=search", "lab=search,search--zone_a"], has_tls=False)
    labelled: dict[str, Any] = {"worker__labels": {"zone": "a"}}
    async with secured(tmp_path, plan, "search", "search--zone_a") as servers:
        client = Client(await servers.bus("submitter"))
        handle = await client.submit("search", "abc", labels={"zone": "a"})
        async with worker(servers, "worker-gpu", [search], **labelled) as other:
            assert events.POOL_REFUSED in caplog.text
            assert await client.call("search", "here", timeout_s=20) == "HERE"
            assert set(other.pools) == {"search"}
            async with worker(servers, "worker-lab", [search], **labelled) as mine:
                record = await client.wait_record(handle, timeout_s=20)
                assert await client.value_of(record) == "ABC"
                assert set(mine.pools) == {"search", "search--zone_a"}


async def test_the_parent_of_a_pool_sees_its_work_and_reads_none_of_it(tmp_path: Path) -> None:
    plan = planned(pools=["gpu=search,search--zone_a"], has_tls=False)
    async with secured(tmp_path, plan, "search", "search--zone_a") as servers:
        client = Client(await servers.bus("submitter"))
        await client.submit_many("search", ["a", "b"])
        await client.submit("search", "c", labels={"zone": "a"})
        parent = await servers.bus("worker-gpu")
        await ensure_consumers(parent, ["search", "search--zone_a"], servers.settings("worker-gpu").work)
        assert await backlog.labelled(parent, ["search"]) == {"search--zone_a": 1}
        works = await backlog.read(parent, ["search", "search--zone_a"], with_age=False)
        assert [(work.pending, work.deliveries) for work in works] == [(2, 0), (1, 0)]
        assert "Violation" not in servers.log()
        with pytest.raises(PermissionDeniedError):
            await backlog.read(parent, ["search"])


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
            await forger.publish("cb.group.worker-cpu.x", encoded_group("worker-gpu.g"))
            await forger.publish("cb.group.worker-cpu.x", encoded_group("worker-cpu.x"))
            await eventually(lambda: "worker-cpu.x" in roster.groups)
            assert "worker-gpu.g" not in roster.groups


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
