"""One container of an overlay as a local process: its exact command and variables, its files, its probes' questions."""

from __future__ import annotations

import base64
import http.client
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from tests.deploy import render
from tests.deploy.generated import ROOT
from tests.deploy.render import Manifest
from tests.support.eventually import eventually
from tests.support.mesh import free_ports

_START_S = 60.0
Secrets = dict[str, dict[str, str]]


class Image:
    """What an image brings: variables, and folders with packages; ``callboard`` itself is in every one."""

    def __init__(self, *, env: Mapping[str, str] = MappingProxyType({}), packages: tuple[Path, ...] = ()) -> None:
        path = os.pathsep.join(str(each) for each in (*packages, ROOT / "src"))
        self.env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, **env}


class Pod:
    """One container of an overlay, with the addresses and folders of this machine in place of the cluster's."""

    def __init__(
        self,
        objects: dict[str, Manifest],
        title: str,
        *,
        folder: Path,
        nats: str,
        secrets: Secrets | None = None,
        image: Image | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.spec = render.pods([objects[title]])[0]
        self.container = render.containers(self.spec)[0]
        self._folder = folder
        self._image = image if image is not None else Image()
        (self.port,) = free_ports(1)
        self.said = ""
        env = {
            name: value
            for source in self.container["envFrom"]
            for name, value in objects[f"ConfigMap/{source['configMapRef']['name']}"]["data"].items()
        }
        env |= {variable["name"]: variable["value"] for variable in self.container["env"]}
        here = {"CALLBOARD_NATS__URL": nats, "CALLBOARD_WORKER__HEALTH_PORT": str(self.port)}
        env |= {name: value for name, value in here.items() if name in env}
        self._env = {name: self._here(value) for name, value in env.items()}
        self._mount(objects, secrets)

    @property
    def grace_s(self) -> float:
        """Seconds from SIGTERM to SIGKILL."""
        return float(self.spec["terminationGracePeriodSeconds"])

    def start(self) -> subprocess.Popen[bytes]:
        """Start it with its variables and those of its image, and no others."""
        assert self.container["command"] == ["callboard"]
        words = [self._here(word) for word in self.container["args"]]
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "callboard", *words],
                cwd=self._folder,
                env=self._env | self._image.env,
                stdout=log,
                stderr=log,
            )

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
        """Ask what the kubelet asks, as long as it waits, and take what it takes for success."""
        probe = self.container[which]
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=probe["timeoutSeconds"])
        try:
            link.request("GET", f"{probe['httpGet']['path']}?verbose")
            answer = link.getresponse()
            self.said = answer.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return False
        finally:
            link.close()
        return 200 <= answer.status < 400

    def _here(self, value: str) -> str:
        """Return a value with the folder of this machine in place of the mounted one that it names."""
        for mount in self.container["volumeMounts"]:
            place = PurePosixPath(mount["mountPath"])
            if PurePosixPath(value).is_relative_to(place):
                return str(self._folder / mount["name"] / PurePosixPath(value).relative_to(place))
        return value

    def _mount(self, objects: dict[str, Manifest], secrets: Secrets | None) -> None:
        for volume in self.spec["volumes"]:
            place = self._folder / volume["name"]
            place.mkdir(exist_ok=True)
            for name, data in self._files(volume, objects, secrets).items():
                (place / name).write_bytes(data)

    @staticmethod
    def _files(volume: dict[str, Any], objects: dict[str, Manifest], secrets: Secrets | None) -> dict[str, bytes]:
        if "secret" in volume and secrets is not None:
            data = secrets[volume["secret"]["secretName"]]
            return {name: base64.b64decode(text) for name, text in data.items()}
        if "configMap" in volume:
            data = objects[f"ConfigMap/{volume['configMap']['name']}"]["data"]
            return {name: text.encode() for name, text in data.items()}
        return {}
