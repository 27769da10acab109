"""The pods of an overlay as local processes: their exact commands, variables, probes and signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from callboard.cli.k8s_pod import CODE_FOLDER
from callboard.runtime.bus import jetstream
from callboard.runtime.client import Client
from tests.deploy import render
from tests.deploy.generated import K8S, ROOT
from tests.deploy.render import Manifest
from tests.support.eventually import eventually
from tests.support.mesh import free_ports
from tests.support.server import NatsServer

_START_S = 60.0


class Pod:
    """One container of an overlay, with the addresses and folders of this machine in place of the cluster's."""

    def __init__(self, objects: dict[str, Manifest], title: str, *, folder: Path, nats: str) -> None:
        self.spec = render.pods([objects[title]])[0]
        self.container = render.containers(self.spec)[0]
        self._folder = folder
        (self.port,) = free_ports(1)
        self._env = {
            name: value
            for source in self.container["envFrom"]
            for name, value in objects[f"ConfigMap/{source['configMapRef']['name']}"]["data"].items()
        }
        self._env |= {variable["name"]: variable["value"] for variable in self.container["env"]}
        changed = {"CALLBOARD_NATS__URL": nats, "CALLBOARD_WORKER__HEALTH_PORT": str(self.port), "HOME": str(folder)}
        self._env |= {name: value for name, value in changed.items() if name in self._env}
        for volume in self.spec["volumes"]:
            if "configMap" in volume:
                for name, text in objects[f"ConfigMap/{volume['configMap']['name']}"]["data"].items():
                    (folder / "code").mkdir(exist_ok=True)
                    (folder / "code" / name).write_text(text, "utf-8")

    def start(self) -> subprocess.Popen[bytes]:
        """Start it with its variables and no others."""
        assert self.container["command"] == ["callboard"]
        words = [word.replace(CODE_FOLDER, str(self._folder / "code")) for word in self.container["args"]]
        env = self._env | {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src")}
        return subprocess.Popen(
            [sys.executable, "-m", "callboard", *words], cwd=self._folder, env=env, stderr=subprocess.DEVNULL
        )

    def probe(self, which: str) -> bool:
        """Ask what the kubelet asks."""
        path = self.container[which]["httpGet"]["path"]
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=3)
        except httpx.HTTPError:
            return False
        return answer.is_success


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


@pytest.mark.timeout(150)
async def test_an_overlay_becomes_a_fleet_that_works_and_drains(tmp_path: Path) -> None:
    objects = render.by_name(render.render(K8S / "overlays" / "dev-single"))
    server = await NatsServer(tmp_path / "server").start()
    folder = tmp_path / "pod"
    folder.mkdir()
    try:
        for title in sorted(each for each in objects if each.startswith("Job/")):
            for _ in range(2):  # a Job that is tried again finds nothing to do
                with _ended(Pod(objects, title, folder=folder, nats=server.url).start()) as job:
                    assert await asyncio.to_thread(job.wait, 60) == 0
        pod = Pod(objects, "Deployment/callboard-default", folder=folder, nats=server.url)
        with _ended(pod.start()) as process:
            await eventually(lambda: pod.probe("startupProbe"), within_s=_START_S, every_s=0.2, what="the pod starts")
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
