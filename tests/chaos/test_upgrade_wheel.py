"""The wheel of the version before and this one: streams change by additions only, and both serve one fleet."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

import callboard
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.client import Client
from tests.chaos.fleet import ROOT
from tests.chaos.upgrade import OLDER
from tests.support.eventually import eventually
from tests.support.server import NatsServer

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]

WHO = """
import asyncio, callboard
from callboard import capability

@capability("who", concurrency=1)
async def who(number: int) -> str:
    await asyncio.sleep(0.05)
    return callboard.__file__
"""
BATCH = 20
# small enough for any disk
SIZES = {
    f"CALLBOARD_TOPOLOGY__{name}_MAX_BYTES": str(16 << 20) for name in ("QUEUE", "LEDGER", "AUDIT", "DEAD", "TOKENS")
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The older version as its wheel installs it, built without a network."""
    folder = tmp_path_factory.mktemp("older")
    done = subprocess.run(["git", "-C", str(ROOT), "archive", OLDER], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"commit {OLDER[:12]} is not in the history: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder / "tree", filter="data")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=folder / "tree", capture_output=True, text=True, check=False)
    if "No module named hatchling" in built.stderr:
        pytest.skip("the build backend is not installed here: pip install hatchling")
    assert built.returncode == 0, built.stderr
    (made,) = folder.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


class Version:
    """The command line of one version."""

    def __init__(self, source: Path, url: str, folder: Path) -> None:
        self._env = os.environ | SIZES | {"PYTHONPATH": str(source)}
        self._url = url
        self._folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []

    def run(self, *words: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "callboard", "--nats", self._url, *words, "--json"]
        done = subprocess.run(
            command, cwd=self._folder, env=self._env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def work(self) -> None:
        command = [sys.executable, "-m", "callboard", "--nats", self._url, "worker", "start", "who.py"]
        with (self._folder / "workers.log").open("ab") as log:
            self.workers.append(subprocess.Popen(command, cwd=self._folder, env=self._env, stdout=log, stderr=log))

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait(60)


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    server = asyncio.run(NatsServer(folder / "server").start())
    yield server.url
    server.stop()


def test_both_versions_serve_one_fleet_on_streams_that_only_grew(wheel: Path, url: str, folder: Path) -> None:
    (folder / "who.py").write_text(WHO)
    older, this = Version(wheel, url, folder), Version(ROOT / "src", url, folder)
    assert older.run("provision", "--capability", "who")[0] == 0
    _, planned = this.run("provision", "--plan")
    print([(change["action"], change["stream"]) for change in planned["changes"]])  # noqa: T201 - belongs into the output
    assert {change["action"] for change in planned["changes"]} <= {"create", "update"}
    assert not planned["destructive"]
    assert not planned["unknown"], "a stream of the older version that this one does not know"
    assert this.run("provision")[0] == 0
    _, back = older.run("provision", "--plan")
    assert not back["destructive"], "the way back would lose data"
    try:
        older.work()
        this.work()
        asyncio.run(both_serve(url, {str(wheel), str(Path(callboard.__file__).parents[1])}))
    finally:
        older.stop()
        this.stop()


async def both_serve(url: str, sources: set[str]) -> None:
    """Submit until each version has served some; every task has a result."""
    bus = await connect(url, name="test")
    client = Client(bus)
    seen: set[str] = set()

    async def is_served() -> bool:
        handles = [await client.submit("who", number) for number in range(BATCH)]
        for handle in handles:
            seen.add(str(Path(await client.wait(handle, timeout_s=60)).parents[1]))
        return seen >= sources

    try:
        await eventually(is_served, within_s=90, what=f"results of both versions: {sources}")
    finally:
        await bus.close()
