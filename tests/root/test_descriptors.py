"""No more descriptors, row 26: at the server and at a worker the old work goes on, and the new is told why not."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest

from callboard.runtime.bus.jetstream import connect
from callboard.runtime.errors import BusConnectError, CallboardError
from tests.chaos.handlers import Job
from tests.chaos.stage import Stage, jetstream, staged, store_of
from tests.root import scene
from tests.root.book import Book, Line
from tests.root.conftest import demand
from tests.support.cluster import Servers
from tests.support.eventually import eventually
from tests.support.server import NatsServer

pytestmark = [pytest.mark.root, pytest.mark.chaos, pytest.mark.timeout(scene.limit_s(120))]
# The streams of a server and their consumers need some of them.
LIMIT = 160
TASKS = 100
WITHIN_S = 30.0
STUCK_S = 5.0


@pytest.fixture(autouse=True)
def prlimit() -> None:
    demand("descriptors", probe)


def probe() -> str | None:
    """Start a command under a limit once."""
    tool = shutil.which("prlimit")
    if tool is None:
        return "prlimit is not installed"
    done = subprocess.run([tool, f"--nofile={LIMIT}:{LIMIT}", "true"], check=False, capture_output=True, text=True)
    return done.stderr.strip() or None


class Limited(Servers):
    """One server that may open few files."""

    def __init__(self, folder: Path, *, more: str = "") -> None:
        self.mesh = None
        more = f"{jetstream(store_of(folder, 0))}\n{more}"
        launch = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
        self.all = [NatsServer(folder / "server", jetstream=False, more=more, launch=launch)]


@contextlib.asynccontextmanager
async def crowd(server: NatsServer) -> AsyncIterator[int]:
    """Connect until the server greets nobody any more, and hold those connections; give how many it greeted."""
    held: list[socket.socket] = []
    try:
        yield await asyncio.to_thread(_crowd, server, held)
    finally:
        for each in held:
            each.close()


def _crowd(server: NatsServer, held: list[socket.socket]) -> int:
    for greeted in range(2 * LIMIT):
        held.append(socket.create_connection((server.host, server.port), 2.0))
        if not _is_let_in(held[-1]):
            return greeted
    message = f"the server lets in more than {2 * LIMIT}"
    raise AssertionError(message)


def _is_let_in(link: socket.socket) -> bool:
    link.settimeout(2.0)
    said = b""
    try:
        link.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n')
        while b"PONG" not in said:
            more = link.recv(4096)
            if not more or b"-ERR" in said:
                return False
            said += more
    except OSError:
        return False
    return True


async def test_a_server_that_keeps_descriptors_for_its_files_serves_whom_it_knows(folder: Path, book: Book) -> None:
    async with staged(folder, brokers=Limited(folder, more=f"max_connections: {LIMIT // 2}")) as stage:
        await stage.fleet.start()
        await stage.load.submit_all([Job(n=n, sleep_s=0.01) for n in range(TASKS)])
        async with crowd(stage.server) as greeted:
            with pytest.raises(BusConnectError) as refused:
                await connect(stage.server.url, name="late", connect_deadline_s=2.0)
            assert stage.server.url in str(refused.value)
            await stage.load.submit_all([Job(n=n, sleep_s=0.01) for n in range(TASKS, 2 * TASKS)])
            await stage.settled(within_s=WITHIN_S)
        await eventually(lambda: lets_in(stage), within_s=WITHIN_S, what="a new connection", every_s=0.2)
        await account(stage, book, "server full, max_connections", note=f"{greeted} more were let in")


async def test_a_server_without_any_descriptor_loses_nothing(folder: Path, book: Book) -> None:
    async with staged(folder, brokers=Limited(folder)) as stage:
        await stage.fleet.start()
        await stage.load.submit_all([Job(n=n, sleep_s=0.01) for n in range(TASKS)])
        jobs = [Job(n=n, sleep_s=0.01) for n in range(TASKS, 2 * TASKS)]
        async with crowd(stage.server) as greeted:
            load = asyncio.create_task(stage.load.submit_all(jobs))
            _, stuck = await asyncio.wait([load], timeout=STUCK_S)
        # a stream that could not open its next file writes nothing more until its server is started again
        await stage.server.restart()
        await asyncio.wait_for(load, WITHIN_S)
        await stage.settled(within_s=WITHIN_S)
        note = f"{greeted} more were let in; {'stood still' if stuck else 'went on'} until a restart"
        await account(stage, book, "descriptors gone at the server", note=note)


async def lets_in(stage: Stage) -> bool:
    try:
        bus = await connect(stage.server.url, name="later", connect_deadline_s=2.0)
    except CallboardError:
        return False
    await bus.close()
    return True


async def test_a_worker_without_descriptors_goes_on_and_says_what_failed(folder: Path, book: Book) -> None:
    async with staged(folder) as stage:
        worker = await stage.fleet.start()
        free = first_free(worker.pid)
        before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        # a limit is one above the highest number allowed: nothing can be opened at or above the first free one
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (free, before[1]))
        await stage.load.submit_all([Job(n=n, sleep_s=0.01) for n in range(TASKS)])
        doomed = await stage.load.submit(Job(n=TASKS, how="open"))
        await stage.settled(within_s=WITHIN_S)
        # its own links take the places of those that they replace
        await stage.server.restart()
        await stage.load.submit_all([Job(n=n, sleep_s=0.01) for n in range(TASKS + 1, 2 * TASKS)])
        await stage.settled(within_s=WITHIN_S)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
        await stage.load.submit(Job(n=2 * TASKS, how="open"))
        await stage.settled(within_s=WITHIN_S)
        letters = await stage.dead()
        assert set(letters) == {doomed}
        assert "Too many open files" in letters[doomed].cause.message
        assert worker.is_alive
        await account(
            stage,
            book,
            "descriptors gone at a worker",
            note="the task that wanted one: " + letters[doomed].cause.message,
        )


def first_free(pid: int) -> int:
    """Return the lowest descriptor that a process does not hold."""
    held = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in count() if number not in held)


async def account(stage: Stage, book: Book, fault: str, *, note: str) -> None:
    verdict = await stage.verdict()
    assert verdict.problems == []
    acked, lost, doubled = len(stage.load.acked), len(verdict.lost), len(verdict.doubled)
    book.add(
        Line(number=26, fault=fault, where="prlimit", what="tasks", acked=acked, lost=lost, doubled=doubled, note=note)
    )
