"""What a container is made of comes from the operator; a job cannot ask for more."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callboard.agents.errors import SandboxError
from callboard.agents.sandbox import container
from callboard.agents.sandbox.base import Job, Limits
from callboard.agents.sandbox_settings import DockerSettings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = DockerSettings(image="tools@sha256:0", networks={"filtered": ("example.com",)})


def made(settings: DockerSettings = SETTINGS, **job: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of a job
    found = Job(**{"argv": ["run", "--privileged", "-v", "/:/host"], "folder": Path("/srv/box"), **job})
    return container.config(found, settings, user="1000:1000", env={"A": "b"}, labels={})


def test_a_container_is_as_small_as_can_be() -> None:
    body = made(limits=Limits(memory_bytes=1 << 28, processes=7, open_files=99, file_bytes=5, cpu_s=3.0))
    host = body["HostConfig"]
    assert (body["Image"], body["User"], body["NetworkDisabled"]) == ("tools@sha256:0", "1000:1000", True)
    assert (body["Entrypoint"], body["Cmd"]) == (["run"], ["--privileged", "-v", "/:/host"])
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["Privileged"]) == ("none", True, False)
    assert (host["CapDrop"], host["CapAdd"], host["SecurityOpt"]) == (["ALL"], [], ["no-new-privileges"])
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (1 << 28, 1 << 28, 7)
    assert host["NanoCpus"] == 1_000_000_000
    assert {each["Name"]: each["Hard"] for each in host["Ulimits"]} == {"cpu": 4, "fsize": 5, "nofile": 99, "core": 0}
    assert [each["Source"] for each in host["Mounts"]] == ["/srv/box"]
    assert host["LogConfig"]["Type"] == "none"
    assert not {"Binds", "VolumesFrom", "Links", "ExtraHosts", "PortBindings", "DeviceRequests"} & set(host)


def test_a_job_can_steer_nothing_but_its_own_fields() -> None:
    """Whatever words it uses, image, powers and mounts stay as they are."""
    plain, sly = made(argv=["a"]), made(argv=["a"], env={"X": "Privileged"}, label="--privileged", input=b"HostConfig")
    assert sly == plain
    with pytest.raises(TypeError):
        Job(argv=["a"], folder=Path("/srv/box"), image="evil", host_config={})  # type: ignore[call-arg]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"argv": "a"}, Job)


def test_a_network_is_given_for_exactly_its_hosts() -> None:
    assert made(limits=Limits(network=("example.com",)))["HostConfig"]["NetworkMode"] == "filtered"
    for hosts in (("other.com",), ("example.com", "other.com")):
        with pytest.raises(SandboxError, match="no Docker network lets through exactly"):
            made(limits=Limits(network=hosts))


def test_an_owner_that_lives_keeps_its_container() -> None:
    labels = container.labels(Job(argv=["a"], folder=Path("/srv")), SETTINGS, owner=container.me(), now=NOW)
    assert not container.is_left(labels, now=NOW)
    assert container.is_left(labels, now=NOW + timedelta(days=1))


def test_a_dead_owner_leaves_it() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = container.me().rsplit("/", 2)[0]
    until = (NOW + timedelta(days=1)).isoformat()
    assert container.is_left({container.OWNER: f"{here}/{ended.pid}/1", container.UNTIL: until}, now=NOW)
    # The same number, but another process: it began at another time.
    assert container.is_left({container.OWNER: f"{here}/{os.getpid()}/1", container.UNTIL: until}, now=NOW)


def test_an_owner_elsewhere_is_given_its_time() -> None:
    labels = {container.OWNER: "other-boot/1/1/1", container.UNTIL: (NOW + timedelta(seconds=1)).isoformat()}
    assert not container.is_left(labels, now=NOW)
    assert container.is_left(labels, now=NOW + timedelta(seconds=2))
    assert not container.is_left({}, now=NOW)
