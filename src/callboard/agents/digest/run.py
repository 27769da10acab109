"""Digest a folder on real workers: server, processes, tasks, one SIGKILL in the middle, the merge, the report."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from callboard.agents.digest.ledger import Held, Kill, Ledger, Record, account, read_record
from callboard.agents.digest.merge import Corpus
from callboard.agents.digest.report import Run, Written, write_report
from callboard.agents.digest.service import FileTask, MergeTask
from callboard.agents.digest.walk import Walk, walk
from callboard.runtime import ids, roster, subjects
from callboard.runtime.bus.base import Bus, Message
from callboard.runtime.client import Client, TaskHandle
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import ServerSettings, Settings
from callboard.runtime.embedded import EmbeddedServer
from callboard.runtime.errors import CallboardError, DataFolderInUseError, InputError, ServerStartError, TaskError
from callboard.runtime.host import connector, provision_embedded
from callboard.runtime.lease import HoldsAnswer, HoldsQuestion
from callboard.runtime.processes import ProcessGroup
from callboard.runtime.record import TaskRecord
from callboard.runtime.server_folder import DataFolder
from callboard.runtime.version import VERSION

KILL_AT = 0.4
HOLDS_WAIT_S = 0.15
START_DEADLINE_S = 60.0
MERGE_DEADLINE_S = 900.0
STOP_S = 3.0
"""How long workers may finish what they run when the demo is over or was stopped; then they are killed."""

TAKEOVER_WAIT_S = 10.0
_MARK = "callboard-demo"
T = TypeVar("T")


class DemoOptions(Struct, frozen=True, kw_only=True):
    """What to digest and how.

    Attributes:
        folder: What to read.
        out: Where the report goes.
        data_dir: Where the server keeps its streams; an earlier demo's data there is removed first.
        processes: Worker processes.
        concurrency: Slots of each.
        kill: Whether to kill one worker in the middle.
        max_files: Files at most.
    """

    folder: Path
    out: Path
    data_dir: Path
    processes: int = 3
    concurrency: int = 2
    kill: bool = True
    max_files: int = 5000


class Progress(Struct, frozen=True, kw_only=True):
    """How far it is.

    Attributes:
        stage: ``listing``, ``starting``, ``digesting``, ``killed``, ``merging``, ``writing``, ``written``.
        done: Files digested.
        total: Files to digest, 0 before they are known.
        text: What is happening, where a person wants to know.
    """

    stage: str
    done: int = 0
    total: int = 0
    text: str = ""


class Demo(Struct, frozen=True, kw_only=True):
    """What came of it."""

    written: Written
    ledger: Ledger
    seconds: float


Tell = Callable[[Progress], None]


async def run_demo(options: DemoOptions, tell: Tell) -> Demo:
    """Digest a folder and write the report. Cancelling it stops workers and server and leaves nothing running.

    Raises:
        InputError: If the folder holds nothing to read, or report or data cannot be written where they shall go.
        DataFolderInUseError: If another demo or server runs on the data folder.
        CallboardError: If server or workers do not start, or the group of workers ends early.
    """
    tell(Progress(stage="listing"))
    found = await _apart(lambda: _list(options))
    _check_out(options.out)
    await _make_room(options.data_dir)
    tell(Progress(stage="starting", total=len(found.files), text="an embedded nats-server"))
    server_settings = ServerSettings(data_dir=options.data_dir, port=0)
    async with EmbeddedServer(server_settings) as server:
        # replicas: a cluster's settings may lie in this folder, and here is one server
        flags = {"nats.url": server.url, "topology.replicas": 1}
        settings = Settings.load(flags=flags).model_copy(update={"server": server_settings})
        await provision_embedded(settings)
        bus = await connector(settings)("demo")
        try:
            text = f"{options.processes} worker process{'es' * (options.processes != 1)}"
            tell(Progress(stage="starting", total=len(found.files), text=text))
            async with _workers(options, server.url) as group:
                return await _until_group_ends(group, _Digesting(bus, options, found, tell).run())
        finally:
            await bus.close()


def _list(options: DemoOptions) -> Walk:
    """List the files; what demos themselves write below the folder is not part of it.

    Raises:
        InputError: If there is none.
    """
    found = walk(options.folder, max_files=options.max_files, skip=(options.out, options.data_dir))
    if not found.files:
        left_out = f" ({found.left_out_total:,} left out)" if found.left_out_total else ""
        message = f"{options.folder} holds no file to read{left_out}: name another folder"
        raise InputError(message)
    try:
        str(options.folder.resolve()).encode()
    except UnicodeEncodeError as error:
        message = f"the path of {options.folder.name!r} is not valid text and cannot be sent: rename the folder"
        raise InputError(message) from error
    return found


class _Digesting:
    """One run, once server and workers are on their way."""

    def __init__(self, bus: Bus, options: DemoOptions, found: Walk, tell: Tell) -> None:
        self._bus = bus
        self._client = Client(bus)
        self._options = options
        self._found = found
        self._tell = tell
        self._run = ids.new_token(3)
        self._clock = SYSTEM_CLOCK
        self._workers: dict[str, int] = {}
        self._finished: set[str] = set()
        self._kill: Kill | None = None

    async def run(self) -> Demo:
        async with roster.listening(self._bus) as beats:
            await self._wait_for_workers(beats)
            begun_s, started_at = self._clock.monotonic(), self._clock.now()
            labels = await self._submit()
            await self._follow(labels, beats)
            merged = await self._merge(list(labels))
            finished_at = self._clock.now()
            self._note_workers(beats)
        self._tell(Progress(stage="writing", done=len(labels), total=len(labels)))
        records = [record async for record in self._records()]
        value = await self._client.value_of(merged)
        kill, workers = self._kill, tuple(self._workers)
        if kill is not None:
            kill = msgspec.structs.replace(kill, replaced_by=list(workers[self._options.processes :]))
        summary = self._summary(started_at, finished_at)

        def write() -> tuple[Written, Ledger]:
            book = account([*labels, merged.task], records, kill=kill, labels=labels, workers=workers)
            return write_report(self._options.out, msgspec.convert(value, Corpus), book, summary), book

        written, book = await _apart(write)
        self._tell(Progress(stage="written", done=len(labels), total=len(labels)))
        return Demo(written=written, ledger=book, seconds=self._clock.monotonic() - begun_s)

    def _summary(self, started_at: datetime, finished_at: datetime) -> Run:
        return Run(
            folder=self._options.folder.resolve().name or str(self._options.folder),
            started_at=started_at,
            finished_at=finished_at,
            left_out=self._found.left_out,
            left_out_total=self._found.left_out_total,
            kill_wanted=self._options.kill,
            version=VERSION,
        )

    async def _wait_for_workers(self, beats: roster.Roster) -> None:
        give_up_s = self._clock.monotonic() + START_DEADLINE_S
        while len(self._workers) < self._options.processes:
            if self._clock.monotonic() > give_up_s:
                message = f"only {len(self._workers)} of {self._options.processes} workers came up in time"
                raise CallboardError(message)
            await self._clock.sleep(0.05)
            self._note_workers(beats)

    def _note_workers(self, beats: roster.Roster) -> None:
        for worker, beat in beats.beats.items():
            if beat.status == "ready":
                self._workers.setdefault(worker, beat.pid)

    async def _submit(self) -> dict[str, str]:
        root = str(self._options.folder.resolve())
        # large files first and last would hide the kill: keep the walk's order
        labels = {f"digest/{self._run}/{n}": file.path for n, file in enumerate(self._found.files)}
        tasks = [FileTask(root=root, path=path) for path in labels.values()]
        handles = await self._client.submit_many("digest", tasks, task_ids=list(labels), timeout_s=120.0)
        refused = [handle for handle in handles if not isinstance(handle, TaskHandle)]
        if refused:
            raise refused[0]
        return labels

    async def _follow(self, labels: dict[str, str], beats: roster.Roster) -> None:
        total = len(labels)
        prefix = len("cb.result.digest.")
        reader = self._bus.read(subjects.LEDGER, subjects=["cb.result.digest.*"], start_seq=1, follow=True)
        async for stored in reader:
            self._finished.add(subjects.unescape(stored.subject[prefix:]))
            self._tell(Progress(stage="digesting", done=len(self._finished), total=total))
            if self._options.kill and self._kill is None and len(self._finished) >= total * KILL_AT:
                await self._kill_one(list(labels), beats)
            if len(self._finished) >= total:
                return

    async def _kill_one(self, task_ids: list[str], beats: roster.Roster) -> None:
        """Kill a worker that holds a task right now; when none holds any, the next finished task asks again."""
        self._note_workers(beats)
        open_ids = [task_id for task_id in task_ids if task_id not in self._finished][:500]
        answer = await self._who_holds(open_ids)
        if answer is None:
            return
        try:
            os.kill(self._workers[answer.worker], signal.SIGKILL)
        except ProcessLookupError:
            return
        tasks = [Held(task=task) for task in answer.held]
        self._kill = Kill(worker=answer.worker, at=self._clock.now(), held=tasks)
        holds = f"{len(tasks)} task{'s' * (len(tasks) != 1)}"
        text = f"SIGKILL to {answer.worker} on purpose; it just said it holds {holds}"
        self._tell(Progress(stage="killed", done=len(self._finished), total=len(task_ids), text=text))

    async def _who_holds(self, task_ids: list[str]) -> HoldsAnswer | None:
        """Return the first worker that says it holds any of the tasks: what it says is milliseconds old, not more."""
        first: asyncio.Future[HoldsAnswer] = asyncio.get_running_loop().create_future()

        def hear(message: Message) -> None:
            answer = msgspec.json.decode(message.data, type=HoldsAnswer)
            if answer.held and answer.worker in self._workers and not first.done():
                first.set_result(answer)

        inbox = self._bus.inbox()
        subscription = await self._bus.subscribe(inbox, hear)
        try:
            question = msgspec.json.encode(HoldsQuestion(task_ids))
            await self._bus.publish(subjects.CTL_HOLDS, question, reply=inbox)
            await asyncio.wait([first], timeout=HOLDS_WAIT_S)
        finally:
            await subscription.close()
        return first.result() if first.done() else None

    async def _merge(self, task_ids: list[str]) -> TaskRecord:
        self._tell(Progress(stage="merging", done=len(task_ids), total=len(task_ids)))
        task = MergeTask(tasks=task_ids)
        handle = await self._client.submit("merge", task, id=f"merge/{self._run}", notify=True)
        record = await self._client.wait_record(handle, timeout_s=MERGE_DEADLINE_S)
        if record.status != "completed":
            await self._client.value_of(record)  # raises with the cause
        return record

    async def _records(self) -> AsyncIterator[Record]:
        async for stored in self._bus.read(subjects.LEDGER, subjects=["cb.result.>"], start_seq=1):
            yield read_record(stored.data)


@asynccontextmanager
async def _workers(options: DemoOptions, url: str) -> AsyncIterator[asyncio.Task[int]]:
    command = [sys.executable, "-m", "callboard", "worker", "child", "callboard.agents.digest.service"]
    command += ["--concurrency", str(options.concurrency), "--log-level", "error", "--quiet", "--nats", url]
    command += ["--parent-pid", str(os.getpid())]
    group = ProcessGroup(
        lambda slot, fd: [*command, "--slot", str(slot), "--parent-fd", str(fd)],
        count=options.processes,
        stop_grace_s=STOP_S,
        takes_signals=False,
    )
    running = asyncio.create_task(group.run(), name="demo-workers")
    try:
        yield running
    finally:
        group.stop()
        await asyncio.wait([running], timeout=STOP_S)
        # cancelling kills whoever is still there
        running.cancel()
        await asyncio.wait([running])


async def _until_group_ends(group: asyncio.Task[int], work: Coroutine[Any, Any, Demo]) -> Demo:
    """Await the work, but not longer than the workers live: without them it would never end."""
    task = asyncio.create_task(work, name="demo")
    try:
        await asyncio.wait((group, task), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            message = "the workers could not go on; see what they said above"
            raise TaskError(message)
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _apart(work: Callable[[], T]) -> T:
    """Run ``work`` on a thread that nobody waits for: a cancelled demo must not stay for a walk over a whole disk.

    ``asyncio.to_thread`` would be waited for at the end of the loop and again at the end of the interpreter.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is not None:
            ended.set_exception(error)
        else:
            ended.set_result(result)  # type: ignore[arg-type]  # None only where T allows it

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever awaits
            failure = error
        # the loop is closed when a cancelled demo has ended
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="demo-apart", daemon=True).start()
    return await ended


def _check_out(out: Path) -> None:
    """Find out before the work whether the report can be written after it.

    Raises:
        InputError: If it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        message = f"the report cannot be written to {out}: {error.strerror}; name another folder with --out"
        raise InputError(message) from error


async def _make_room(data_dir: Path) -> None:
    """Remove an earlier demo's data; a folder that is not a demo's is left alone.

    Raises:
        InputError: If the folder holds something else, or cannot be written.
        DataFolderInUseError: If another demo or server runs on it.
    """
    folder = DataFolder(data_dir)
    try:
        _mark(data_dir)
        await _lock(folder)
        try:
            _empty(folder)
        finally:
            folder.unlock()
    except (OSError, ServerStartError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"the data folder {data_dir} cannot be used: {reason}; name another folder with --data"
        raise InputError(message) from error


def _mark(data_dir: Path) -> None:
    mark = data_dir / _MARK
    if data_dir.exists() and any(data_dir.iterdir()) and not mark.exists():
        message = f"{data_dir} is not empty and not of an earlier demo: name another folder with --data"
        raise InputError(message)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    mark.write_text("made by `callboard demo`; the next demo removes it\n", encoding="utf-8")


def _empty(folder: DataFolder) -> None:
    for path in folder.path.iterdir():
        if path.name in (_MARK, folder.lock_file.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


async def _lock(folder: DataFolder) -> None:
    """Take the folder's lock; the server of a demo that was killed a moment ago is on its way out, so wait for it."""
    give_up_s = SYSTEM_CLOCK.monotonic() + TAKEOVER_WAIT_S
    while True:
        try:
            folder.lock()
        except DataFolderInUseError as error:
            holder = folder.read_state()
            if holder is None or _is_alive(holder.owner_pid) or SYSTEM_CLOCK.monotonic() > give_up_s:
                who = f"process {holder.owner_pid} (server {holder.pid})" if holder else "another process"
                message = f"{who} runs on the data folder {folder.path}: stop it, or name another folder with --data"
                raise DataFolderInUseError(message) from error
            await SYSTEM_CLOCK.sleep(0.05)
        else:
            return


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
