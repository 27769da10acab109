"""The pods of an overlay as local processes: their exact commands, variables, probes and signals."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callboard.cli import k8s_secrets
from callboard.runtime.bus import jetstream
from callboard.runtime.client import Client
from callboard.runtime.config import Settings
from callboard.runtime.host import connector
from callboard.runtime.security import plan as plans
from callboard.runtime.security.folder import Folder
from tests.deploy import rehearsal, render
from tests.deploy.generated import K8S
from tests.deploy.pod import Pod, Secrets
from tests.support.mesh import free_ports
from tests.support.server import NatsServer, find_binary


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


@pytest.mark.timeout(300)
async def test_an_overlay_becomes_a_fleet_that_works_and_drains(tmp_path: Path) -> None:
    objects = render.by_name(render.render(K8S / "overlays" / "dev-single"))
    server = await NatsServer(tmp_path / "server").start()
    folder = tmp_path / "pod"
    try:
        for title in sorted(each for each in objects if each.startswith("Job/")):
            for _ in range(2):  # a Job that is tried again finds nothing to do
                with _ended(Pod(objects, title, folder=folder, nats=server.url).start()) as job:
                    assert await asyncio.to_thread(job.wait, 60) == 0
        pod = Pod(objects, "Deployment/callboard-default", folder=folder, nats=server.url)
        with _ended(pod.start()) as process:
            await pod.starts()
            assert pod.probe("readinessProbe")
            assert pod.probe("livenessProbe")
            bus = await jetstream.connect(server.url, name="test")
            client = Client(bus)
            try:
                assert await client.call("hello", "Ann", timeout_s=30) == "Hello, Ann!"
            finally:
                await client.close()
                await bus.close()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, pod.spec["terminationGracePeriodSeconds"]) == 0
    finally:
        server.stop()


@pytest.mark.timeout(300)
async def test_pods_of_servers_with_users_get_in_by_their_secrets_and_do_their_work(tmp_path: Path) -> None:
    objects = render.by_name(render.render(K8S / "overlays" / "prod-ha"))
    nats = Folder(tmp_path / "nats")
    ports = list(free_ports(3))
    servers = plans.layout(1, hosts=("127.0.0.1",), port=ports[0], cluster_port=ports[1], http_port=ports[2])
    pools = (plans.unit("default=hello", role="worker"),)
    nats.write(plans.Plan(servers=servers, has_tls=True, pools=pools, hosts=(plans.unit("agents", role="host"),)))
    found: Secrets = {
        each["metadata"]["name"]: each["data"] for each in k8s_secrets.secrets(nats, namespace="callboard")
    }
    # three copies need three servers
    objects["ConfigMap/callboard"]["data"]["CALLBOARD_TOPOLOGY__REPLICAS"] = "1"

    def pod(title: str) -> Pod:
        folder = tmp_path / title.rpartition("/")[2]
        return Pod(objects, title, folder=folder, nats=nats.plan().url, secrets=found)

    server = subprocess.Popen([str(find_binary()), "-c", str(nats.config_file("cb-1"))], stderr=subprocess.DEVNULL)  # noqa: ASYNC220 - milliseconds
    with _ended(server):
        for title in sorted(each for each in objects if each.startswith("Job/")):
            with _ended(pod(title).start()) as job:
                assert await asyncio.to_thread(job.wait, 60) == 0, title
        registry, worker = pod("Deployment/callboard-registry"), pod("Deployment/callboard-default")
        with _ended(registry.start()) as first, _ended(worker.start()) as second:
            for each in (registry, worker):
                await each.starts()
            settings = Settings.load(file=nats.settings_file("callboard", "submitter"), env={})
            bus = await connector(settings)("test")
            client = Client(bus)
            try:
                assert await client.call("hello", "Ann", timeout_s=30) == "Hello, Ann!"
            finally:
                await client.close()
                await bus.close()
            for process in (first, second):
                process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(first.wait, 30) == 0
            assert await asyncio.to_thread(second.wait, 30) == 0


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_pods_are_replaced_scaled_in_and_lost_in_mid_turn_and_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    report = await rehearsal.run(rehearsal.Plan(keys=6, steps=8, tasks=4), tmp_path)
    print(report)  # noqa: T201 - the figures belong into the test's output
    assert report.problems == [], str(report)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_a_grace_that_is_too_short_is_noticed(tmp_path: Path) -> None:
    report = await rehearsal.run(rehearsal.Plan(keys=6, steps=8, tasks=4, grace_s=1.0), tmp_path)
    assert any("its grace is over" in problem for problem in report.problems), str(report)
