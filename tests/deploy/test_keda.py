"""What the autoscaler makes of real queues: in-flight work holds pods, work for later does not."""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from callboard.cli import k8s_pool, k8s_scaler
from callboard.cli.k8s_pool import Pool
from callboard.cli.k8s_scaler import Monitoring
from callboard.runtime.bus import jetstream
from callboard.runtime.bus.base import Bus
from callboard.runtime.bus.provision import apply, plan
from callboard.runtime.bus.topology import declared, due_consumer, task_consumers
from callboard.runtime.client import Client
from callboard.runtime.config import TopologySettings, WorkSettings
from tests.deploy import keda, render
from tests.deploy.generated import K8S
from tests.support.broker import Hands
from tests.support.eventually import eventually
from tests.support.server import NatsServer

POOL = Pool(name="gpu", capabilities=("hello",), max=20, slots=8, monitoring=Monitoring(account="$G"))
SMALL = TopologySettings(
    queue_max_bytes=1 << 26, ledger_max_bytes=1 << 26, audit_max_bytes=1 << 26, dead_max_bytes=1 << 26
)


class Fleet:
    """A server with a queue, and what KEDA would do about it."""

    def __init__(self, server: NatsServer, bus: Bus, url: str) -> None:
        self.server = server
        self.bus = bus
        self.client = Client(bus)
        self.url = url
        self.scaled = k8s_pool.files(POOL)["scaled-object.yaml"][0]

    def wanted(self, *, replicas: int = 0) -> int:
        """Return the pods that KEDA wants."""
        return keda.wanted(self.scaled, lambda account: keda.fetch(self.url, account), replicas=replicas)

    async def comes_to(self, pods: int) -> None:
        """Wait until the server shows what makes so many pods."""
        await eventually(lambda: self.wanted() == pods, within_s=10, every_s=0.1, what=f"KEDA wants {pods} pods")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    server = await NatsServer(tmp_path / "server", more='http: "127.0.0.1:-1"').start()
    bus = await jetstream.connect(server.url, name="test")
    await apply(bus, await plan(bus, declared(SMALL, capabilities=POOL.served)))
    told = re.search(r"Starting http monitor on (127\.0\.0\.1:\d+)", server.log())
    assert told, server.log()
    try:
        yield Fleet(server, bus, f"http://{told[1]}")
    finally:
        await bus.close()
        server.stop()


async def test_nothing_to_do_wants_nothing(fleet: Fleet) -> None:
    assert fleet.wanted() == 0


async def test_waiting_tasks_of_all_lanes_want_pods_up_to_the_most(fleet: Fleet) -> None:
    await fleet.client.submit("hello", "one")
    await fleet.comes_to(1)
    await asyncio.gather(*(fleet.client.submit("hello", n, lane="high") for n in range(8)))
    await fleet.comes_to(2)
    await asyncio.gather(*(fleet.client.submit("hello", n, lane="low") for n in range(8)))
    await fleet.comes_to(3)
    await asyncio.gather(*(fleet.client.submit("hello", n) for n in range(400)))
    await fleet.comes_to(20)


async def test_work_that_runs_holds_its_pods_until_it_is_settled(fleet: Fleet) -> None:
    for number in range(16):
        await fleet.client.submit("hello", number)
    hands = Hands()
    hands.pull = await fleet.bus.pull("CB_WORK", "hello-normal", hands.got.append)
    hands.pull.grant(16)
    await hands.have(16)
    await fleet.comes_to(2)
    # a scaler that counted only what waits would end both pods in the middle of their turns
    pending = keda.fetch(fleet.url, "$G")
    trigger = fleet.scaled["spec"]["triggers"][1]
    blind = copy.deepcopy(dict(pending))
    for account in blind["account_details"]:
        for stream in account["stream_detail"]:
            for consumer in stream.get("consumer_detail") or ():
                consumer["num_ack_pending"] = 0
    assert keda.load(pending, trigger) == 16
    assert keda.load(blind, trigger) == 0
    await fleet.bus.ack([delivery.token for delivery in hands.got[:9]])
    await fleet.comes_to(1)
    await fleet.bus.ack([delivery.token for delivery in hands.got[9:]])
    await fleet.comes_to(0)
    await hands.pull.close()


async def test_work_for_later_holds_no_pod_until_it_falls_due(fleet: Fleet) -> None:
    for number in range(50):
        await fleet.client.submit("hello", number, id=f"hello/{number}", delay_s=3600)
    assert await _stored(fleet.bus, "CB_LATER") == 50
    assert fleet.wanted() == 0
    await fleet.client.submit("hello", "soon", id="hello/soon", delay_s=1)
    await fleet.comes_to(1)


async def _stored(bus: Bus, stream: str) -> int:
    info = await bus.stream_info(stream)
    return info.messages if info is not None else -1


async def test_a_missing_consumer_or_server_keeps_what_runs(fleet: Fleet) -> None:
    await fleet.bus.delete_consumer("CB_WORK", "hello-low")
    assert fleet.wanted(replicas=7) == 7
    assert fleet.wanted(replicas=0) == 1
    fleet.server.stop()
    assert fleet.wanted(replicas=7) == 7


async def test_another_account_is_not_read(fleet: Fleet) -> None:
    await fleet.client.submit("hello", "one")
    for trigger in fleet.scaled["spec"]["triggers"]:
        trigger["metadata"]["account"] = "callboard"
    assert fleet.wanted(replicas=3) == 3


async def test_every_consumer_that_keda_reads_is_one_that_the_pools_job_makes(fleet: Fleet) -> None:
    job = k8s_pool.files(POOL)["provision.yaml"][0]
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words == ["provision", "--capability", "hello"]
    for trigger in fleet.scaled["spec"]["triggers"]:
        stream, name = trigger["metadata"]["stream"], trigger["metadata"]["consumer"]
        assert await fleet.bus.consumer_info(stream, name) is not None


def test_the_triggers_are_all_consumers_of_the_capability() -> None:
    declared_ones = {("CB_WORK", each.name) for each in task_consumers("hello", WorkSettings())}
    declared_ones.add(("CB_LATER", due_consumer("hello", WorkSettings()).name))
    assert set(k8s_scaler.consumers("hello")) == declared_ones


def test_the_hungriest_of_several_capabilities_counts() -> None:
    pool = Pool(name="gpu", capabilities=("embed", "top-5"), max=20)
    scaled = k8s_pool.files(pool)["scaled-object.yaml"][0]
    names = [each["name"] for each in scaled["spec"]["triggers"]]
    assert len(set(names)) == len(names) == 8
    formula = scaled["spec"]["advanced"]["scalingModifiers"]["formula"]
    assert keda.evaluate(formula, dict.fromkeys(names, 1)) == 4
    assert keda.evaluate(formula, {name: 10 if name.startswith("c1") else 1 for name in names}) == 40
    with pytest.raises(ValueError, match="not a part"):
        keda.evaluate("c0_high * 2", {"c0_high": 1})


def test_every_scaled_object_asks_the_headless_service_for_the_leader() -> None:
    for overlay in ("prod-ha", "spot"):
        for each in render.render(K8S / "overlays" / overlay):
            if each["kind"] == "ScaledObject":
                ends = {trigger["metadata"]["natsServerMonitoringEndpoint"] for trigger in each["spec"]["triggers"]}
                assert ends == {"nats-headless.callboard.svc.cluster.local:8222"}
                assert {trigger["metadata"]["account"] for trigger in each["spec"]["triggers"]} == {"callboard"}
