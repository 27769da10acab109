"""The units are ones that systemd takes, hardened, and give workers the time to drain."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from callboard.cli.main import cli
from callboard.runtime.config import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
HARDENED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "RestrictSUIDSGID": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "SystemCallFilter": "@system-service",
    "SystemCallErrorNumber": "EPERM",
}
MOST_EXPOSED = 3.0


def _read(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def _faults(text: str) -> list[str]:
    unit = _read(text)
    found = [f"{name} is not {value}" for name, value in HARDENED.items() if unit.get(name) != [value]]
    if "User" not in unit and unit.get("DynamicUser") != ["yes"]:
        found.append("runs as root")
    if unit.get("Restart") != ["always"] or unit.get("StartLimitIntervalSec") != ["0"]:
        found.append("may stay down")
    variables = dict(each.split("=", 1) for line in unit.get("Environment", ()) for each in shlex.split(line))
    command = unit["ExecStart"][0]
    if "callboard" in command.split()[0]:
        ours = {name: value.replace("%i", "a") for name, value in variables.items() if "__" in name}
        settings = Settings.load(file=[], env=ours)
        if float(unit["TimeoutStopSec"][0]) < settings.worker.drain_grace_s + 5:
            found.append("is killed before it has drained")
        words = command.split()[1:]
        if cli.get_command(cli.make_context("callboard", list(words), resilient_parsing=True), words[0]) is None:
            found.append("no such command")
    elif unit.get("KillSignal") != ["SIGUSR2"]:
        found.append("stops without lame duck")
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_it_keeps_the_rules(path: Path) -> None:
    assert _faults(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_broken_copy_is_caught(path: Path) -> None:
    """Negative control."""
    text = path.read_text("utf-8")
    for name in (*HARDENED, "Restart"):
        assert _faults(re.sub(rf"^{name}=.*\n", "", text, flags=re.MULTILINE)), name
    assert _faults(re.sub(r"^(User|DynamicUser)=.*\n", "", text, flags=re.MULTILINE))
    if "worker" in path.name:
        assert _faults(text.replace("TimeoutStopSec=330", "TimeoutStopSec=90"))
    else:
        assert _faults(text.replace("KillSignal=SIGUSR2\n", ""))


@pytest.fixture
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("SKIP systemd-analyze: not installed")
    return found


def _verify(analyze: str, folder: Path, name: str, text: str) -> str:
    # programs that are installed elsewhere stand for themselves
    (folder / name).write_text(
        re.sub(r"^(Exec\w+=)/(?:usr/local/bin|opt)\S+", r"\1/bin/true", text, flags=re.MULTILINE)
    )
    done = subprocess.run(
        [analyze, "verify", str(folder / name)], capture_output=True, text=True, timeout=30, check=False
    )
    return "\n".join(line for line in done.stderr.splitlines() if name.partition(".")[0].rstrip("@") in line)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_it(path: Path, tmp_path: Path, analyze: str) -> None:
    text = path.read_text("utf-8")
    assert _verify(analyze, tmp_path, path.name, text) == ""
    assert _verify(analyze, tmp_path, path.name, text.replace("ProtectHome", "ProtectHoem"))  # negative control


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_it_little_exposed(path: Path, tmp_path: Path, analyze: str) -> None:
    def exposure(text: str) -> float:
        (tmp_path / path.name).write_text(text)
        command = [analyze, "security", "--offline=true", "--no-pager", str(tmp_path / path.name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
        if found is None:
            pytest.skip(f"SKIP systemd-analyze security: {done.stderr.strip()[:200]}")
        return float(found[1])

    text = path.read_text("utf-8")
    assert exposure(text) < MOST_EXPOSED
    bare = "".join(
        line for line in text.splitlines(keepends=True) if not re.match(r"Protect|Private|Restrict|System|Cap", line)
    )
    assert exposure(bare) > MOST_EXPOSED  # negative control
