"""The pods of an overlay as local processes: their exact commands, variables, probes and signals."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from callboard.cli import k8s_secrets
from callboard.cli.k8s_pod import CODE_FOLDER, USER_FOLDER
from callboard.runtime.bus import jetstream
from callboard.runtime.client import Client
from callboard.runtime.config import Settings
from callboard.runtime.host import connector
from callboard.runtime.security import plan as plans
from callboard.runtime.security.folder import Folder
from tests.deploy import render
from tests.deploy.generated import K8S, ROOT
from tests.deploy.render import Manifest
from tests.support.eventually import eventually
from tests.support.mesh import free_ports
from tests.support.server import NatsServer, find_binary

_START_S = 60.0
Secrets = dict[str, dict[str, str]]


class Pod:
    """One container of an overlay, with the addresses and folders of this machine in place of the cluster's."""

    def __init__(
        self, objects: dict[str, Manifest], title: str, *, folder: Path, nats: str, secrets: Secrets | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.spec = render.pods([objects[title]])[0]
        self.container = render.containers(self.spec)[0]
        self._folder = folder
        (self.port,) = free_ports(1)
        self.said = ""
        self._env = {
            name: value
            for source in self.container["envFrom"]
            for name, value in objects[f"ConfigMap/{source['configMapRef']['name']}"]["data"].items()
        }
        self._env |= {variable["name"]: variable["value"] for variable in self.container["env"]}
        changed = {"CALLBOARD_NATS__URL": nats, "CALLBOARD_WORKER__HEALTH_PORT": str(self.port), "HOME": str(folder)}
        self._env |= {name: value for name, value in changed.items() if name in self._env}
        self._env = {name: value.replace(USER_FOLDER, str(folder / "user")) for name, value in self._env.items()}
        for volume in self.spec["volumes"]:
            if "secret" in volume and secrets is not None:
                (folder / "user").mkdir()
                for name, data in secrets[volume["secret"]["secretName"]].items():
                    (folder / "user" / name).write_bytes(base64.b64decode(data))
            if "configMap" in volume:
                for name, text in objects[f"ConfigMap/{volume['configMap']['name']}"]["data"].items():
                    (folder / "code").mkdir(exist_ok=True)
                    (folder / "code" / name).write_text(text, "utf-8")

    def start(self) -> subprocess.Popen[bytes]:
        """Start it with its variables and no others."""
        assert self.container["command"] == ["callboard"]
        words = [word.replace(CODE_FOLDER, str(self._folder / "code")) for word in self.container["args"]]
        env = self._env | {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", "callboard", *words], cwd=self._folder, env=env, stderr=log)

    async def starts(self) -> None:
        """Wait until the kubelet would let it live; fail with its own reasons."""
        try:
            await eventually(lambda: self.probe("startupProbe"), within_s=_START_S, every_s=0.2)
        except AssertionError as error:
            message = f"{self.container['args']} does not start: {self.said}\n{self.log()}"
            raise AssertionError(message) from error

    def log(self) -> str:
        """Return what it has said."""
        return (self._folder / "log").read_text("utf-8", "replace")

    def probe(self, which: str) -> bool:
        """Ask what the kubelet asks."""
        path = self.container[which]["httpGet"]["path"]
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}{path}?verbose", trust_env=False, timeout=3)
        except httpx.HTTPError:
            return False
        self.said = answer.text
        return answer.is_success


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
