"""What a sandbox is asked to run is looked at before anything is run; the operator's bounds hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from callboard.agents.errors import SandboxError, SandboxMissingError
from callboard.agents.sandbox import order
from callboard.agents.sandbox.base import Job, Limits
from callboard.agents.sandbox.choose import LEVELS, choose, is_at_least
from callboard.agents.sandbox_settings import DockerSettings, SandboxLimits, SandboxSettings


def test_a_caller_gets_no_more_than_the_operator_allows() -> None:
    asked = Limits(
        time_s=1e9, cpu_s=1e9, memory_bytes=1 << 60, output_bytes=1 << 60, file_bytes=1 << 60, open_files=9999
    )
    most = SandboxLimits()
    found = order.bounded(asked, most)
    assert found.time_s == most.time_s
    assert found.memory_bytes == most.memory_bytes
    assert found.open_files == most.open_files
    assert order.bounded(Limits(time_s=1.0), most).time_s == 1.0


@pytest.mark.parametrize("asked", [Limits(time_s=0), Limits(memory_bytes=-1), Limits(cpu_s=float("nan"))])
def test_a_limit_that_is_none_is_refused(asked: Limits) -> None:
    with pytest.raises(SandboxError, match="more than 0"):
        order.bounded(asked, SandboxLimits())


def test_a_folder_must_lie_where_the_operator_says(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    settings = SandboxSettings(folders=(tmp_path / "in",))
    assert order.accept(Job(argv=["true"], folder=tmp_path / "in"), settings).folder == (tmp_path / "in").resolve()
    for name in ("out", "in/link", "in/../out"):
        with pytest.raises(SandboxError, match="none of the folders"):
            order.accept(Job(argv=["true"], folder=tmp_path / name), settings)


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "A=B", "", "1A", "A\0"])
def test_a_variable_that_steers_the_loader_or_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="variable"):
        order.accept(Job(argv=["true"], folder=tmp_path, env={name: "x"}), SandboxSettings())


def test_of_the_environment_little_is_handed_on(tmp_path: Path) -> None:
    found = order.environment(
        Job(argv=["true"], folder=tmp_path), {"OPENAI_API_KEY": "secret", "LANG": "de", "TZ": "UTC"}
    )
    assert found == {"PATH": order.PATH, "LANG": "de", "TZ": "UTC", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}


@pytest.mark.parametrize(
    ("code", "expected"), [(0, (0, "")), (1, (1, "")), (137, (-9, "")), (152, (-24, "cpu")), (153, (-25, "files"))]
)
def test_a_shell_status_names_the_signal(code: int, expected: tuple[int, str]) -> None:
    assert order.ended(code) == expected


def test_the_sandbox_that_is_asked_for_or_none() -> None:
    assert [choose(name).name for name in LEVELS] == list(LEVELS)
    assert choose().name == "subprocess"
    for name in ("none", "Docker", "docker "):
        with pytest.raises(SandboxMissingError, match="subprocess, bubblewrap, docker"):
            choose(name)


def test_sandboxes_have_an_order() -> None:
    assert is_at_least("docker", "bubblewrap")
    assert not is_at_least("subprocess", "bubblewrap")


async def test_a_missing_bubblewrap_is_an_error_and_no_weaker_one_runs(tmp_path: Path) -> None:
    settings = SandboxSettings.model_validate({"bubblewrap": {"binary": "no-such-bwrap"}})
    with pytest.raises(SandboxMissingError, match="install the package bubblewrap"):
        await choose("bubblewrap", settings).run(Job(argv=["touch", "ran"], folder=tmp_path))
    assert not (tmp_path / "ran").exists()


async def test_a_missing_engine_is_an_error_and_no_weaker_one_runs(tmp_path: Path) -> None:
    docker = DockerSettings(url=f"unix://{tmp_path}/none", image="some:1")
    sandbox = choose("docker", SandboxSettings(docker=docker))
    with pytest.raises(SandboxMissingError, match="no Docker engine answers"):
        await sandbox.run(Job(argv=["touch", "ran"], folder=tmp_path))
    await sandbox.close()
    with pytest.raises(SandboxMissingError, match=r"sandbox\.docker\.image"):
        await choose("docker").run(Job(argv=["touch", "ran"], folder=tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["host", "bridge", "container:x", "none", "default"])
def test_a_network_that_filters_nothing_cannot_be_listed(name: str) -> None:
    with pytest.raises(ValidationError):
        DockerSettings(networks={name: ("example.com",)})


@pytest.mark.parametrize("user", ["0", "root", "0:0", "1000:0", "-1"])
def test_containers_do_not_run_as_root(user: str) -> None:
    with pytest.raises(ValidationError):
        DockerSettings(user=user)
