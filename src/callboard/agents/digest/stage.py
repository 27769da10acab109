"""What demonstrations stand on: folders that they may write, a server of their own, worker processes to kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from callboard.agents.digest.walk import Walk, walk
from callboard.runtime.bus.base import Bus
from callboard.runtime.clock import SYSTEM_CLOCK
from callboard.runtime.config import ServerSettings, Settings
from callboard.runtime.embedded import EmbeddedServer
from callboard.runtime.errors import CallboardError, DataFolderInUseError, InputError, ServerStartError, TaskError
from callboard.runtime.host import connector, provision_embedded
from callboard.runtime.processes import ProcessGroup, child_command
from callboard.runtime.roster import Roster
from callboard.runtime.server_folder import DataFolder

START_DEADLINE_S = 60.0
STOP_S = 3.0
"""How long workers may finish what they run when a demonstration is over or was stopped; then they are killed."""

TAKEOVER_WAIT_S = 10.0
_MARK = "callboard-demo"
T = TypeVar("T")


def listed(folder: Path, *, max_files: int, skip: tuple[Path, ...]) -> Walk:
    """List the files to read; what demonstrations themselves write below the folder is not part of it.

    Raises:
        InputError: If there is none.
    """
    found = walk(folder, max_files=max_files, skip=skip)
    if not found.files:
        left_out = f" ({found.left_out_total:,} left out)" if found.left_out_total else ""
        message = f"{folder} holds no file to read{left_out}: name another folder"
        raise InputError(message)
    try:
        str(folder.resolve()).encode()
    except UnicodeEncodeError as error:
        message = f"the path of {folder.name!r} is not valid text and cannot be sent: rename the folder"
        raise InputError(message) from error
    return found


@asynccontextmanager
async def server(data_dir: Path) -> AsyncIterator[tuple[str, Bus]]:
    """Run a server on the folder, every write synced, with all streams; give its address and a connection.

    Raises:
        CallboardError: If it does not start.
    """
    server_settings = ServerSettings(data_dir=data_dir, port=0)
    async with EmbeddedServer(server_settings) as running:
        # replicas: a cluster's settings may lie in this folder, and here is one server
        flags = {"nats.url": running.url, "topology.replicas": 1}
        settings = Settings.load(flags=flags).model_copy(update={"server": server_settings})
        await provision_embedded(settings)
        bus = await connector(settings)("demo")
        try:
            yield running.url, bus
        finally:
            await bus.close()


@asynccontextmanager
async def workers(module: str, *, processes: int, concurrency: int, url: str) -> AsyncIterator[asyncio.Task[int]]:
    """Run worker processes that serve a module; one that dies is started again, and nobody tells the others of it.

    Gives the task that keeps them: it ends early only when they cannot go on.
    """
    words = [module, "--concurrency", str(concurrency), "--log-level", "error", "--quiet", "--nats", url]
    group = ProcessGroup(
        lambda slot, fd: child_command(words, slot=slot, fd=fd, restarts=group.restarts(slot)),
        count=processes,
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


async def until_ready(beats: Roster, count: int) -> None:
    """Wait until so many workers are ready.

    Raises:
        CallboardError: If they are not within a minute.
    """
    give_up_s = SYSTEM_CLOCK.monotonic() + START_DEADLINE_S
    while (ready := len(ready_in(beats))) < count:
        if SYSTEM_CLOCK.monotonic() > give_up_s:
            message = f"only {ready} of {count} workers came up in time"
            raise CallboardError(message)
        await SYSTEM_CLOCK.sleep(0.05)


def ready_in(beats: Roster) -> dict[str, int]:
    """Return the process of every worker whose latest beat says that it is ready, the dead ones too."""
    return {worker: beat.pid for worker, beat in beats.beats.items() if beat.status == "ready"}


async def until_group_ends(group: asyncio.Task[int], work: Coroutine[Any, Any, T]) -> T:
    """Await the work, but not longer than the workers live: without them it would never end.

    Raises:
        TaskError: If they gave up.
    """
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


async def apart(work: Callable[[], T]) -> T:
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


def check_out(out: Path) -> None:
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


async def make_room(data_dir: Path) -> None:
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
