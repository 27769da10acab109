"""A backup taken under load, every server's data lost, and what goes on from the backup."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from callboard.runtime import backup, restore
from callboard.runtime.actor.actor import Actor
from callboard.runtime.actor.handler import on
from callboard.runtime.backup import Manifest
from callboard.runtime.bus import header, provision
from callboard.runtime.bus.base import Bus, Write
from callboard.runtime.bus.jetstream import connect
from callboard.runtime.bus.topology import declared
from callboard.runtime.capability import capability
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.errors import BackupError, BusError, PermissionDeniedError
from callboard.runtime.record import TaskRecord
from tests.chaos.stage import SETTINGS
from tests.support.cluster import Servers
from tests.support.eventually import eventually
from tests.support.secured import planned, secured
from tests.support.world import World

KEYS = 20
TOPOLOGY = declared(SETTINGS)


class Line(Struct):
    text: str


class Book(Actor, name="book"):
    class State(Struct):
        lines: list[str] = []

    @on
    async def write(self, message: Line) -> None:
        self.state.lines.append(message.text)

    @on(read_only=True)
    async def read(self, message: int) -> list[str]:
        return list(self.state.lines)


@capability("double", concurrency=16)
async def double(number: int) -> int:
    return 2 * number


class Load:
    """Tasks without a name, mail, and mail by way of the post, one after the other as fast as they are taken."""

    def __init__(self, world: World) -> None:
        self.tasks: list[str] = []
        self.lines: dict[str, list[str]] = {f"{way}{key}": [] for way in ("mail", "post") for key in range(KEYS)}
        self._world = world

    def start(self) -> None:
        for work in (self._submit, self._tell, self._hand_in):
            self._world.later(self._repeat(work))

    def marks(self) -> tuple[list[str], dict[str, list[str]]]:
        """Return what was acknowledged until now."""
        return list(self.tasks), {key: list(lines) for key, lines in self.lines.items()}

    async def _repeat(self, work: Callable[[int], object]) -> None:
        with contextlib.suppress(BusError):
            number = 0
            while True:
                await work(number)  # type: ignore[misc]  # one of the three below
                number += 1

    async def _submit(self, number: int) -> None:
        self.tasks.append((await self._world.client.submit("double", number)).id)

    async def _tell(self, number: int) -> None:
        key = f"mail{number % KEYS}"
        await self._world.client.actor(f"book/{key}").tell(Line(f"{number}"))
        self.lines[key].append(f"{number}")

    async def _hand_in(self, number: int) -> None:
        key = f"post{number % KEYS}"
        await hand_in(self._world.bus, key, f"{number}")
        self.lines[key].append(f"{number}")


async def hand_in(bus: Bus, key: str, text: str) -> None:
    await bus.store(Write(f"cb.tell.book.{key}", msgspec.json.encode(Line(text)), {"Cb-Type": "Line"}))


@asynccontextmanager
async def running(folder: Path, *, count: int = 1) -> AsyncIterator[World]:
    """Give a world on new and empty servers."""
    servers = Servers(
        folder, count=count, more=lambda n: f'jetstream {{ store_dir: "{folder / f"js-{n}"}", max_file_store: 8G }}'
    )
    await servers.start()

    async def link(name: str) -> Bus:
        bus: Bus = await connect(servers.url, name=name)
        return bus

    bus = await link("world")

    async def answers() -> bool:
        try:
            return not await bus.stream_names()
        except BusError:
            return False

    try:
        await eventually(answers, within_s=40, what="JetStream")
        world = World("jetstream", link, bus)
        try:
            yield world
        finally:
            await world.close()
    finally:
        servers.kill()


async def save(bus: Bus, folder: Path) -> Manifest:
    return await backup.back_up(bus, folder, clock=SYSTEM_CLOCK, progress=lambda *_: None)


async def put_back(
    bus: Bus, folder: Path, *, replicas: int = 1, overwrite: bool = False
) -> dict[str, restore.Restored]:
    wanted = declared(SETTINGS.model_copy(update={"replicas": replicas}))
    done = await restore.restore(
        bus,
        folder,
        backup.check(folder),
        wanted,
        clock=SYSTEM_CLOCK,
        progress=lambda *_: None,
        overwrite=overwrite,
    )
    return {each.stream: each for each in done}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("servers", [1, pytest.param(3, marks=pytest.mark.slow)])
async def test_what_was_acknowledged_before_a_backup_goes_on_on_new_servers(tmp_path: Path, servers: int) -> None:
    async with running(tmp_path / "old") as world:
        await provision.apply(world.bus, await provision.plan(world.bus, TOPOLOGY))
        await world.start(Book, double)
        load = Load(world)
        load.start()
        await eventually(lambda: len(load.tasks) > 200 and len(load.lines["post0"]) > 5, within_s=60)
        tasks, lines = load.marks()
        manifest = await save(world.bus, tmp_path / "saved")
        during = len(load.tasks) - len(tasks)
        assert during > 0, "no load while it was saved: nothing was tested"
        assert await world.bus.stream_info("CB_BACKUP") is None
    assert not left_over(tmp_path, "saved.")

    async with running(tmp_path / "new", count=servers) as world:
        done = await put_back(world.bus, tmp_path / "saved", replicas=servers)
        assert {each.stream for each in manifest.streams} == set(done)
        assert done["CB_ACTORS"].messages >= done["CB_ACTORS"].expected
        assert (await provision.plan(world.bus, declared(SETTINGS.model_copy(update={"replicas": servers})))).is_empty
        await world.start(Book, double)
        # numbers that were known go to nobody else: these are tasks and mail of their own
        fresh = [await world.client.submit("double", 10**6 + number) for number in range(during + 20)]
        for number, handle in enumerate(fresh):
            assert await world.client.wait(handle, timeout_s=30) == 2 * (10**6 + number)
        records: dict[str, TaskRecord] = await world.records("double")
        assert not [task for task in tasks if task not in records]
        states = await world.bus.subject_counts("CB_ACTORS", "cb.state.book.*")
        assert {subject.rsplit(".", 1)[1] for subject in states} == set(lines)
        if servers == 1:
            for key, before in lines.items():
                await hand_in(world.bus, key, "new")
                await check_lines(world, key, before)
    print(f"{len(tasks)} tasks before and {during} while it was saved; skipped {done['CB_WORK'].skipped}")  # noqa: T201


async def check_lines(world: World, key: str, before: list[str]) -> None:
    """Look that a book has each line of before once, in order, and the new one once."""
    book = world.client.actor(f"book/{key}")
    found: list[str] = []

    async def has_new() -> bool:
        found[:] = await book.ask(1, type="int", timeout_s=20, returns=list[str])
        return "new" in found

    await eventually(has_new, within_s=30, what=f"the new line of {key}")
    assert found[: len(before)] == before, key
    assert len(set(found)) == len(found), key


def left_over(folder: Path, beginning: str) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(beginning)]


@asynccontextmanager
async def saved(folder: Path) -> AsyncIterator[World]:
    """Give a world with a few messages, and a backup of it in ``folder``/saved."""
    async with running(folder / "server") as world:
        await provision.apply(world.bus, await provision.plan(world.bus, TOPOLOGY))
        await world.bus.store(Write("cb.task.double", b"1"))
        await world.bus.store(Write("$KV.CB_CONTEXT.global.a", b"1"))
        await save(world.bus, folder / "saved")
        yield world


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("CB_ACTORS.snapshot", flip),
        ("CB_WORK.snapshot", cut),
        ("CB_LEDGER.snapshot", Path.unlink),
        ("manifest.json", flip),
        ("SHA256SUMS", Path.unlink),
    ],
)
async def test_a_damaged_backup_is_refused_by_name_before_the_server_is_touched(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    async with saved(tmp_path) as world:
        backup.check(tmp_path / "saved")
        damage(tmp_path / "saved" / file)
        with pytest.raises(BackupError, match=file.split(".", maxsplit=1)[0]):
            await put_back(world.bus, tmp_path / "saved", overwrite=True)
        info = await world.bus.stream_info("CB_WORK")
        assert info is not None
        assert info.messages == 1


async def test_a_backup_takes_nothing_from_the_server(tmp_path: Path) -> None:
    async with running(tmp_path / "server") as world:
        await provision.apply(world.bus, await provision.plan(world.bus, TOPOLOGY))
        writes = [Write("cb.task.double", b"1"), Write("cb.tell.book.a", b"1"), Write("cb.mail.book.a", b"1")]
        writes.append(Write("cb.later.a", b"1", header.at(datetime(2099, 1, 1, tzinfo=UTC), "cb.due.double")))
        await world.bus.store_many(writes)
        names = [each.name for each in TOPOLOGY.streams if each.storage == "file"]

        async def counts() -> dict[str, int]:
            return {name: info.messages for name in names if (info := await world.bus.stream_info(name)) is not None}

        before = await counts()
        # what a mirror takes away, it takes sooner or later
        for number in range(3):
            await save(world.bus, tmp_path / f"saved-{number}")
        assert await counts() == before | {"CB_AUDIT": 1}


async def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    async with saved(tmp_path) as world:
        with pytest.raises(BackupError, match=r"CB_WORK.* held messages here.*--overwrite"):
            await put_back(world.bus, tmp_path / "saved")
        with pytest.raises(BackupError, match="saved exists"):
            await save(world.bus, tmp_path / "saved")
        await world.bus.store(Write("cb.task.double", b"2"))
        await put_back(world.bus, tmp_path / "saved", overwrite=True)
        info = await world.bus.stream_info("CB_WORK")
        assert info is not None
        assert info.messages == 1


async def test_new_streams_make_room_and_running_workers_do_not(tmp_path: Path) -> None:
    async with saved(tmp_path) as world:
        for name in await world.bus.stream_names():
            await world.bus.delete_stream(name)
        await provision.apply(world.bus, await provision.plan(world.bus, TOPOLOGY))
        assert (await put_back(world.bus, tmp_path / "saved"))["CB_WORK"].messages == 1
        worker = (await world.start(Book, double)).worker
        with pytest.raises(BackupError, match=rf"{worker.id} run here.*stop them first"):
            await put_back(world.bus, tmp_path / "saved", overwrite=True)
        task = await world.client.submit("double", 4)
        assert await world.client.wait(task, timeout_s=20) == 8
        assert await world.client.actor("book/a").ask(1, timeout_s=20) == []


async def test_a_backup_that_fails_leaves_no_folder_and_says_what_is_missing(tmp_path: Path) -> None:
    async with running(tmp_path / "server") as world:
        await provision.apply(world.bus, await provision.plan(world.bus, TOPOLOGY))
        await world.bus.delete_stream("CB_LEDGER")
        with pytest.raises(BackupError, match="no stream CB_LEDGER"):
            await backup.back_up(
                world.bus, tmp_path / "saved", clock=SYSTEM_CLOCK, progress=lambda *_: None, needs=["CB_LEDGER"]
            )

        def stop(stream: str, _: int) -> None:
            if stream == "CB_ACTORS":
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await backup.back_up(world.bus, tmp_path / "saved", clock=SYSTEM_CLOCK, progress=stop)
        assert not left_over(tmp_path, "saved")
        assert await world.bus.stream_info("CB_BACKUP") is None


async def test_the_operator_may_and_others_are_told_who_may(tmp_path: Path) -> None:
    async with secured(tmp_path / "nats", planned(has_tls=False), "double") as servers:
        operator = await servers.bus("operator")
        await operator.store(Write("cb.task.double", b"1"))
        await save(operator, tmp_path / "saved")
        await put_back(operator, tmp_path / "saved", overwrite=True)
        info = await operator.stream_info("CB_WORK")
        assert info is not None
        assert (info.messages, info.consumers) == (1, 3)
        submitter = await servers.bus("submitter")
        with pytest.raises(PermissionDeniedError):
            await save(submitter, tmp_path / "other")
