"""The sandbox ``docker`` on a real engine that the test starts: its promises, the ways out, and sudden deaths."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from callboard.agents.contract.sandbox import SandboxContract
from callboard.agents.errors import SandboxError, SandboxMissingError
from callboard.agents.sandbox.base import Job, Limits
from callboard.agents.sandbox.docker import DockerSandbox
from callboard.agents.sandbox_settings import DockerSettings, SandboxSettings
from tests.root.book import BOOK
from tests.support.engine import IMAGE, PYTHON, Engine, EngineRefused, engine
from tests.support.escapes import ESCAPES, Escape
from tests.support.eventually import eventually
from tests.support.trial import attempt, stage

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
OWNER = (65534, 65534)
ORPHAN = """
import asyncio, sys
from pathlib import Path
from callboard.agents.sandbox.base import Job
from callboard.agents.sandbox.choose import choose
from callboard.agents.sandbox_settings import DockerSettings, SandboxSettings
url, image, folder, python = sys.argv[1:]
settings = SandboxSettings(docker=DockerSettings(url=url, image=image))
code = "open('began', 'w').close(); import time; time.sleep(300)"
asyncio.run(choose("docker", settings).run(Job(argv=[python, "-c", code], folder=Path(folder))))
"""


@pytest.fixture(scope="module")
def docker() -> Iterator[Engine]:
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(engine())
        except EngineRefused as refused:
            BOOK.skips["docker"] = str(refused)
            pytest.skip(f"SKIP docker: {refused}")
        yield found


def settings(docker: Engine, **more: object) -> SandboxSettings:
    return SandboxSettings(docker=DockerSettings.model_validate({"url": docker.url, "image": IMAGE, **more}))


@pytest_asyncio.fixture
async def sandbox(docker: Engine) -> AsyncIterator[DockerSandbox]:
    made = DockerSandbox(settings(docker))
    yield made
    await made.close()
    assert docker.containers() == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    os.chown(made, *OWNER)
    return made


@pytest.fixture
def python() -> str:
    return PYTHON


class TestDocker(SandboxContract):
    """What every sandbox promises."""

    # a class's own fixtures come before the module's of the same name: hand those on
    @pytest.fixture
    def sandbox(self, sandbox: DockerSandbox) -> DockerSandbox:
        return sandbox

    @pytest.fixture
    def folder(self, folder: Path) -> Path:
        return folder

    @pytest.fixture
    def python(self, python: str) -> str:
        return python


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda each: each.name)
async def test_a_way_out_ends_as_the_table_says(sandbox: DockerSandbox, escape: Escape, tmp_path: Path) -> None:
    with stage(tmp_path) as found:
        os.chown(found.folder, *OWNER)
        outcome, ran = await attempt(sandbox, escape, found, python=PYTHON)
    assert escape.is_as_wanted("docker", outcome), ran


async def test_a_container_has_no_powers(sandbox: DockerSandbox, folder: Path) -> None:
    ran = await sandbox.run(Job(argv=[PYTHON, "-c", "print(open('/proc/self/status').read())"], folder=folder))
    said = dict(line.split(":\t", 1) for line in ran.stdout.decode().splitlines() if ":\t" in line)
    assert int(said["CapEff"], 16) == int(said["CapBnd"], 16) == 0
    assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    assert said["Uid"].split() == ["65534"] * 4


async def test_nothing_but_the_loopback_is_there(sandbox: DockerSandbox, folder: Path) -> None:
    ran = await sandbox.run(Job(argv=[PYTHON, "-c", "import os; print(os.listdir('/sys/class/net'))"], folder=folder))
    assert ran.stdout == b"['lo']\n"


async def test_what_a_dead_worker_left_is_taken_away(docker: Engine, folder: Path) -> None:
    orphan = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ORPHAN, docker.url, IMAGE, str(folder), PYTHON, cwd=Path(__file__).parents[2]
    )
    await eventually((folder / "began").exists, within_s=60)
    living = DockerSandbox(settings(docker))
    assert await living.reap() == 0  # its worker lives
    orphan.kill()
    await orphan.wait()
    assert len(docker.containers()) == 1
    assert await living.reap() == 1
    assert docker.containers() == []
    await living.close()


async def test_what_is_over_its_time_is_taken_away_whoever_owns_it(docker: Engine, folder: Path) -> None:
    """Also by a worker on another machine, which cannot see whether the owner lives."""
    made = DockerSandbox(settings(docker, grace_s=0.001))
    await made.check()
    job = Job(argv=[PYTHON, "-c", "open('began', 'w').close(); import time; time.sleep(60)"], folder=folder)
    short = Job(argv=job.argv, folder=folder, limits=Limits(time_s=3.0))
    running = asyncio.create_task(made.run(short))
    await eventually((folder / "began").exists, within_s=30)
    assert await made.reap() == 0
    await running
    assert docker.containers() == []
    await made.close()


async def test_an_image_that_is_not_there_is_not_pulled(docker: Engine, folder: Path) -> None:
    made = DockerSandbox(settings(docker, image="no-such-image:1"))
    with pytest.raises(SandboxMissingError, match="no-such-image:1"):
        await made.run(Job(argv=["true"], folder=folder))
    await made.close()


async def test_a_folder_of_root_is_refused_with_what_to_do(sandbox: DockerSandbox, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="chown 65534"):
        await sandbox.run(Job(argv=["true"], folder=tmp_path))


async def test_an_engine_that_dies_is_an_error_and_no_hang(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        try:
            dying = stack.enter_context(engine())
        except EngineRefused as refused:
            pytest.skip(f"SKIP docker: {refused}")
        made = DockerSandbox(settings(dying))
        code = "open('began', 'w').close(); import time; time.sleep(5)"
        running = asyncio.create_task(made.run(Job(argv=[PYTHON, "-c", code], folder=folder)))
        await eventually((folder / "began").exists, within_s=60)
        dying.kill()
        with pytest.raises(SandboxError):
            await running
        await made.close()
